"""What n-gram counts cost: in a training step, in the look-up alone, and in generation.

    python benchmarks/counts.py --text FILE [--rounds 15]
    python benchmarks/counts.py --run NAME [--rounds 15]

The network of configs/gpt_char.yaml, compiled, 2,048 characters a step, in windows of 64, 256 and
1,024, the optimizer among it. Medians in milliseconds; the networks take turns. FILE is any text of
about a megabyte. With --run, the run's network generates with its counts and without them:
characters a second, from position 100 to the end of the context.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from lightning_app.data.tokenizer import Tokenizer
from lightning_app.generation.cpu_engine import WeightFormat
from lightning_app.generation.generate import generate_ids, sample_rng
from lightning_app.generation.sampling import GenerateOptions
from lightning_app.hardware import choose_precision, matmul_speed
from lightning_app.model.gpt import GPT, GPTConfig, loss_per_character
from lightning_app.model.ngrams import NgramCounts
from lightning_app.runs.checkpoint import load
from lightning_app.runs.folders import find_checkpoint
from lightning_app.training.optimizer import MuonAdamW, OptimOptions, parameter_groups

SIZES = {"block_size": 1024, "n_layer": 4, "n_head": 5, "n_embd": 160}
ROWS = (4096, 65536, 1048576, 1048576, 1048576, 0, 1048576)
CHARACTERS = 2048  # a step
UNTIMED = 100  # characters of each generated text

Batch = tuple[Tensor, Tensor, Tensor]  # idx, targets, begins


def network(
    ids: NDArray[np.integer], alphabet: str, rows: tuple[int, ...]
) -> tuple[GPT, MuonAdamW]:
    torch.manual_seed(0)
    gpt = GPT(GPTConfig(vocab_size=len(alphabet), ngram_rows=rows, **SIZES))
    if gpt.ngrams is not None:
        gpt.ngrams.use_code_points(alphabet)
        gpt.ngrams.count(ids)
    gpt.compile(dynamic=False)
    return gpt, MuonAdamW(parameter_groups(gpt, OptimOptions()), compile=True)


def windows(ids: NDArray[np.integer], size: int) -> Batch:
    """Ids and targets (B, size) at random places of the text, and the places (B,)."""
    begins = torch.randint(len(ids) - size, (CHARACTERS // size,))
    rows = np.stack([ids[b : b + size + 1] for b in begins.tolist()]).astype(np.int64)
    return torch.from_numpy(rows[:, :-1]), torch.from_numpy(rows[:, 1:]), begins


def milliseconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return 1000 * (time.perf_counter() - began)


def step(gpt: GPT, optimizer: MuonAdamW, batch: Batch, bf16: bool) -> None:
    idx, targets, begins = batch
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss = loss_per_character(gpt(idx, begins=begins), targets).mean()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(gpt.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def look_up(ngrams: NgramCounts, batch: Batch) -> object:
    idx, _, begins = batch
    return ngrams.look_up(idx, begins=begins)


def characters_per_second(gpt: GPT, weights: WeightFormat, texts: int) -> float:
    options = GenerateOptions().resolve()
    rngs = [sample_rng(1, 0, i) for i in range(texts)]
    steps = generate_ids(gpt, [[0]] * texts, rngs, options, weights=weights)
    for _ in range(UNTIMED):
        next(steps)
    began = time.perf_counter()
    written = sum(len(ids) for ids in islice(steps, gpt.config.block_size - 1 - UNTIMED))
    return written / (time.perf_counter() - began)


def compare_generation(run: str, rounds: int) -> None:
    counting = load(find_checkpoint(None, run)).gpt
    without = GPT(replace(counting.config, ngram_rows=())).eval()
    without.load_state_dict(counting.state_dict(), strict=False)
    print("texts  weights   without     with  ratio")
    for texts in (1, 64):
        for weights in get_args(WeightFormat):
            speeds: dict[GPT, list[float]] = {without: [], counting: []}
            for i in range(rounds + 1):
                for gpt, values in speeds.items():
                    speed = characters_per_second(gpt, weights, texts)
                    values += [speed] if i else []  # the first packs the weights
            a, b = (statistics.median(values) for values in speeds.values())
            print(f"{texts:5}  {weights:8}  {a:7,.0f}  {b:7,.0f}  {b / a:5.2f}", flush=True)


def compare_steps(file: Path, rounds: int) -> None:
    text = file.read_text(encoding="utf-8")
    alphabet = "".join(sorted(set(text)))
    ids = Tokenizer(alphabet).encode(text)
    precision = choose_precision("cpu")
    rate = matmul_speed("cpu", precision, seconds=1.0).flops_per_second / 1e9
    print(f"{precision}, {rate:.0f} GFLOP/s")
    without, counting = network(ids, alphabet, ()), network(ids, alphabet, ROWS)
    ngrams = counting[0].ngrams
    assert ngrams is not None
    bf16 = precision.startswith("bf16")
    print("windows  without     with  ratio  look-up alone  one repeated character")
    for size in (64, 256, 1024):
        times: dict[str, list[float]] = {}
        repeated = torch.zeros(CHARACTERS // size, size + 1, dtype=torch.int64)
        hard = repeated[:, :-1], repeated[:, 1:], torch.zeros(len(repeated), dtype=torch.int64)
        for _ in range(3):  # compiles
            step(*without, hard, bf16)
            step(*counting, hard, bf16)
        for _ in range(rounds):
            batch = windows(ids, size)
            runs: dict[str, Callable[[], object]] = {
                "without": lambda b=batch: step(*without, b, bf16),
                "with": lambda b=batch: step(*counting, b, bf16),
                "look-up": lambda b=batch: look_up(ngrams, b),
                "repeated": lambda h=hard: look_up(ngrams, h),
            }
            for name, run in runs.items():
                times.setdefault(name, []).append(milliseconds(run))
        median = {name: statistics.median(values) for name, values in times.items()}
        ratio = median["with"] / median["without"]
        print(
            f"{size:7,}  {median['without']:7.1f}  {median['with']:7.1f}  {ratio:5.2f}  "
            f"{median['look-up']:13.1f}  {median['repeated']:22.1f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--text", type=Path)
    parser.add_argument("--run")
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    if not args.run and not args.text:
        parser.error("give --text, --run or both")
    if args.run:
        compare_generation(args.run, args.rounds)
    if args.text:
        compare_steps(args.text, args.rounds)


if __name__ == "__main__":
    main()
