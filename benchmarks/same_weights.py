"""Do two versions of this project train the same weights, bit for bit, and equally fast?

    python benchmarks/same_weights.py --projects ../before . [--rounds 3]

Each checkout trains 200 steps of three recipes with `main.py fit`, compiled and not, the checkouts
taking turns. Printed are a hash of the trained weights, one of their running average, and the
median speed between two logs; then the speed of the last checkout relative to the first. Run all
in one environment and on one machine: other kernels add numbers in another order.
"""

import argparse
import hashlib
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ROOT = Path(__file__).resolve().parent.parent
RECIPES = ("gpt_char", "tiny_shakespeare", "tiny_shakespeare_best")


def weights_hash(weights: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode() + weights[name].contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def train(project: Path, recipe: str, compiled: str, steps: int) -> tuple[str, str, float]:
    """Hashes of the raw weights and of the average, and characters per second (median)."""
    with tempfile.TemporaryDirectory() as folder:
        options = ["fit", "--config", project / "configs" / f"{recipe}.yaml", "--run", "same"]
        options += ["--compile", compiled, "--data.data_dir", ROOT / "data"]
        options += ["--trainer.max_steps", steps, "--trainer.val_check_interval", steps]
        options += ["--trainer.limit_val_batches", 2]
        subprocess.run(
            list(map(str, [sys.executable, project / "main.py", *options])),
            cwd=folder,
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": str(project)},
        )
        run = Path(folder, "logs/same")
        path = run / "checkpoints/last.ckpt"
        state = torch.load(path, map_location="cpu", weights_only=True)
        board = EventAccumulator(str(run))
        board.Reload()
        speeds = [event.value for event in board.Scalars("train/characters_per_second")]
    own = state["lightning_app"]  # version 0.1 has both kinds of weights in it
    raw = state.get("current_model_state") or own.get("raw") or state["state_dict"]
    average = own.get("average") or state["state_dict"]
    return weights_hash(raw), weights_hash(average), statistics.median(speeds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--projects", type=Path, nargs="+", default=[ROOT], help="checkouts")
    parser.add_argument("--recipes", nargs="+", default=RECIPES)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=1)
    args = parser.parse_args()
    projects = [project.resolve() for project in args.projects]
    for recipe in args.recipes:
        for compiled in ("true", "false"):
            ratios = []
            for _ in range(args.rounds):
                results = [train(p, recipe, compiled, args.steps) for p in projects]
                for project, (raw, average, speed) in zip(projects, results, strict=True):
                    line = f"{recipe:22} compiled {compiled:6} {raw} {average} {speed:8,.0f}/s"
                    print(line, project.name, flush=True)
                ratios.append(results[-1][2] / results[0][2])
            print(f"{'':22} speed, last to first: {statistics.median(ratios):.3f}", flush=True)


if __name__ == "__main__":
    main()
