"""Trains a config with several seeds and prints losses, times and the machine's speed.

    python benchmarks/train.py tiny_shakespeare --seeds 1 2 3 [--trainer.max_steps 100 ...]

Each row: the seed, the machine's measured rate of matrix products (in bf16 if it has that), seconds
from the start of the process to the end of `fit`, how many of these were training steps, the best
val/loss, and for tiny Shakespeare the loss as nanoGPT computes it (see `nanogpt_figure`). With
--keep, finished runs are scored and not trained again, and interrupted runs are resumed.
"""

import argparse
import math
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from lightning_app.data.corpora import find_corpus
from lightning_app.data.encoding import encode_files
from lightning_app.hardware import choose_accelerator, choose_precision, matmul_speed
from lightning_app.model.gpt import loss_per_character
from lightning_app.runs.checkpoint import SECTION, load, read_checkpoint

SAMPLED = "train/characters_per_second"


@torch.no_grad()
def nanogpt_figure(path: Path) -> float:
    """The exact value of the loss that nanoGPT estimates from random windows, in float32.

    The mean over consecutive whole windows of 256 characters (or the network's block size, if that
    is smaller) in the validation split, whose first character is not scored. NaN for other corpora
    than tiny_shakespeare.
    """
    trained = load(path)
    data = trained.data
    if data["corpus"] != "tiny_shakespeare":
        return math.nan
    block_size = min(256, trained.gpt.config.block_size)
    where = Path(data["data_dir"])
    text = encode_files(find_corpus(data["corpus"], where).files, where / "cache")
    first = int(len(text.ids) * data["splits"][0])
    ids = torch.from_numpy(np.array(text.ids[first:], dtype=np.int64))
    n = (len(ids) - 1) // block_size
    x = ids[: n * block_size].view(n, block_size)
    y = ids[1 : n * block_size + 1].view(n, block_size)
    pairs = zip(x.split(16), y.split(16), strict=True)
    losses = [loss_per_character(trained.gpt(a), b) for a, b in pairs]
    return float(torch.cat(losses).double().mean())


def training_seconds(run: Path) -> float:
    """Seconds of training steps, from the speeds logged; without compilation and validation."""
    board = EventAccumulator(str(run))
    board.Reload()
    config = read_checkpoint(run / "checkpoints" / "last.ckpt")[SECTION]
    speeds = board.Scalars(SAMPLED)[1:]  # the first interval compiles
    per_step = config["global_batch"] * config["block_size"]
    seconds = [
        (b.step - a.step) * per_step / b.value
        for a, b in zip(board.Scalars(SAMPLED), speeds, strict=False)
    ]
    return sum(seconds) * config["step"] / (config["step"] - board.Scalars(SAMPLED)[0].step)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("config")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--keep", action="store_true", help="resume earlier runs of these seeds")
    args, overrides = parser.parse_known_args()  # other options are passed on to fit
    accelerator = choose_accelerator("auto")
    precision = choose_precision(accelerator)
    print(f"{accelerator}, {precision}")
    print("seed  GFLOP/s  seconds  in steps  val/loss  nanoGPT's figure")
    figures = []
    for seed in args.seeds:
        rate = matmul_speed(accelerator, precision, seconds=1.0).flops_per_second / 1e9
        run = f"bench_{Path(args.config).stem}_{seed}"
        command = [sys.executable, str(ROOT / "main.py"), "fit", "--config", args.config]
        command += ["--run", run, "--seed_everything", str(seed)]
        command += [] if args.keep else ["--fresh", "true"]
        began = time.perf_counter()
        subprocess.run([*command, *overrides], check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - began
        folder = Path("logs") / run
        best = folder / "checkpoints" / "best.ckpt"
        figure = nanogpt_figure(best)
        figures.append(figure)
        loss = read_checkpoint(best)[SECTION]["val_loss"]
        print(
            f"{seed:4}  {rate:7.0f}  {seconds:7.1f}  {training_seconds(folder):8.1f}  "
            f"{loss:8.4f}  {figure:8.4f}",
            flush=True,
        )
    print(f"median of nanoGPT's figure: {statistics.median(figures):.4f}")


if __name__ == "__main__":
    main()
