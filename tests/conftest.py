"""A tiny text, a tiny config, and two ways to run the command line: in this process and outside."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models: threads would only wait on each other
os.environ.setdefault("NUMBA_NUM_THREADS", "1")

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_app import checkpoints, cli

MAIN = Path(__file__).parent.parent / "main.py"

CONFIG = """\
data: {corpus: text.txt, block_size: 16, batch_size: 8}
model: {n_layer: 1, n_head: 2, n_embd: 16, mlp_size: 32}
trainer: {max_steps: 20, val_check_interval: 10, log_every_n_steps: 5}
schedule: {warmup_steps: 2}
generate: {sampling: top_k, top_k: 3, max_new_tokens: 40}
"""


def sentences(n: int) -> str:
    """n lines that a small model can learn something about."""
    who = ("ROMEO", "JULIET", "NURSE", "FRIAR")
    what = ("good night", "the sun is up", "speak again", "what light is that", "o me")
    return "".join(
        f"{who[i * 5 // 3 % 4]}:\n{what[(i * 7 + i // 3) % 5]}, {i}\n\n" for i in range(n)
    )


def main_py(*args: str, cwd: Path, **kwargs) -> subprocess.CompletedProcess:
    """main.py as a user runs it."""
    return subprocess.run(
        [sys.executable, str(MAIN), *args],
        cwd=cwd,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        **kwargs,
    )


def is_error(done, *words: str) -> bool:
    """One line on standard error, exit code 2, and it names these things."""
    lines = done.err.strip().split("\n")
    errors = [x for x in lines if x.startswith("error: ")]
    assert done.code == 2, done.err
    assert errors == lines[-1:], done.err
    assert "Traceback" not in done.err
    assert "usage:" not in done.err
    for word in words:
        assert word in errors[0], errors[0]
    return True


def checkpoint(folder: Path, run: str, name: str = "last") -> dict:
    return checkpoints.read(folder / "logs" / run / "checkpoints" / f"{name}.ckpt")


def scalars(folder: Path, run: str) -> dict[str, list[tuple[int, float]]]:
    board = EventAccumulator(str(folder / "logs" / run))
    board.Reload()
    return {tag: [(e.step, e.value) for e in board.Scalars(tag)] for tag in board.Tags()["scalars"]}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files are shared between two workers, in this order: the longest first."""
    items.sort(key=lambda item: item.path.stem not in ("test_processes", "test_cli"))


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
        code = cli.main([str(a) for a in args])
        out, err = capfd.readouterr()
        return SimpleNamespace(code=code, out=out, err=err)

    return call


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A folder where run `tiny` has been trained, for tests that only read it."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "text.txt").write_text(sentences(150))
    (folder / "tiny.yaml").write_text(CONFIG)
    done = main_py("fit", "--config", "tiny.yaml", cwd=folder)
    assert done.returncode == 0, done.stderr
    return SimpleNamespace(folder=folder, out=done.stdout, err=done.stderr)
