"""Laws of run folders: which run, which checkpoint, one process at a time."""

import datetime as dates
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_app.runs import folders
from lightning_app.runs.folders import (
    check_run_name,
    find_checkpoint,
    lock_run,
    newest_run,
    set_aside,
)
from tests.helpers import refusal, written

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    """An empty working folder; `logs` is relative to it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


# Which run.


@pytest.mark.parametrize(
    "name", ["a/b", "../a", "/a", ".", "..", ".hidden", "", "a\\b", "a\n", "a ", "a.", "-a", "a:b"]
)
def test_what_is_a_path_or_no_folders_name_is_refused_as_a_run(name):
    assert "is not a name" in refusal(check_run_name, name)


@pytest.mark.parametrize("name", ["a", "gpt_char", "2025-01-01", "v1.2", "größe", "天", "a b", "_"])
def test_names_of_folders_are_names_of_runs(name):
    assert check_run_name(name) == name


def test_the_newest_run_is_that_of_the_newest_best_checkpoint():
    for name, time in (("a", 100), ("b", 300), ("c", 200)):
        os.utime(written(f"logs/{name}/checkpoints/best.ckpt"), (time, time))
    written("logs/d/checkpoints/last.ckpt")
    assert newest_run() == "b"


def test_without_a_run_there_is_no_newest():
    assert "main.py fit" in refusal(newest_run)
    written("logs/d/checkpoints/last.ckpt")
    assert "--run d --ckpt_path last" in refusal(newest_run)


# Which checkpoint.


def test_a_checkpoint_is_the_newest_runs_best_unless_said_otherwise():
    for name, time in (("a", 100), ("b", 300)):
        os.utime(written(f"logs/{name}/checkpoints/best.ckpt"), (time, time))
        written(f"logs/{name}/checkpoints/last.ckpt")
    assert find_checkpoint(None, None) == Path("logs/b/checkpoints/best.ckpt")
    assert find_checkpoint("best", "a") == Path("logs/a/checkpoints/best.ckpt")
    assert find_checkpoint("last", "a") == Path("logs/a/checkpoints/last.ckpt")
    assert find_checkpoint("last", None) == Path("logs/b/checkpoints/last.ckpt")


def test_a_checkpoints_file_wins_over_the_run():
    assert find_checkpoint("some/file.ckpt", "a") == Path("some/file.ckpt")


def test_a_checkpoint_by_url_is_refused():
    assert "is a URL" in refusal(find_checkpoint, "https://example.com/a.ckpt", None)


def test_a_run_that_is_not_there_suggests_the_nearest():
    written("logs/shakespeare/checkpoints/best.ckpt")
    message = refusal(find_checkpoint, None, "shakespaere")
    assert "there is no run shakespaere" in message
    assert "did you mean --run shakespeare?" in message


def test_without_a_near_run_the_runs_there_are_named_once():
    for name in ("one", "two"):
        written(f"logs/{name}/checkpoints/best.ckpt")
        written(f"logs/{name}/checkpoints/last.ckpt")
    assert refusal(find_checkpoint, None, "zzzzzz").endswith("runs: one, two")


def test_without_any_run_that_is_said():
    Path("logs/x").mkdir(parents=True)
    message = refusal(find_checkpoint, None, "x")
    assert message.startswith("run x has no logs/x/checkpoints/best.ckpt")
    assert message.endswith("runs: none")


def test_a_run_without_that_checkpoint_is_not_suggested_instead_of_itself():
    written("logs/mine/checkpoints/last.ckpt")
    message = refusal(find_checkpoint, "best", "mine")
    assert "run mine has no" in message
    assert "did you mean --run mine?" not in message


# One process at a time.


HOLDER = """
import sys, time
from lightning_app.runs.folders import lock_run
held = lock_run("mine")
print("held", flush=True)
time.sleep(600)
"""


def test_a_second_process_is_refused_until_the_first_dies_however_it_dies():
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
    )
    try:
        assert holder.stdout.readline().split() == [b"held"]
        message = refusal(lock_run, "mine")
        assert "run mine is being trained" in message
        assert "--run OTHER" in message
        lock_run("other").release()
    finally:
        holder.kill()  # SIGKILL: it can clean up nothing
        holder.wait()
        holder.stdout.close()
    held = lock_run("mine")
    assert held.is_locked
    held.release()


def test_a_lock_outlives_the_move_of_its_runs_folder():
    written("logs/mine/config.yaml")
    held = lock_run("mine")
    set_aside(Path("logs/mine"))
    refusal(lock_run, "mine")
    held.release()
    assert not Path("logs/mine").exists()


# Fresh.


def test_nothing_to_set_aside_is_nothing():
    assert set_aside(Path("logs/mine")) is None


def test_setting_aside_moves_a_run_whole_and_never_over_another(monkeypatch):
    class Stopped(dates.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2025, 1, 2, 3, 4, 5)

    monkeypatch.setattr(folders, "datetime", Stopped)
    moved = []
    for i in range(4):
        written("logs/mine/config.yaml", str(i))
        written("logs/mine/checkpoints/best.ckpt", str(i))
        moved.append(set_aside(Path("logs/mine")))
        assert not Path("logs/mine").exists()
    assert len(set(moved)) == 4
    for i, path in enumerate(moved):
        assert path.parent == Path("logs")
        assert path.name.startswith("mine.2025-01-02_03-04-05")
        assert (path / "config.yaml").read_text() == str(i)
        assert (path / "checkpoints/best.ckpt").read_text() == str(i)
        check_run_name(path.name)  # it can still be asked for
