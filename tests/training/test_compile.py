"""Laws of the compiler's settings: private options of PyTorch that an upgrade may move."""

import platform
import sys

import pytest

from lightning_app.training.compile import set_up_compiler


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
