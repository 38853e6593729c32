"""Speed of generation, compared with llama2.c and transformers, on networks of random weights.

    python benchmarks/generation.py [--llama2c FOLDER] [--rounds 5]

FOLDER is a checkout of github.com/karpathy/llama2.c, whose run.c is compiled here with gcc -Ofast
and OpenMP, with and without -march=native. Measures characters per second in a context of 256,
sampled (temperature 0.8, top_p 0.9) after a prompt of one character, first for one text, then for
64 at once. Each program runs once before it is timed, our first 16 characters are not timed, and
the programs take turns, so that a machine whose speed changes affects all of them.
"""

import argparse
import os
import re
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor
from functools import cache
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import get_args

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ["HF_HUB_OFFLINE"] = "1"

from lightning_app.export.transformers import export_transformers
from lightning_app.generation.cpu_engine import WeightFormat
from lightning_app.generation.generate import CHARACTERS_PER_CALL, generate_ids, sample_rng
from lightning_app.generation.sampling import GenerateOptions
from lightning_app.hardware import choose_precision, matmul_speed
from lightning_app.model.gpt import GPT, GPTConfig

BLOCK = 256
ALPHABET = "".join(chr(0x20 + i) for i in range(65))
SHAPES = {
    "10.6 M": {"n_layer": 6, "n_head": 6, "n_embd": 384, "mlp_size": 1024},
    "1.8 M": {"n_layer": 4, "n_head": 2, "n_embd": 192, "mlp_size": 512},
}
OPTIONS = GenerateOptions(sampling="top_p", top_p=0.9, temperature=0.8, max_new_tokens=BLOCK - 1)


def make_network(shape: dict) -> GPT:
    torch.manual_seed(0)
    gpt = GPT(GPTConfig(vocab_size=len(ALPHABET), block_size=BLOCK, **shape)).eval()
    for p in gpt.parameters():
        if p.ndim == 2:
            torch.nn.init.normal_(p, std=p.size(1) ** -0.5)
    return gpt


def our_generation(gpt: GPT, weights: str, texts: int = 1) -> Callable[[], float]:
    """Characters per second, without the first ones, during which weights are packed."""
    options = OPTIONS.resolve()

    def speed() -> float:
        rngs = [sample_rng(1, 0, i) for i in range(texts)]
        steps = generate_ids(gpt, [[33]] * texts, rngs, options, weights=weights)
        for _ in range(CHARACTERS_PER_CALL):
            next(steps)
        began = time.perf_counter()
        n = sum(len(ids) for ids in islice(steps, BLOCK - 1 - CHARACTERS_PER_CALL))
        return n / (time.perf_counter() - began)

    return speed


@cache
def load_transformers(folder: Path):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder)


@torch.no_grad()
def transformers_speed(folder: Path, texts: int) -> float:
    model = load_transformers(folder)
    prompt = torch.full((texts, 1), 33)
    new = BLOCK - 1
    began = time.perf_counter()
    out = model.generate(
        prompt, do_sample=True, temperature=0.8, top_p=0.9, top_k=0, max_new_tokens=new,
        min_new_tokens=new,
    )  # fmt: skip
    return out[:, 1:].numel() / (time.perf_counter() - began)


def transformers_generation(
    pool: Executor, gpt: GPT, folder: Path, texts: int = 1
) -> Callable[[], float]:
    """Characters per second of transformers, in a process of its own, as llama2.c has one."""
    if not folder.exists():
        export_transformers(gpt, ALPHABET, folder)
    return lambda: pool.submit(transformers_speed, folder, texts).result()


def llama2c_generation(source: Path, shape: dict, folder: Path, *flags: str) -> Callable[[], float]:
    """Characters per second as run.c reports them, for random weights in its own file format."""
    program = folder / "-".join(["run", *flags])
    command = ["gcc", "-Ofast", "-fopenmp", *flags, "-o", program, source / "run.c", "-lm"]
    subprocess.run(command, check=True)
    d, hidden = shape["n_embd"], shape["mlp_size"]
    layers, heads, v = shape["n_layer"], shape["n_head"], len(ALPHABET)
    rng = np.random.default_rng(0)
    sizes = [v * d, layers * d, *[layers * d * d] * 4, layers * d, *[layers * d * hidden] * 3, d]
    model = folder / f"{d}.bin"
    with model.open("wb") as file:
        file.write(struct.pack("7i", d, hidden, layers, heads, heads, -v, BLOCK))
        for size in sizes:
            file.write((rng.standard_normal(size) * d**-0.5).astype(np.float32).tobytes())
        file.write(bytes(BLOCK * (d // heads) * 4))  # tables of rotary positions, which run.c skips
        head = rng.standard_normal((v, d)).astype(np.float32) * 30
        head[1] = 0  # token 1 would end the text
        file.write(head.tobytes())
    tokens = folder / "tokens.bin"
    with tokens.open("wb") as file:
        file.write(struct.pack("i", 1))
        for c in ALPHABET:
            file.write(struct.pack("fi", 0.0, 1) + c.encode())

    def speed() -> float:
        command = [program, model, "-z", tokens, "-t", "0.8", "-p", "0.9", "-n", str(BLOCK)]
        done = subprocess.run(
            list(map(str, command)), capture_output=True, text=True, check=True, errors="replace"
        )
        return float(re.search(r"achieved tok/s: ([\d.]+)", done.stderr)[1])

    return speed


def compare_speeds(
    title: str, runs: dict[str, Callable[[], float]], rounds: int
) -> dict[str, float]:
    """Measure in turns, print the median and the range of each, and return the medians."""
    for run in runs.values():
        run()  # warm up
    speeds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            speeds[name].append(run())
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    for name, values in speeds.items():
        spread = f"{min(values):,.0f} to {max(values):,.0f}"
        print(f"{title:14} {name:16} {medians[name]:9,.0f} characters/s  ({spread})", flush=True)
    return medians


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--llama2c", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    apart = ProcessPoolExecutor(1, get_context("spawn"))
    with apart as pool, tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name, shape in SHAPES.items():
            gpt = make_network(shape)
            parameters = sum(p.numel() for p in gpt.parameters())
            one = {weights: our_generation(gpt, weights) for weights in get_args(WeightFormat)}
            one["transformers"] = transformers_generation(pool, gpt, folder / name)
            if args.llama2c:
                one["llama2.c"] = llama2c_generation(args.llama2c, shape, folder)
                one["llama2.c native"] = llama2c_generation(
                    args.llama2c, shape, folder, "-march=native"
                )
            compare_speeds(f"{name}, one", one, args.rounds)
            precision = choose_precision("cpu")
            rate = matmul_speed("cpu", precision, seconds=1.0).flops_per_second
            many = {weights: our_generation(gpt, weights, 64) for weights in get_args(WeightFormat)}
            many["transformers"] = transformers_generation(pool, gpt, folder / name, 64)
            medians = compare_speeds(f"{name}, 64", many, min(3, args.rounds))
            for weights in get_args(WeightFormat):
                share = medians[weights] * 2 * parameters / rate
                print(
                    f"{name}, 64     {weights} is at {share:.0%} of {rate / 1e9:.0f} GFLOP/s "
                    f"({precision})"
                )


if __name__ == "__main__":
    main()
