"""Generate text with MLX, Apple's framework, from a folder that `export` wrote.

    pip install mlx-lm                    # on Linux, without a GPU: 'mlx[cpu]' mlx-lm
    python main.py export --run mine --to mine-hf
    python examples/generate_with_mlx.py mine-hf --prompt "O God, O God!"

mlx_lm has Qwen3, so nothing is converted; it has no n-gram tables. It does not move a window over
the text, as `predict` does: prompt and new characters should together not exceed the block size.
"""

import argparse
from collections.abc import Iterator

from mlx_lm import load, stream_generate
from mlx_lm.sample_utils import make_sampler


def generate(folder: str, prompt: str, max_new_tokens: int) -> Iterator[str]:
    """The characters after the prompt, each as soon as it is known."""
    model, tokenizer = load(folder)
    sampler = make_sampler(temp=0.8, top_p=0.9)
    for part in stream_generate(model, tokenizer, prompt, max_new_tokens, sampler=sampler):
        yield part.text


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", help="a folder that export wrote")
    parser.add_argument("--prompt", default="\n", help="text to continue")
    parser.add_argument("--max_new_tokens", type=int, default=200, help="characters to generate")
    arguments = parser.parse_args()
    print(arguments.prompt, end="")
    for text in generate(arguments.folder, arguments.prompt, arguments.max_new_tokens):
        print(text, end="", flush=True)
    print()
