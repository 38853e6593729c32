"""Laws of the page's kernel: the compiled file is that of the source."""

import importlib.util

import pytest

from lightning_app.export.page.build_kernel import (
    KERNEL,
    compile_kernel,
    recorded_hash,
    source_hash,
)


def test_the_compiled_kernel_records_the_hash_of_its_source():
    assert recorded_hash(KERNEL.read_bytes()) == source_hash()


@pytest.mark.skipif(
    importlib.util.find_spec("ziglang") is None, reason="needs pip install -e '.[kernel]'"
)
def test_the_compiler_gives_the_compiled_kernel():
    assert compile_kernel() == KERNEL.read_bytes()
