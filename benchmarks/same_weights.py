"""Shows whether two versions of this project train the same weights, bit for bit.

    python benchmarks/same_weights.py > new.txt
    python benchmarks/same_weights.py --project ../before > old.txt
    diff old.txt new.txt

Trains three configs for 200 steps with `main.py fit` of a checkout, compiled and not compiled, and
prints a hash of the trained weights and one of their running average. Use the same machine and
environment for both checkouts, because other kernels add numbers in another order.
"""

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
RECIPES = ("gpt_char", "tiny_shakespeare", "tiny_shakespeare_best")


def weights_hash(weights: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode() + weights[name].contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def train(project: Path, recipe: str, compiled: str, steps: int, data_dir: Path) -> str:
    """Hashes of the raw weights and of the average after `steps` steps."""
    with tempfile.TemporaryDirectory() as folder:
        options = ["fit", "--config", project / "configs" / f"{recipe}.yaml", "--run", "same"]
        options += ["--compile", compiled, "--data.data_dir", data_dir]
        options += ["--trainer.max_steps", steps, "--trainer.val_check_interval", steps]
        options += ["--trainer.limit_val_batches", 2]
        command = [sys.executable, project / "main.py", *options]
        subprocess.run(
            list(map(str, command)),
            cwd=folder,
            check=True,
            stdout=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": str(project)},
        )
        path = Path(folder, "logs/same/checkpoints/last.ckpt")
        state = torch.load(path, map_location="cpu", weights_only=True)
    own = state["lightning_app"]
    raw = state.get("current_model_state") or own.get("raw") or state["state_dict"]
    average = own.get("average") or state["state_dict"]
    return f"{weights_hash(raw)} {weights_hash(average)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--project", type=Path, default=ROOT, help="a checkout (default: this one)")
    parser.add_argument("--steps", type=int, default=200)
    args = parser.parse_args()
    project = args.project.resolve()
    for recipe in RECIPES:
        for compiled in ("true", "false"):
            hashes = train(project, recipe, compiled, args.steps, ROOT / "data")
            print(f"{recipe:20} compiled {compiled:6} {hashes}", flush=True)


if __name__ == "__main__":
    main()
