"""A tiny text, a tiny config, and two ways to run the command line: in this process and outside."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models: threads would only wait on each other
os.environ.setdefault("NUMBA_NUM_THREADS", "1")

import logging
import warnings
from types import SimpleNamespace

import pytest

from lightning_app import cli
from tests.helpers import CONFIG, main_py, sentences


def pytest_configure(config: pytest.Config) -> None:
    """With -n 2, files go to the workers in the order below, not those with most tests first."""
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest come first, so that the workers end at about the same time."""
    longest = ("test_processes", "test_commands", "test_fit", "test_cpu_engine")
    items.sort(key=lambda item: [*longest, item.path.stem].index(item.path.stem))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with text.txt and tiny.yaml in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(sentences(150))
    (tmp_path / "tiny.yaml").write_text(CONFIG)
    return tmp_path


@pytest.fixture
def main(capfd):
    """The command line in this process: main("fit", ...) -> code, out, err."""

    def call(*args: str) -> SimpleNamespace:
        capfd.readouterr()
        with warnings.catch_warnings():  # a command turns off all warnings of its process
            code = cli.main([str(a) for a in args])
        out, err = capfd.readouterr()
        return SimpleNamespace(code=code, out=out, err=err)

    yield call
    logging.disable(logging.NOTSET)  # a command turns off all messages below errors


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A folder where run `tiny` has been trained, for tests that only read it."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "text.txt").write_text(sentences(150))
    (folder / "tiny.yaml").write_text(CONFIG)
    done = main_py("fit", "--config", "tiny.yaml", cwd=folder)
    assert done.returncode == 0, done.stderr
    return SimpleNamespace(folder=folder, out=done.stdout, err=done.stderr)
