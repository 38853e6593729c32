"""Training speed while other programs compute, with three ways for threads to wait for each other.

    python benchmarks/busy.py --text FILE [--rounds 3] [--steps 36]

`fit` runs with gpt_char beside 0, 1, ... programs that each keep a processor busy, as many as there
are processors. OpenMP's threads wait in a loop for milliseconds (its default), or for 50
microseconds and then sleep (what `fit` sets), or sleep at once. The three take turns. FILE is any
text of about a megabyte.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ROOT = Path(__file__).resolve().parent.parent
WAITING = {
    "default": {"GOMP_SPINCOUNT": "300000"},
    "briefly": {"GOMP_SPINCOUNT": "1000"},
    "asleep": {"OMP_WAIT_POLICY": "PASSIVE"},
}


def training(text: Path, folder: Path, waiting: str, steps: int) -> tuple[float, str]:
    """Characters per second in the second half of a run, and the share of the processors that
    other programs use, as `fit` says it."""
    flags = {"data.corpus": text, "fresh": "true", "run": "busy", "compile": "true"}
    flags |= {f"trainer.{name}": steps for name in ("max_steps", "val_check_interval")}
    flags |= {"trainer.limit_val_batches": 1, "trainer.log_every_n_steps": steps // 6}
    command = [sys.executable, str(ROOT / "main.py"), "fit", "--config", "gpt_char"]
    command += [f"--{name}={value}" for name, value in flags.items()]
    environment = os.environ | WAITING[waiting]
    done = subprocess.run(
        command, cwd=folder, check=True, capture_output=True, text=True, env=environment
    )
    board = EventAccumulator(str(folder / "logs" / "busy"))
    board.Reload()
    speeds = [x.value for x in board.Scalars("train/characters_per_second")]
    busy = re.search(r"other programs use (\S+)", done.stderr)
    return statistics.median(speeds[len(speeds) // 2 :]), busy[1] if busy else "less than 25%"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=36)
    args = parser.parse_args()
    text = args.text.resolve()
    alone = None
    for others in range((os.cpu_count() or 1) + 1):
        programs = [
            subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(others)
        ]
        try:
            with tempfile.TemporaryDirectory() as folder:
                results: dict[str, list[tuple[float, str]]] = {waiting: [] for waiting in WAITING}
                for _ in range(args.rounds):
                    for waiting, found in results.items():
                        found.append(training(text, Path(folder), waiting, args.steps))
        finally:
            for program in programs:
                program.kill()
        for waiting, found in results.items():
            speed = statistics.median(s for s, _ in found)
            alone = alone or speed
            print(
                f"{others} other programs  {waiting:7}  {speed:7,.0f} characters/s  "
                f"{speed / alone:.2f}  ({' '.join(f'{s:,.0f}' for s, _ in found)}; others: "
                f"{', '.join(b for _, b in found)})",
                flush=True,
            )


if __name__ == "__main__":
    main()
