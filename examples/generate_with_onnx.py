"""Convert a folder that `export` wrote to ONNX, and generate text with ONNX Runtime.

    pip install transformers onnx onnxscript onnxruntime
    python main.py export --run mine --to mine-hf
    python examples/generate_with_onnx.py mine-hf mine.onnx --prompt "O God, O God!"

The file maps character ids (1, T) to logits (1, T, V). It has no cache: each character is computed
from the complete window, which is simple, and slow for a large network.
"""

import argparse

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer


class Logits(nn.Module):
    """A model of transformers as a function from ids to logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, idx: Tensor) -> Tensor:
        return self.model(input_ids=idx, use_cache=False).logits


def convert(folder: str, file: str) -> float:
    """Write the ONNX file; return the largest difference of a logit from that of transformers."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    block_size = model.config.max_position_embeddings
    idx = torch.randint(model.config.vocab_size, (1, block_size))
    length = torch.export.Dim("T", max=block_size)
    program = torch.onnx.export(
        Logits(model).eval(),
        (idx[:, : block_size // 2],),
        input_names=["idx"],
        output_names=["logits"],
        dynamic_shapes={"idx": {1: length}},
        verbose=False,
    )
    program.save(file)
    with torch.no_grad():
        expected = model(idx).logits.numpy()
    (logits,) = onnxruntime.InferenceSession(file).run(None, {"idx": idx.numpy()})
    return float(np.abs(logits - expected).max())


def generate(folder: str, file: str, prompt: str, max_new_tokens: int) -> str:
    """The prompt and a text after it, sampled at temperature 0.8.

    As `predict` does, it drops the older half of a full window.
    """
    tokenizer, session = AutoTokenizer.from_pretrained(folder), onnxruntime.InferenceSession(file)
    block_size, random = tokenizer.model_max_length, np.random.default_rng()
    text = tokenizer(prompt)["input_ids"]
    window = text[-block_size:]
    for _ in range(max_new_tokens):
        logits = session.run(None, {"idx": np.array([window])})[0][0, -1] / 0.8
        p = np.exp(logits - logits.max())
        new = random.choice(len(p), p=p / p.sum())
        text, window = [*text, new], [*window, new]
        if len(window) > block_size:
            window = window[-(block_size - block_size // 2) :]
    return tokenizer.decode(text)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", help="a folder that export wrote")
    parser.add_argument("file", help="the ONNX file to write")
    parser.add_argument("--prompt", default="\n", help="text to continue")
    parser.add_argument("--max_new_tokens", type=int, default=200, help="characters to generate")
    arguments = parser.parse_args()
    difference = convert(arguments.folder, arguments.file)
    print(f"largest difference of a logit from that of transformers: {difference:.1e}\n")
    print(generate(arguments.folder, arguments.file, arguments.prompt, arguments.max_new_tokens))
