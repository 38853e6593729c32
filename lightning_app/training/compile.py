"""What torch.compile needs to be correct on a CPU, and to start quickly again."""

import platform
import sys


def set_up_compiler() -> None:
    """Make torch.compile correct, and quick to start again.

    A pass of GCC's gets transposed bfloat16 copies wrong: GCC 12.2 for Sapphire Rapids lost 31 of
    32 rows, and gradients were nan. PyTorch turns off its sibling, loop vectorization, for the same
    reason (pytorch issue 115261); its loops are vectors as they are written.

    Graphs with a gradient of their own (gpt.Weigh) are not kept from run to run unless asked for.
    Their code is part of the key; loading a graph takes a second, tracing it again five.
    """
    from torch._functorch import config as autograd  # a second, only where something is compiled
    from torch._inductor import config as inductor

    autograd.autograd_cache_allow_custom_autograd_functions = True
    if sys.platform == "linux" and platform.machine() == "x86_64" and inductor.cpp.march is None:
        inductor.cpp.march = "native -fno-tree-slp-vectorize"
