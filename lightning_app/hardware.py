"""What this machine has: the precision that suits it, a compiler, how fast it multiplies."""

import os
import shutil
import sysconfig
import time
from pathlib import Path

import torch

from lightning_app.errors import UserError


def multiplies_bf16(accelerator: str) -> bool:
    """Whether the hardware multiplies bfloat16 itself. Emulated on a CPU, a product takes a hundred
    times as long as in float32."""
    if accelerator in ("gpu", "cuda"):
        return torch.cuda.is_bf16_supported(including_emulation=False)
    cpu = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return accelerator == "cpu" and cpu()


def choose_precision(accelerator: str) -> str:
    """Lightning's name of the fastest precision that trains safely on the hardware."""
    if multiplies_bf16(accelerator):
        return "bf16-mixed"
    return "16-mixed" if accelerator == "gpu" else "32-true"


def choose_accelerator(flag: str) -> str:
    """cpu, gpu or mps for the Trainer's `accelerator` flag. Raises UserError for one that is not
    known, or not here."""
    if flag not in ("auto", "cpu", "gpu", "cuda", "mps"):
        raise UserError(f"--trainer.accelerator {flag} is none of auto, cpu, gpu, cuda, mps")
    if flag in ("cuda", "gpu", "auto") and torch.cuda.is_available():
        return "gpu"
    if flag in ("mps", "gpu", "auto") and torch.backends.mps.is_available():
        return "mps"
    if flag in ("auto", "cpu"):
        return "cpu"
    raise UserError(f"--trainer.accelerator {flag}: torch finds none here; use auto or cpu")


def can_compile(accelerator: str) -> bool:
    """Whether torch.compile finds what it needs: Triton for a GPU, else a C++ compiler and the
    headers of Python."""
    if accelerator == "gpu":
        return os.name == "posix"
    compiler = os.environ.get("CXX") or next(
        filter(None, map(shutil.which, ("g++", "clang++", "cl"))), None
    )
    header = Path(sysconfig.get_paths()["include"], "Python.h")
    return compiler is not None and header.exists()


def matmul_flops_per_second(accelerator: str, precision: str, seconds: float = 0.2) -> float:
    """Measured FLOP/s of a matrix product in this precision."""
    device = {"gpu": "cuda"}.get(accelerator, accelerator)
    half = torch.float16 if precision.startswith("16") else torch.bfloat16
    dtype = torch.float32 if precision.startswith("32") else half
    size = 4096 if accelerator == "gpu" else 1024
    a = torch.randn(size, size, device=device, dtype=dtype)
    (a @ a).sum().item()  # warm up
    began, n = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        (a @ a)[0, 0].item()
        n += 1
    return n * 2 * size**3 / (time.perf_counter() - began)


def seconds_per_flop(accelerator: str, precision: str, width: int) -> float:
    """About how long a FLOP of compiled training takes, everything of a step included.

    On a CPU that is the product's share and that of the element-wise work, of which there is the
    less the wider the network is, and which took about as long on three different ones.
    """
    rate = matmul_flops_per_second(accelerator, precision)
    if accelerator == "cpu":
        return 1 / (0.95 * rate) + 5e-10 / width
    return 1 / (0.45 * rate)
