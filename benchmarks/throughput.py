"""Training speed compared with nanoGPT's, with equal parameters, block size and batch size.

    python benchmarks/throughput.py --nanogpt FOLDER --text FILE [--rounds 3]

FOLDER is a checkout of github.com/karpathy/nanoGPT, FILE any text of about a megabyte. nanoGPT's
train.py runs unchanged (on a CPU: float32, compiled); on CPUs with bf16 it also runs with autocast,
compiled and not compiled. Ours is `fit` with its defaults (bf16 if the CPU has it, compiled, Muon),
and with nanoGPT's optimizer, AdamW. Optimizer steps, gradient clipping and logging are included.
The programs take turns, so that a machine whose speed changes affects all of them.
"""

import argparse
import pickle
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from lightning_app.hardware import choose_precision, matmul_speed, multiplies_bf16
from lightning_app.model.gpt import GPTConfig

SHAPES = {  # ours has the MLP that gives the same number of parameters
    "10.6 M": {"n_layer": 6, "n_head": 6, "n_embd": 384, "mlp_size": 1024}
    | {"block_size": 256, "batch_size": 64, "steps": 6},
    "0.8 M": {"n_layer": 4, "n_head": 4, "n_embd": 128, "mlp_size": 344}
    | {"block_size": 64, "batch_size": 12, "steps": 400},
}
CPU_CONTEXT = "nullcontext() if device_type == 'cpu' else "  # in nanoGPT's train.py


def prepare(nanogpt: Path, text: str, folder: Path) -> None:
    """Copy nanoGPT's code to `folder`, add a train_bf16.py, and encode the text."""
    for name in ("train.py", "model.py", "configurator.py"):
        shutil.copy(nanogpt / name, folder)
    code = (folder / "train.py").read_text()
    assert CPU_CONTEXT in code, "this version of nanoGPT's train.py is not supported"
    (folder / "train_bf16.py").write_text(code.replace(CPU_CONTEXT, ""))
    alphabet = sorted(set(text))
    of = {c: i for i, c in enumerate(alphabet)}
    ids = np.array([of[c] for c in text], dtype=np.uint16)
    data = folder / "data" / "text"
    data.mkdir(parents=True)
    ids[: int(0.9 * len(ids))].tofile(data / "train.bin")
    ids[int(0.9 * len(ids)) :].tofile(data / "val.bin")
    meta = {"vocab_size": len(alphabet), "itos": dict(enumerate(alphabet)), "stoi": of}
    (data / "meta.pkl").write_bytes(pickle.dumps(meta))


def nanogpt_speed(folder: Path, script: str, shape: dict, compile: bool) -> float:
    """Characters per second, from the median time of the steps in the second half of the run."""
    flags = {k: shape[k] for k in ("n_layer", "n_head", "n_embd", "block_size", "batch_size")}
    flags |= {"device": "cpu", "dtype": "bfloat16", "dataset": "text", "compile": compile}
    flags |= {"gradient_accumulation_steps": 1, "eval_iters": 1, "log_interval": 1}
    flags |= {"always_save_checkpoint": False, "max_iters": shape["steps"], "dropout": 0.0}
    command = [sys.executable, script, *(f"--{k}={v}" for k, v in flags.items())]
    out = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout
    times = [float(t) for t in re.findall(r"^iter \d+: .*time ([\d.]+)ms", out, re.M)]
    step = statistics.median(times[len(times) // 2 :]) / 1000
    return shape["batch_size"] * shape["block_size"] / step


def our_speed(text: Path, shape: dict, folder: Path, optimizer: str) -> float:
    """Characters per second, the median of the second half of what TensorBoard shows."""
    flags = {f"model.{k}": shape[k] for k in ("n_layer", "n_head", "n_embd", "mlp_size")}
    flags |= {f"data.{k}": shape[k] for k in ("block_size", "batch_size")}
    flags |= {"data.corpus": text, "data.splits": "[0.9,0.1]", "data.data_dir": folder / "data"}
    flags |= {
        "optim.name": optimizer,
        "data.window_schedule": "[[0,1]]",
        "compile": "true",
        "fresh": "true",
    }
    flags |= {f"trainer.{k}": shape["steps"] for k in ("max_steps", "val_check_interval")}
    flags |= {"trainer.limit_val_batches": 1, "run": "throughput"}
    flags |= {"trainer.log_every_n_steps": shape["steps"] // 6}
    command = [sys.executable, str(ROOT / "main.py"), "fit"]
    command += [f"--{k}={v}" for k, v in flags.items()]
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    board = EventAccumulator(str(folder / "logs" / "throughput"))
    board.Reload()
    speeds = [x.value for x in board.Scalars("train/characters_per_second")]
    return statistics.median(speeds[len(speeds) // 2 :])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--nanogpt", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    args = parser.parse_args()
    text = args.text.resolve()
    precision = choose_precision("cpu")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prepare(args.nanogpt, text.read_text(encoding="utf-8"), folder)
        for name in args.shapes:
            shape = SHAPES[name]
            runs = {
                "ours": lambda s=shape: our_speed(text, s, folder, "muon"),
                "ours, AdamW": lambda s=shape: our_speed(text, s, folder, "adamw"),
                "nanoGPT as it is": lambda s=shape: nanogpt_speed(folder, "train.py", s, True),
            }
            if multiplies_bf16("cpu"):
                for kind, compiled in (("bf16, compiled", True), ("bf16, eager", False)):
                    runs[kind] = lambda s=shape, c=compiled: nanogpt_speed(
                        folder, "train_bf16.py", s, c
                    )
            speeds: dict[str, list[float]] = {kind: [] for kind in runs}
            rates = []
            for _ in range(args.rounds):
                rates.append(matmul_speed("cpu", precision, seconds=1.0).flops_per_second)
                for kind, run in runs.items():
                    speeds[kind].append(run())
            medians = {kind: statistics.median(values) for kind, values in speeds.items()}
            for kind, values in speeds.items():
                ratio = medians["ours"] / medians[kind]
                rounds = " ".join(f"{v:,.0f}" for v in values)
                print(
                    f"{name}  {kind:17} {medians[kind]:8,.0f} characters/s  ours is {ratio:.2f}x"
                    f"  ({rounds})",
                    flush=True,
                )
            sizes = ("block_size", "n_layer", "n_head", "n_embd", "mlp_size")
            flops = GPTConfig(65, **{k: shape[k] for k in sizes}).flops_per_character()
            rate = statistics.median(rates)
            print(
                f"{name}  model FLOPs: {medians['ours'] * flops / rate:.0%} of the measured product"
                f" rate in {precision}, {rate / 1e9:.0f} GFLOP/s",
                flush=True,
            )


if __name__ == "__main__":
    main()
