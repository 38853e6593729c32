"""A plot of the loss on tiny Shakespeare by training time: nanoGPT's recipe for CPUs, and ours.

    python benchmarks/race.py --nanogpt FOLDER --to .github/race.png

FOLDER is a checkout of github.com/karpathy/nanoGPT. Its recipe is the README's for a laptop: 4
layers of width 128, block size 64, batch size 12, 2,000 steps. Only training steps are timed, not
compilation and validation. nanoGPT's losses are means of 200 random batches, ours are exact.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from throughput import prepare
from train import SAMPLED

from lightning_app.data.corpora import find_corpus

ROOT = Path(__file__).resolve().parent.parent
A100 = 1.4697  # nanoGPT's README, after three minutes
Curve = list[tuple[float, float]]  # seconds, nats per character


def nanogpt_curve(checkout: Path) -> Curve:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        text = find_corpus("tiny_shakespeare").files[0].read_text(encoding="utf-8")
        prepare(checkout, text, folder)
        flags = {"n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 64, "batch_size": 12}
        flags |= {"device": "cpu", "compile": True, "dataset": "text", "dropout": 0.0}
        flags |= {"max_iters": 2000, "lr_decay_iters": 2000, "eval_interval": 250}
        flags |= {"eval_iters": 200, "log_interval": 1, "gradient_accumulation_steps": 1}
        flags |= {"learning_rate": 1e-3, "min_lr": 1e-4, "beta2": 0.99, "warmup_iters": 100}
        command = [sys.executable, "train.py", *(f"--{k}={v}" for k, v in flags.items())]
        said = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    curve, seconds, compiled = [], 0.0, False
    for line in said.stdout.split("\n"):
        if found := re.match(r"step \d+: train loss [\d.]+, val loss ([\d.]+)", line):
            curve.append((seconds, float(found[1])))
            compiled = False  # the next step's time includes the validation
        elif found := re.match(r"iter \d+: loss [\d.]+, time ([\d.]+)ms", line):
            if compiled:
                seconds += float(found[1]) / 1000
            compiled = True
    return curve


def our_curve() -> Curve:
    fit = ["fit", "--config", "tiny_shakespeare", "--run", "race", "--fresh", "true"]
    fit += ["--trainer.val_check_interval", "170", "--trainer.log_every_n_steps", "10"]
    subprocess.run([sys.executable, str(ROOT / "main.py"), *fit], check=True)
    board = EventAccumulator("logs/race", size_guidance={"scalars": 0})
    board.Reload()
    per_step = 8 * 256
    seconds, at = 0.0, {0: 0.0}
    speeds = [(x.step, x.value) for x in board.Scalars(SAMPLED)]
    for (before, _), (step, speed) in zip([(0, 0.0), *speeds], speeds, strict=False):
        seconds += (step - before) * per_step / speed
        at[step] = seconds
    return [(at[x.step], x.value) for x in board.Scalars("val/loss")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--nanogpt", type=Path, required=True)
    parser.add_argument("--to", type=Path, required=True)
    args = parser.parse_args()
    curves = {"nanoGPT, its recipe for CPUs": nanogpt_curve(args.nanogpt), "ours": our_curve()}
    figure, axes = plt.subplots(figsize=(7, 4), dpi=120)
    for name, curve in curves.items():
        print(name, " ".join(f"{seconds:.0f}s:{loss:.4f}" for seconds, loss in curve))
        axes.plot(*zip(*curve, strict=True), marker="o", markersize=3, label=name)
    axes.axhline(A100, color="grey", linestyle="--", linewidth=1)
    label = "nanoGPT after three minutes on an A100"
    right = axes.get_yaxis_transform()  # x in parts of the width
    axes.text(0.99, A100 + 0.01, label, color="grey", ha="right", va="bottom", transform=right)
    axes.set(xlabel="seconds of training steps, two CPU cores", ylabel="nats per character")
    axes.set(ylim=(1.3, 2.6), xlim=(0, None), title="tiny Shakespeare, validation")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(args.to)


if __name__ == "__main__":
    main()
