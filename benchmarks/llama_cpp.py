"""GGUF files in llama.cpp: the loss of a run in each format of weights, and the speed.

    python benchmarks/llama_cpp.py CHECKPOINT TEXT [--windows 7] [--rounds 7]

Needs the packages gguf and xllamacpp, which contains llama.cpp. The loss is that of the second and
later characters of windows of TEXT, one after the other, compared with our network's on the same
characters; llama.cpp computes as its server does by default. The speed is that of one text of 250
characters by one thread, for random networks with a context of 256, alternating.
"""

import argparse
import json
import statistics
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xllamacpp

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from lightning_app import load
from lightning_app.export.gguf import WEIGHT_FORMATS, export_gguf
from lightning_app.model.gpt import GPT, GPTConfig

ALPHABET = "".join(map(chr, range(32, 97)))
SHAPES: dict[str, Any] = {
    "1.8 M": {"n_layer": 4, "n_head": 4, "n_embd": 192},
    "10.6 M": {"n_layer": 6, "n_head": 6, "n_embd": 384},
}


def serve(file: Path) -> Any:
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel = str(file), 0, 1
    params.cpuparams.n_threads, params.verbosity = 1, -1
    return xllamacpp.Server(params)


def complete(server: Any, **body: Any) -> dict[str, Any]:
    data = json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{server.listening_address}/completion", data, headers)
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def losses(server: Any, window: list[int], vocab_size: int) -> list[float]:
    """Of each character of a window after the first."""
    found = []
    for at in range(1, len(window)):
        made = complete(server, prompt=window[:at], n_predict=1, n_probs=vocab_size)
        top = made["completion_probabilities"][0]["top_logprobs"]
        found.append(-next(x["logprob"] for x in top if x["id"] == window[at]))
    return found


@torch.no_grad()
def compare_loss(checkpoint: str, text: str, windows: int, folder: Path) -> None:
    trained = load(checkpoint)
    gpt, tokenizer, T = trained.gpt, trained.tokenizer, trained.gpt.config.block_size
    known = "".join(c for c in Path(text).read_text() if c in tokenizer.ids)
    ids = torch.from_numpy(tokenizer.encode(known))[: windows * T].view(windows, T)
    logits = gpt(ids[:, :-1]).flatten(0, 1)
    ours = torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten()).item()
    print(f"loss of {windows * (T - 1):,} characters: ours {ours:.6f}")
    for weights in WEIGHT_FORMATS:
        file = folder / f"run.{weights}"
        export_gguf(gpt, tokenizer.alphabet, file, tokenizer.unit, weights)
        server = serve(file)
        theirs = np.mean([losses(server, row, len(tokenizer)) for row in ids.tolist()])
        print(f"  {weights:5} {theirs:.6f} ({theirs - ours:+.1e}), {file.stat().st_size:,} bytes")


def compare_speed(rounds: int, folder: Path) -> None:
    for name, shape in SHAPES.items():
        gpt = GPT(GPTConfig(vocab_size=len(ALPHABET), block_size=256, **shape))
        for weight in gpt.parameters():
            if weight.ndim > 1:
                torch.nn.init.normal_(weight, std=0.02)
        servers: dict[str, Any] = {}
        rates: dict[str, list[float]] = {weights: [] for weights in WEIGHT_FORMATS}
        for weights in WEIGHT_FORMATS:
            export_gguf(gpt, ALPHABET, folder / f"{name}.{weights}", weights=weights)
            servers[weights] = serve(folder / f"{name}.{weights}")
        for _ in range(rounds):
            for weights, server in servers.items():
                made = complete(server, prompt="ABC", n_predict=250, cache_prompt=False)
                rates[weights].append(made["timings"]["predicted_per_second"])
        medians = {weights: statistics.median(rate) for weights, rate in rates.items()}
        for weights, rate in medians.items():
            low, high = min(rates[weights]), max(rates[weights])
            spread = f"characters/s ({low:,.0f} to {high:,.0f})"
            ratio = rate / medians["f32"]
            print(f"{name} {weights:5} {rate:,.0f} {spread}, {ratio:.2f} times f32", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint")
    parser.add_argument("text")
    parser.add_argument("--windows", type=int, default=7)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        compare_loss(arguments.checkpoint, arguments.text, arguments.windows, Path(temporary))
        compare_speed(arguments.rounds, Path(temporary))
