"""Every use of private functions and options of PyTorch, with its reason and a test.

Two more are where a base class needs them: `CharacterLoss._apply` in evaluation/metrics.py
(torchmetrics), and the names in a checkpoint's pickle in runs/checkpoint.py.
"""

import platform
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.overrides import TorchFunctionMode

# Element-wise operations on lists of tensors, in one call each. The optimizers of torch.optim use
# them; they have no public equivalent. A loop over the tensors is slower with many small ones.
foreach_add_ = torch._foreach_add_
foreach_addcdiv_ = torch._foreach_addcdiv_
foreach_addcmul_ = torch._foreach_addcmul_
foreach_lerp_ = torch._foreach_lerp_
foreach_mul = torch._foreach_mul
foreach_mul_ = torch._foreach_mul_
foreach_sqrt = torch._foreach_sqrt

ONEDNN_OPERATORS = ("_reorder_linear_weight", "_linear_pointwise")  # of torch.ops.mkldnn


def has_onednn() -> bool:
    """Whether this build of torch has oneDNN and the private operators of `packed_linear`."""
    return torch.backends.mkldnn.is_available() and all(
        hasattr(torch.ops.mkldnn, name) for name in ONEDNN_OPERATORS
    )


def packed_linear(weight: Tensor, batch_size: int) -> Callable[[Tensor], Tensor]:
    """A function x (batch_size, columns) -> x @ weight.mT, for weight (rows, columns).

    oneDNN lays the weight out beforehand, which makes the product 1.2 to 2 times as fast as torch's
    own. torch.compile calls the same operators for this purpose; they have no public equivalent.
    Without them the product is torch's own.
    """
    if not has_onednn():
        return lambda x: x @ weight.mT
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, batch_size)
    return lambda x: torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")


def ignore_in_ddp(module: nn.Module, names: list[str]) -> None:
    """Keep DDP from sending the buffers `names` of `module` to the other processes at each step.

    DDP's public option, broadcast_buffers, is for all buffers, and an argument of the strategy.
    """
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, names)


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

    Dynamo: a function is compiled up to 64 times, instead of 8, before it is left uncompiled: a
    block is compiled for every size of windows, with and without gradients.
    """
    from torch._dynamo import config as dynamo  # takes a second; only needed for compiling
    from torch._functorch import config as autograd
    from torch._inductor import config as inductor

    dynamo.recompile_limit = 64
    autograd.autograd_cache_allow_custom_autograd_functions = True
    if sys.platform == "linux" and platform.machine() == "x86_64" and inductor.cpp.march is None:
        inductor.cpp.march = "native -fno-tree-slp-vectorize"


class SkipInit(TorchFunctionMode):
    """Inside `with SkipInit():`, the functions of torch.nn.init return their tensor unchanged.

    To initialise weights on the meta device, PyTorch would import its compiler, which takes a
    second. Relies on torch.nn.init's functions being passed to `__torch_function__` under the name
    of their module, which is not documented; if that changes, loading is slower but still correct.
    """

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if getattr(function, "__module__", "") == "torch.nn.init":
            return (kwargs or {}).get("tensor", args[0] if args else None)
        return function(*args, **(kwargs or {}))
