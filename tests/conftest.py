"""A tiny text, a tiny config, and two ways to run the command line: in this process and outside."""

import os
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models: threads would only wait on each other
os.environ.setdefault("NUMBA_NUM_THREADS", "1")

from types import SimpleNamespace

import pytest

from lightning_app import cli, hardware
from tests.helpers import main_in, undone, write_inputs


def pytest_configure(config: pytest.Config) -> None:
    """With -n 2, files go to the workers in the order below, not those with most tests first."""
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest come first, so that the workers end at about the same time."""
    longest = ("test_processes", "test_commands", "test_fit", "test_cpu_engine")
    items.sort(key=lambda item: [*longest, item.path.stem].index(item.path.stem))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with text.txt and tiny.yaml in it. The machine's speed is not measured."""
    monkeypatch.setattr(hardware, "matmul_speed", lambda *args: hardware.MatmulSpeed(1e11, 1.0))
    monkeypatch.chdir(tmp_path)
    write_inputs(tmp_path)
    return tmp_path


@pytest.fixture
def main(capfd):
    """The command line in this process: main("fit", ...) -> code, out, err."""

    def call(*args: str) -> SimpleNamespace:
        capfd.readouterr()
        with undone():
            code = cli.main([str(a) for a in args])
        out, err = capfd.readouterr()
        return SimpleNamespace(code=code, out=out, err=err)

    return call


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A folder where run `tiny` has been trained, and what `fit` printed. For tests that only read
    it; see `in_trained`."""
    folder = tmp_path_factory.mktemp("trained")
    write_inputs(folder)
    done = main_in(folder, "fit", "--config", "tiny.yaml")
    assert done.code == 0, done.err
    return SimpleNamespace(folder=folder, out=done.out, err=done.err)


@pytest.fixture
def in_trained(trained, monkeypatch):
    """The folder of `trained` as working folder."""
    monkeypatch.chdir(trained.folder)
    return trained.folder


@pytest.fixture(scope="session")
def modules_folder(tmp_path_factory):
    """transformers copies the modelling files of exports to a temporary folder, not to the user's.

    Its imports search that folder for the rest of the session.
    """
    dynamic_module_utils = pytest.importorskip("transformers.dynamic_module_utils")

    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("modules")
        patch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(folder))
        patch.setattr(sys, "path", list(sys.path))
        yield folder
