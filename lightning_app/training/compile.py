"""Settings of torch.compile: correct code on CPUs, and a faster second start."""

import platform
import sys


def set_up_compiler() -> None:
    """Set options of torch.compile for this process. Call it before the first compilation.

    Inductor, x86-64 Linux: GCC's pass tree-slp-vectorize is turned off. With it, GCC 12.2 for
    Sapphire Rapids compiles copies of transposed bfloat16 matrices incorrectly: 31 of 32 rows were
    lost, and gradients became nan. PyTorch turns off the related pass tree-loop-vectorize for the
    same reason (pytorch issue 115261). Inductor's code does not need either pass: its loops are
    written with vector instructions. A `march` that the user has set is not changed.

    AOTAutograd: graphs with a custom autograd function (model.attention) are cached on disk, which
    is off by default. Its source code is part of the cache's key. Loading a graph takes about one
    second, tracing it again five.

    Both are private modules of PyTorch; tests/training/test_compile.py fails if the options move.
    """
    from torch._functorch import config as autograd  # takes a second; only needed for compiling
    from torch._inductor import config as inductor

    autograd.autograd_cache_allow_custom_autograd_functions = True
    if sys.platform == "linux" and platform.machine() == "x86_64" and inductor.cpp.march is None:
        inductor.cpp.march = "native -fno-tree-slp-vectorize"
