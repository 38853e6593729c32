"""What this machine can do: its accelerator, precision, compiler, and speed."""

import os
import shutil
import sysconfig
import time
from pathlib import Path
from typing import NamedTuple

import torch

from lightning_app.errors import UserError

# Fitted to measured times of training steps, compiled ones where nothing else is said.
CPU_MATMUL_EFFICIENCY = 0.95  # of the matmul rate that 1536 x 1536 matrices reach
GPU_EFFICIENCY = 0.45  # of the matmul rate that 4096 x 4096 matrices reach, everything included
CPU_ELEMENTWISE_SECONDS = 5e-10  # per FLOP, times width; nearly equal on three CPUs
UNCOMPILED_TIME = 2  # of a step, relative to that of a compiled one


def multiplies_bf16(accelerator: str) -> bool:
    """Whether the hardware has instructions for bfloat16 matrix products.

    Without them a CPU takes about a hundred times as long as with float32.
    """
    if accelerator in ("gpu", "cuda"):
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return accelerator == "cpu" and torch.cpu.get_capabilities().get("avx512_bf16", False)


def choose_precision(accelerator: str) -> str:
    """Lightning's name of the fastest precision with which training is stable on this hardware."""
    if multiplies_bf16(accelerator):
        return "bf16-mixed"
    return "16-mixed" if accelerator == "gpu" else "32-true"


def choose_accelerator(flag: str) -> str:
    """cpu, gpu or mps for the Trainer's flag `accelerator`.

    Raises UserError if it is unknown, or not available on this machine.
    """
    if flag not in ("auto", "cpu", "gpu", "cuda", "mps"):
        raise UserError(f"--trainer.accelerator {flag}: use one of auto, cpu, gpu, cuda, mps")
    if flag in ("cuda", "gpu", "auto") and torch.cuda.is_available():
        return "gpu"
    if flag in ("mps", "gpu", "auto") and torch.backends.mps.is_available():
        return "mps"
    if flag in ("auto", "cpu"):
        return "cpu"
    raise UserError(
        f"--trainer.accelerator {flag}: torch finds no such device here; use auto or cpu"
    )


def can_compile(accelerator: str) -> bool:
    """Whether torch.compile has what it needs: Triton on a GPU, otherwise a C++ compiler and
    Python's header files."""
    if accelerator == "gpu":
        return os.name == "posix"
    compiler = os.environ.get("CXX") or next(
        filter(None, map(shutil.which, ("g++", "clang++", "cl"))), None
    )
    header = Path(sysconfig.get_paths()["include"], "Python.h")
    return compiler is not None and header.exists()


class MatmulSpeed(NamedTuple):
    """The speed of large matrix products.

    flops_per_second: Measured.
    processor_share: The fraction of the CPU's time that this process received meanwhile; below 1
        while other programs compute.
    """

    flops_per_second: float
    processor_share: float


def matmul_speed(accelerator: str, precision: str, seconds: float = 0.2) -> MatmulSpeed:
    """The speed of large matrix products in this precision, measured for `seconds`."""
    device = {"gpu": "cuda"}.get(accelerator, accelerator)
    half = torch.float16 if precision.startswith("16") else torch.bfloat16
    dtype = torch.float32 if precision.startswith("32") else half
    # oneDNN gives bf16 matrices of 1024 to one of two threads where the CPU has AMX.
    size = 4096 if accelerator == "gpu" else 1536
    a = torch.randn(size, size, device=device, dtype=dtype)
    (a @ a).sum().item()  # warm up
    start, cpu_start, n = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - start < seconds:
        (a @ a)[0, 0].item()
        n += 1
    elapsed, cpu_time = time.perf_counter() - start, time.process_time() - cpu_start
    share = cpu_time / (elapsed * torch.get_num_threads()) if accelerator == "cpu" else 1.0
    return MatmulSpeed(n * 2 * size**3 / elapsed, min(share, 1.0))


def seconds_per_flop(accelerator: str, speed: MatmulSpeed, width: int) -> float:
    """An estimate of the time of a compiled training step, divided by its FLOPs (n_embd = `width`).

    On a CPU it is the time of the matrix products, at the measured rate, plus that of element-wise
    operations (norms, activations, dropout). FLOPs per character grow as width squared and
    element-wise operations as width, so the latter's time per FLOP falls as 1 / width. On a GPU one
    factor covers both.
    """
    if accelerator == "cpu":
        elementwise = CPU_ELEMENTWISE_SECONDS / width / speed.processor_share
        return 1 / (CPU_MATMUL_EFFICIENCY * speed.flops_per_second) + elementwise
    return 1 / (GPU_EFFICIENCY * speed.flops_per_second)
