"""Laws of what the hardware can do and what is chosen for it."""

import itertools
import platform
import shutil
import sys
from pathlib import Path

import pytest
import torch

from lightning_app import hardware
from lightning_app.errors import UserError
from lightning_app.hardware import (
    MatmulSpeed,
    can_compile,
    choose_accelerator,
    choose_precision,
    matmul_speed,
    multiplies_bf16,
    seconds_per_flop,
)

X86_LINUX = sys.platform == "linux" and platform.machine() == "x86_64"


def set_devices(monkeypatch, cuda: bool, mps: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


# Bfloat16. If an upgrade of torch moved what multiplies_bf16 uses, training would be in float32.


@pytest.mark.skipif(not X86_LINUX, reason="reads /proc/cpuinfo of x86")
def test_bfloat16_on_a_cpu_is_what_the_kernel_says():
    flags = next(
        line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")
    )
    assert multiplies_bf16("cpu") == ("avx512_bf16" in flags.split())


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="a flag of x86")
def test_torch_still_reports_bfloat16_on_x86():
    assert "avx512_bf16" in torch.cpu.get_capabilities()


@pytest.mark.parametrize("supported", [True, False])
def test_bfloat16_follows_the_capabilities_that_torch_reports(monkeypatch, supported):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": supported})
    assert multiplies_bf16("cpu") == supported
    assert choose_precision("cpu") == ("bf16-mixed" if supported else "32-true")


def test_bfloat16_is_not_assumed_on_other_cpus_and_accelerators(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"architecture": "arm64"})
    assert not multiplies_bf16("cpu")
    assert not multiplies_bf16("mps")


@pytest.mark.parametrize("supported", [True, False])
def test_a_gpu_that_emulates_bfloat16_gets_float16(monkeypatch, supported):
    def is_bf16_supported(including_emulation: bool) -> bool:
        assert not including_emulation
        return supported

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_bf16_supported)
    assert choose_precision("gpu") == ("bf16-mixed" if supported else "16-mixed")


def test_mps_is_trained_in_float32():
    assert choose_precision("mps") == "32-true"


# Accelerators.


@pytest.mark.parametrize(
    ("cuda", "mps", "chosen"),
    [
        (True, False, {"auto": "gpu", "gpu": "gpu", "cuda": "gpu", "cpu": "cpu"}),
        (False, True, {"auto": "mps", "gpu": "mps", "mps": "mps", "cpu": "cpu"}),
        (False, False, {"auto": "cpu", "cpu": "cpu"}),
    ],
)
def test_the_accelerator_is_the_one_asked_for_or_the_best_or_an_error(
    monkeypatch, cuda, mps, chosen
):
    set_devices(monkeypatch, cuda, mps)
    for flag in ("auto", "cpu", "gpu", "cuda", "mps"):
        if flag in chosen:
            assert choose_accelerator(flag) == chosen[flag]
        else:
            with pytest.raises(UserError, match=f"{flag}: torch finds no such device here"):
                choose_accelerator(flag)


def test_an_unknown_accelerator_is_refused_with_the_known_ones():
    with pytest.raises(UserError, match="tpu: use one of auto, cpu, gpu, cuda, mps"):
        choose_accelerator("tpu")


# Compilers.


def test_a_cpu_compiles_with_a_compiler_and_header_files_only(tmp_path, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(hardware.sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    monkeypatch.setattr(shutil, "which", lambda name: name if name == "clang++" else None)
    assert not can_compile("cpu")
    (tmp_path / "Python.h").touch()
    assert can_compile("cpu")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert not can_compile("cpu")
    monkeypatch.setenv("CXX", "/opt/c++")
    assert can_compile("cpu")


# Speed.


@pytest.mark.parametrize(("cpu_seconds", "share"), [(2, 1), (1, 0.5), (2.1, 1)])
def test_matrix_products_are_timed_by_the_clock_and_by_the_processors(
    monkeypatch, cpu_seconds, share
):
    clock = itertools.count()  # one second later at each look
    processors = itertools.count(step=cpu_seconds * 4)  # of two threads, in four seconds
    monkeypatch.setattr(hardware.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(hardware.time, "process_time", lambda: next(processors))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    speed = matmul_speed("cpu", "32-true", seconds=2.5)
    # two products; the clock is read at 0, 1, 2, 3 and 4
    assert speed == MatmulSpeed(2 * (2 * 1536**3) / 4, share)


def test_the_time_per_flop_falls_with_the_width_towards_that_of_matrix_products():
    speed = MatmulSpeed(1e11, 1.0)
    times = [seconds_per_flop("cpu", speed, width) for width in (64, 128, 512, 10**9)]
    assert times == sorted(times, reverse=True)
    assert times[-1] == pytest.approx(1 / 0.95e11)
    assert times[0] - times[-1] == pytest.approx(2 * (times[1] - times[-1]))
    assert seconds_per_flop("gpu", speed, 64) == pytest.approx(1 / 0.45e11)


def test_with_a_third_of_the_processors_everything_takes_three_times_as_long():
    alone, shared = MatmulSpeed(3e11, 1.0), MatmulSpeed(1e11, 1 / 3)
    times = [seconds_per_flop("cpu", speed, 160) for speed in (alone, shared)]
    assert times[1] == pytest.approx(3 * times[0])
