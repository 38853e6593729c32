"""How much generated texts repeat themselves, beside a text that people wrote.

    python benchmarks/repetition.py --run gpt_char --text FILE [--texts 16] [--length 1000]

FILE is a text of the kind that the network was trained on, which it has not seen. For FILE, in
pieces of this length, and for texts generated with several options: the share of positions whose
last 6, 10 and 15 characters occurred earlier in the same text. With good options the shares are
about those of FILE. Seed 3.
"""

import argparse
import statistics
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from lightning_app import load
from lightning_app.generation.generate import generate_text
from lightning_app.generation.sampling import GenerateOptions

LENGTHS = (6, 10, 15)
OPTIONS = (
    {"sampling": "top_p", "top_p": 0.9, "temperature": 0.8},
    {"sampling": "top_p", "top_p": 0.9, "temperature": 0.9},
    {"sampling": "top_p", "top_p": 0.9, "temperature": 1.0},
    {"sampling": "top_p", "top_p": 0.95, "temperature": 0.9},
    {"sampling": "top_p", "top_p": 0.95, "temperature": 1.0},
    {"sampling": "min_p", "min_p": 0.05, "temperature": 1.0},
    {"sampling": "prob", "temperature": 0.9},
    {"sampling": "prob", "temperature": 1.0},
)


def repeated(text: str, n: int) -> float:
    """The share of n-grams of a text that occurred in it before."""
    seen: set[str] = set()
    count = 0
    for i in range(len(text) - n + 1):
        gram = text[i : i + n]
        count += gram in seen
        seen.add(gram)
    return count / (len(text) - n + 1)


def report(name: str, texts: Iterable[str]) -> None:
    texts = list(texts)
    shares = [statistics.mean(repeated(text, n) for text in texts) for n in LENGTHS]
    print("  ".join(f"{100 * share:5.1f} %" for share in shares), name, sep="  ", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--texts", type=int, default=16)
    parser.add_argument("--length", type=int, default=1000)
    args = parser.parse_args()
    trained = load(Path("logs") / args.run / "checkpoints" / "best.ckpt")
    text = args.text.read_text(encoding="utf-8")
    starts = range(0, len(text) - args.length + 1, args.length)
    print("  ".join(f"n = {n:2} " for n in LENGTHS))
    report(str(args.text), (text[i : i + args.length] for i in starts))
    for given in OPTIONS:
        options = GenerateOptions(max_new_tokens=args.length, **given)
        texts = generate_text(
            trained.gpt, trained.tokenizer, [""], options, 3, args.texts, trained.unigram
        )
        report(" ".join(f"{k} {v}" for k, v in given.items()), texts)


if __name__ == "__main__":
    main()
