"""Laws of atomic writes, temporary folders, locks, and the check that a file can be read."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lightning_app.errors import UserError
from lightning_app.files import (
    atomic_write,
    check_readable,
    lock_file,
    locked_temporary_folder,
    temporary_folder,
)

ROOT = Path(__file__).parents[1]


def write(path: Path, content: bytes, previous: Path | None = None) -> None:
    with atomic_write(path, previous) as file:
        file.write(content)


def in_another_process(script: str, *args: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, args)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )


# Atomic writes.


def test_a_file_and_its_folders_are_created(tmp_path):
    write(tmp_path / "a" / "b" / "file", b"new")
    assert (tmp_path / "a" / "b" / "file").read_bytes() == b"new"


def test_until_the_end_the_old_content_is_there_and_then_the_new(tmp_path):
    path = tmp_path / "file"
    write(path, b"old")
    with atomic_write(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_after_an_error_the_old_content_is_there_and_nothing_else(tmp_path, error):
    path, previous = tmp_path / "file", tmp_path / "previous"
    write(path, b"old")

    def fail():
        with atomic_write(path, previous) as file:
            file.write(b"incomplete")
            raise error

    with pytest.raises(type(error)):
        fail()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_after_a_kill_the_old_content_is_there_and_the_next_write_succeeds(tmp_path):
    path = tmp_path / "file"
    write(path, b"old")
    with in_another_process(
        "import os, sys; from pathlib import Path; from lightning_app.files import atomic_write\n"
        "with atomic_write(Path(sys.argv[1])) as file:\n"
        "    file.write(b'incomplete'); file.flush(); os._exit(9)",
        path,
    ) as killed:
        assert killed.wait(60) == 9
    assert path.read_bytes() == b"old"
    write(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_previous_has_the_content_before_the_last_write(tmp_path):
    path, previous = tmp_path / "file", tmp_path / "previous"
    write(path, b"1", previous)
    assert not previous.exists()
    for i in (2, 3):
        write(path, b"%d" % i, previous)
        assert (path.read_bytes(), previous.read_bytes()) == (b"%d" % i, b"%d" % (i - 1))


@pytest.mark.parametrize("first_rename", [True, False])
def test_when_a_rename_fails_the_old_content_is_in_the_file_or_in_previous(
    tmp_path, monkeypatch, first_rename
):
    path, previous = tmp_path / "file", tmp_path / "previous"
    write(path, b"old")
    rename, target = os.replace, previous if first_rename else path

    def failing(source, destination):
        if destination == target:
            raise OSError("power failure")
        rename(source, destination)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(OSError, match="power failure"):
        write(path, b"new", previous)
    assert (path if first_rename else previous).read_bytes() == b"old"


# Temporary folders.


def test_a_temporary_folder_is_empty_and_deleted_at_the_end(tmp_path):
    (tmp_path / "goal.part").mkdir()
    (tmp_path / "goal.part" / "of a killed process").touch()
    with temporary_folder(tmp_path / "goal") as temporary:
        assert list(temporary.iterdir()) == []
        (temporary / "file").touch()
    assert list(tmp_path.iterdir()) == []


def test_a_temporary_folder_may_be_renamed(tmp_path):
    with temporary_folder(tmp_path / "goal") as temporary:
        (temporary / "file").touch()
        temporary.rename(tmp_path / "goal")
    assert [file.name for file in (tmp_path / "goal").iterdir()] == ["file"]
    assert list(tmp_path.iterdir()) == [tmp_path / "goal"]


def test_a_temporary_folder_is_deleted_after_an_error(tmp_path):
    def fail():
        with temporary_folder(tmp_path / "goal") as temporary:
            (temporary / "file").touch()
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011
        fail()
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_folder_is_an_error_that_names_it(tmp_path, monkeypatch):
    def denied(*_, **__):  # chmod would not stop root
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "touch", denied)
    with (
        pytest.raises(UserError, match=f"cannot write a text to {tmp_path}: Permission denied"),
        locked_temporary_folder("a text", tmp_path),
    ):
        pass


# Locks.


def test_a_lock_is_released_when_its_holder_dies(tmp_path):
    path = tmp_path / "folder" / "lock"
    with in_another_process(
        "import sys, time; from pathlib import Path; from lightning_app.files import lock_file\n"
        "with lock_file(Path(sys.argv[1])):\n    print('held', flush=True); time.sleep(60)",
        path,
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        lock = lock_file(path)
        with pytest.raises(TimeoutError):
            lock.acquire(timeout=0)
        holder.kill()
    lock.acquire(timeout=10)
    lock.release()


def test_a_lock_in_an_unwritable_place_is_an_error_at_once(tmp_path):
    (tmp_path / "file").touch()
    start = time.monotonic()
    with pytest.raises(OSError, match="file"):
        lock_file(tmp_path / "file" / "lock")
    assert time.monotonic() - start < 5


# Readable files.


def test_a_regular_file_is_readable_and_others_are_named(tmp_path):
    file = tmp_path / "file"
    file.write_text("text")
    assert check_readable(file) == file
    with pytest.raises(UserError, match=f"{tmp_path} is not a regular file"):
        check_readable(tmp_path)
    with pytest.raises(UserError, match=f"cannot read {tmp_path / 'none'}: No such file"):
        check_readable(tmp_path / "none")
