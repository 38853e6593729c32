"""The loss with smaller weight formats, measured on the engine that generates text on a CPU.

    python benchmarks/weights.py logs/gpt_char/checkpoints/best.ckpt [--windows 64]

Windows that are spread over the validation split are read character by character by
`cpu_engine.CPUEngine`, with weights of each format; one row at a time and all rows at once.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from lightning_app.data.splits import split_text
from lightning_app.generation.cpu_engine import CPUEngine
from lightning_app.model.gpt import GPT
from lightning_app.runs.checkpoint import load


def together(gpt: GPT, ids: np.ndarray, weights: str) -> np.ndarray:
    """Losses (B, T - 1) in nats."""
    engine = CPUEngine(gpt, len(ids), weights)
    steps = [engine.next_logits(np.arange(len(ids)), column) for column in ids[:, :-1].T]
    return losses(np.stack(steps, axis=1), ids)


def one_by_one(gpt: GPT, ids: np.ndarray, weights: str) -> np.ndarray:
    return np.concatenate([together(gpt, row[None], weights) for row in ids])


def losses(logits: np.ndarray, ids: np.ndarray) -> np.ndarray:
    log_p = torch.from_numpy(logits).double().log_softmax(-1).numpy()
    return -np.take_along_axis(log_p, ids[:, 1:, None], axis=-1)[..., 0]


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--windows", type=int, default=64)
    args = parser.parse_args()
    if args.windows < 2:
        parser.error("--windows takes 2 or more: several texts are compared with one")
    trained = load(args.checkpoint)
    data = trained.data
    where = [data[k] for k in ("corpus", "splits", "hold_out", "unit", "data_dir")]
    text = split_text(*where).ids("val")
    size = trained.gpt.config.block_size
    starts = np.linspace(0, len(text) - size - 1, args.windows).astype(int)
    ids = np.stack([np.asarray(text[s : s + size], dtype=np.int64) for s in starts])
    exact = together(trained.gpt, ids, "float32")
    print(f"{ids.size:,} characters, float32: {exact.mean():.4f} nats per character")
    for name, score in (("one text", one_by_one), ("several", together)):
        for weights in ("float32", "bfloat16", "int8"):
            difference = score(trained.gpt, ids, weights) - exact
            error = difference.std() / difference.size**0.5
            print(f"{name:9} {weights:9} {difference.mean():+.5f} (standard error {error:.5f})")


if __name__ == "__main__":
    main()
