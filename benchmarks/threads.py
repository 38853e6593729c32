"""Generation with one thread, with all, and with the measured number, while other programs compute.

    python benchmarks/threads.py [--rounds 3] [--characters 1024] [--network "1.8 M"]

One text by networks of random weights in a context of 256, alone and beside 1, 2, ... programs
that each keep a processor busy, as many as there are processors. Prefill is included: it happens
every 128 characters. The settings take turns, each with an engine that has generated before, as in
`predict` on a terminal; "new" is a new engine, as in a single `predict`.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from generation import OPTIONS, SHAPES, make_network

from lightning_app.generation.cpu_engine import CPUEngine
from lightning_app.generation.generate import generate_compiled, sample_rng


def characters_per_second(engine: CPUEngine, characters: int) -> float:
    steps = generate_compiled(engine, [[33]], [sample_rng(1, 0, 0)], OPTIONS.resolve())
    began = time.perf_counter()
    n = sum(1 for _ in islice(steps, characters))
    return n / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--network", choices=SHAPES, action="append")
    parser.add_argument("--characters", type=int, default=1024)
    args = parser.parse_args()
    processors = os.cpu_count() or 1
    settings = {"1": 1, str(processors): processors, "measured": None}
    for name in args.network or SHAPES:
        gpt = make_network(SHAPES[name])
        for others in range(processors + 1):
            programs = [
                subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(others)
            ]
            try:
                engines = {k: CPUEngine(gpt, 1, threads=n) for k, n in settings.items()}
                for engine in engines.values():
                    characters_per_second(engine, 64)  # loads compiled code
                speeds: dict[str, list[float]] = {k: [] for k in [*engines, "measured, new"]}
                for _ in range(args.rounds):
                    for setting, found in speeds.items():
                        engine = engines.get(setting) or CPUEngine(gpt, 1)
                        found.append(characters_per_second(engine, args.characters))
            finally:
                for program in programs:
                    program.kill()
            best = max(statistics.median(found) for found in speeds.values())
            for setting, found in speeds.items():
                median = statistics.median(found)
                print(
                    f"{name:7} {others} other programs  {setting:13} threads  {median:8,.0f} "
                    f"characters/s  {median / best:.2f} of the best  "
                    f"({min(found):,.0f} to {max(found):,.0f})",
                    flush=True,
                )


if __name__ == "__main__":
    main()
