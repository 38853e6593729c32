"""Laws of torch_internals: each fails when an upgrade of PyTorch moves what is used there."""

import platform
import sys

import pytest
import torch

from lightning_app import torch_internals
from lightning_app.hardware import multiplies_bf16
from lightning_app.torch_internals import (
    SkipInit,
    foreach_add_,
    foreach_addcdiv_,
    foreach_addcmul_,
    foreach_lerp_,
    foreach_mul,
    foreach_mul_,
    foreach_sqrt,
    has_onednn,
    ignore_in_ddp,
    packed_linear,
    set_up_compiler,
)
from tests.helpers import python_prints

COMPILER = "[m for m in sys.modules if m.startswith(('torch._inductor', 'torch._dynamo'))]"


# Operations on lists of tensors.


def lists(count: int) -> list[list[torch.Tensor]]:
    """`count` lists of positive tensors of the same two shapes."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((5,), (3, 4))
    return [[torch.rand(s, generator=generator) + 0.1 for s in shapes] for _ in range(count)]


@pytest.mark.parametrize(
    ("operation", "of_one", "arguments", "scalars"),
    [
        (foreach_add_, torch.Tensor.add_, 1, []),
        (foreach_add_, torch.Tensor.add_, 0, [0.5]),
        (foreach_mul_, torch.Tensor.mul_, 0, [0.3]),
        (foreach_lerp_, torch.Tensor.lerp_, 1, [0.3]),
        (foreach_addcmul_, lambda x, a, b, s: x.addcmul_(a, b, value=s), 2, [0.3]),
        (foreach_addcdiv_, lambda x, a, b, s: x.addcdiv_(a, b, value=s), 2, [-0.3]),
        (foreach_mul, torch.mul, 0, [torch.tensor(0.3)]),
        (foreach_sqrt, torch.sqrt, 0, []),
    ],
)
def test_an_operation_on_lists_is_the_same_as_on_each_tensor_bit_for_bit(
    operation, of_one, arguments, scalars
):
    x, *others = lists(1 + arguments)
    expected = [
        of_one(t.clone(), *(o[i] for o in others), *scalars) for i, t in enumerate(x)
    ]  # fmt: skip
    result = operation(x, *others, *scalars)
    result = x if result is None else result
    assert all(map(torch.equal, result, expected))


# Products with a weight laid out beforehand.


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")
def test_torch_still_has_the_private_operators_of_onednn():
    assert has_onednn()


@pytest.mark.parametrize(
    "operators", [torch_internals.ONEDNN_OPERATORS, ("_moved_elsewhere",)], ids=["yes", "no"]
)
@pytest.mark.parametrize(
    "dtype",
    [
        torch.float32,
        pytest.param(
            torch.bfloat16,
            marks=pytest.mark.skipif(
                not multiplies_bf16("cpu"), reason="a CPU without bfloat16 instructions"
            ),
        ),
    ],
    ids=str,
)
def test_the_product_is_the_plain_one_with_the_private_operators_and_without(
    operators, dtype, monkeypatch
):
    monkeypatch.setattr(torch_internals, "ONEDNN_OPERATORS", operators)
    generator = torch.Generator().manual_seed(0)
    weight, x = (torch.randn(n, 24, generator=generator).to(dtype) for n in (40, 5))
    y = packed_linear(weight, len(x))(x)
    assert y.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 0.02
    torch.testing.assert_close(
        y.float(), x.float() @ weight.float().mT, rtol=tolerance, atol=10 * tolerance
    )


# DDP.


def test_ddp_does_not_send_the_buffers_that_it_is_told_to_ignore():
    module = torch.nn.BatchNorm1d(3)
    ignore_in_ddp(module, ["running_mean"])
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", rank=0, world_size=1, store=store)
    try:
        sent = torch.nn.parallel.DistributedDataParallel(module).modules_buffers
    finally:
        torch.distributed.destroy_process_group()
    assert not any(buffer is module.running_mean for buffer in sent)
    assert any(buffer is module.running_var for buffer in sent)


# Initialisation.


def test_new_weights_are_left_as_they_are_inside_skip_init():
    weight = torch.full((3, 4), 7.0)
    with SkipInit():
        assert torch.nn.init.normal_(weight) is weight
        assert torch.nn.init.kaiming_uniform_(tensor=weight) is weight
    assert (weight == 7).all()
    torch.nn.init.normal_(weight)
    assert (weight != 7).any()


def test_a_network_on_the_meta_device_needs_no_compiler():
    code = f"""
import sys, torch
from lightning_app.torch_internals import SkipInit
with torch.device("meta"), SkipInit():
    torch.nn.Sequential(torch.nn.Embedding(3, 4), torch.nn.Linear(4, 3))
print({COMPILER})
"""
    assert python_prints(code) == "[]"


# The compiler's options.


@pytest.fixture
def configs():
    """Both configs, restored afterwards."""
    from torch._functorch import config as autograd
    from torch._inductor import config as inductor

    with autograd.patch({}), inductor.patch({}):
        yield autograd, inductor


def set_platform(monkeypatch, system: str, machine: str) -> None:
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(platform, "machine", lambda: machine)


def test_the_options_exist_in_this_torch(configs):
    autograd, inductor = configs
    assert "autograd_cache_allow_custom_autograd_functions" in autograd.get_config_copy()
    assert "cpp.march" in inductor.get_config_copy()


def test_graphs_with_custom_autograd_functions_are_cached(configs):
    autograd, _ = configs
    autograd.autograd_cache_allow_custom_autograd_functions = False
    set_up_compiler()
    assert autograd.autograd_cache_allow_custom_autograd_functions is True


@pytest.mark.parametrize(
    ("system", "machine", "expected"),
    [
        ("linux", "x86_64", "native -fno-tree-slp-vectorize"),
        ("linux", "aarch64", None),
        ("darwin", "x86_64", None),
        ("win32", "AMD64", None),
    ],
)
def test_the_pass_of_gcc_is_turned_off_on_x86_linux_only(
    configs, monkeypatch, system, machine, expected
):
    _, inductor = configs
    inductor.cpp.march = None
    set_platform(monkeypatch, system, machine)
    set_up_compiler()
    assert inductor.cpp.march == expected


def test_an_architecture_that_the_user_chose_is_kept(configs, monkeypatch):
    _, inductor = configs
    inductor.cpp.march = "znver3"
    set_platform(monkeypatch, "linux", "x86_64")
    set_up_compiler()
    assert inductor.cpp.march == "znver3"


@pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64", reason="a flag of x86 Linux"
)
def test_the_flag_reaches_the_compiler(configs):
    from torch._inductor.cpp_builder import CppTorchOptions

    _, inductor = configs
    inductor.cpp.march = None
    set_up_compiler()
    assert any("no-tree-slp-vectorize" in flag for flag in CppTorchOptions().get_cflags())
