"""Kills a run at random moments, fills its disk and damages its files; its result must not change.

    python benchmarks/soak.py [--kills 50] [--seed 1]

Each trial starts a run, kills its process group (SIGKILL) at a random moment between the first
import and the last save, and repeats the command until the run is finished. Its weights, optimizer
state, best checkpoint and TensorBoard curves must then equal those of an uninterrupted run bit for
bit; only time and throughput may differ. The run encodes a text of 130 MB, uses dropout, gradient
accumulation, Muon with AdamW, bf16, compiled kernels, a running average of the weights and a window
schedule, and stops early. Every third kill happens in the first seconds.
"""

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from lightning_app.runs.checkpoint import PREVIOUS_NAME, read_checkpoint

FLAGS = [
    *("--data.corpus", "text.txt", "--data.block_size", "32", "--data.batch_size", "8"),
    *("--data.splits", "[0.9999,0.0001]"),
    *("--model.n_layer", "2", "--model.n_head", "2", "--model.n_embd", "32"),
    *("--model.dropout", "0.1", "--optim.average_decay", "0.9", "--compile", "true"),
    *("--optim.weight_decay", "0.1", "--optim.final_weight_decay", "0.5"),
    *("--data.window_schedule", "[[0,0.5],[0.5,1]]", "--trainer.accumulate_grad_batches", "2"),
    *("--trainer.max_steps", "1000", "--trainer.val_check_interval", "20"),
    *("--early_stopping_patience", "3"),
    *("--trainer.gradient_clip_val", "1", "--trainer.precision", "bf16-mixed"),
    *("--checkpoint_every_steps", "7", "--run", "soak"),
]
SPEED = "train/characters_per_second"
START = 6  # seconds: imports, encoding, compiling


def start(folder: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, str(ROOT / "main.py"), "fit", *FLAGS],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(folder: Path) -> str:
    """Run to the end and return what was written to standard error; exit if the run fails."""
    process = start(folder)
    said = process.communicate()[1]
    if process.returncode != 0:
        raise SystemExit(f"the run failed with {process.returncode}: {said[-2000:]}")
    return said


def make_folder(folder: Path) -> Path:
    """Create a run's folder with its text. All have one name, because checkpoints contain paths."""
    folder.mkdir(exist_ok=True)
    text = folder.with_name("text.txt")
    if not text.exists():
        words = random.Random(0).choices(["wind", "sea", "the", "salt", "and", "gull"], k=30_000)
        text.write_text((" ".join(words) + "\n") * 1000)
    (folder / "text.txt").symlink_to(text)
    return folder


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def differences(one: Path, other: Path) -> list[str]:
    """The names of the parts of two finished runs' checkpoints, and of the curves, that differ."""
    found = []
    for name in ("last", "best"):
        states = [read_checkpoint(x / f"logs/soak/checkpoints/{name}.ckpt") for x in (one, other)]
        for part in states[0].keys() | states[1].keys():
            if not same(states[0].get(part), states[1].get(part)):
                found.append(f"{name}.ckpt: {part}")
    boards = []
    for folder in (one, other):
        board = EventAccumulator(str(folder / "logs" / "soak"), size_guidance={"scalars": 0})
        board.Reload()
        tags = [tag for tag in board.Tags()["scalars"] if tag != SPEED]
        boards.append({tag: [(x.step, x.value) for x in board.Scalars(tag)] for tag in tags})
    for tag in boards[0].keys() | boards[1].keys():
        if boards[0].get(tag) != boards[1].get(tag):
            found.append(f"curve {tag}")
    return sorted(found)


def kill_and_resume(whole: Path, scratch: Path, kills: int, longest: float, rng) -> None:
    killed = trials = exact = 0
    while killed < kills:
        folder = make_folder(scratch / "run")
        trials += 1
        for _ in range(kills - killed):
            process = start(folder)
            try:
                process.wait(rng.uniform(0, longest if killed % 3 else START))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                killed += 1
                print(f"\rkilled {killed} of {kills}", end="", file=sys.stderr, flush=True)
                continue
            break  # it finished
        finish(folder)
        different = differences(whole, folder)
        exact += not different
        for line in different:
            print(f"trial {trials}: {line} differs")
        shutil.rmtree(folder)
    print(
        f"\r{killed} kills in {trials} runs: {exact} of {trials} runs equal the"
        " uninterrupted one bit for bit"
    )


def damage(whole: Path, scratch: Path, rng) -> None:
    """Damage or remove last.ckpt: the run resumes from previous.ckpt and ends the same."""
    exact = 0
    kinds = ("cut", "flipped", "emptied", "removed")
    for kind in kinds:
        folder = make_folder(scratch / "run")
        process = start(folder)
        last = folder / "logs/soak/checkpoints/last.ckpt"
        while not last.with_name(PREVIOUS_NAME).exists() and process.poll() is None:
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        data = bytearray(last.read_bytes())
        if kind == "flipped":
            data[len(data) // 2] ^= 1 << rng.randrange(8)
        last.write_bytes(data[: {"cut": len(data) // 2, "emptied": 0}.get(kind, len(data))])
        if kind == "removed":
            last.unlink()
        said = finish(folder)
        assert PREVIOUS_NAME in said, said
        exact += not differences(whole, folder)
        shutil.rmtree(folder)
    print(f"last.ckpt damaged in {len(kinds)} ways: {exact} runs equal the uninterrupted one")


def full_disk(whole: Path, scratch: Path) -> None:
    """Fill a disk of 200 MB while the run saves to it; needs the right to mount a file system."""
    disk = scratch / "run"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=200m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        print("full disk: not tested, because mounting a file system is not allowed here")
        return
    try:
        folder = make_folder(disk)
        process = start(folder)
        last = folder / "logs/soak/checkpoints/last.ckpt"
        while not last.exists() and process.poll() is None:
            time.sleep(0.01)
        filler = disk / "filler"
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(1 << 12))
        said = process.communicate()[1]
        line = said.strip().split("\n")[-1]
        assert process.returncode == 2, said
        read_checkpoint(last)
        filler.unlink()
        finish(folder)
        same_end = not differences(whole, folder)
        print(
            f"disk filled: exit code 2, {line!r}; last.ckpt whole; resumed "
            f"{'bit for bit' if same_end else 'NOT the same'}"
        )
    finally:
        subprocess.run(["umount", "-l", str(disk)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        for name in ("warm", "whole"):  # the first fills the compile cache
            began = time.perf_counter()
            finish(make_folder(scratch / "run"))
            longest = time.perf_counter() - began
            whole = (scratch / "run").rename(scratch / name)
        print(f"an uninterrupted run takes {longest:.1f} s")
        kill_and_resume(whole, scratch, args.kills, longest, rng)
        damage(whole, scratch, rng)
        full_disk(whole, scratch)


if __name__ == "__main__":
    main()
