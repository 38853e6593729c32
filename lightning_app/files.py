"""Files that are whole or absent, and locks between processes."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from filelock import FileLock


def lock_file(path: Path) -> FileLock:
    """A lock at `path`, not yet acquired; the operating system releases it when its holder dies.

    Raises OSError where the file cannot be created. (FileLock alone would wait for ever on some
    systems.)
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return FileLock(path)


@contextmanager
def atomic_write(path: Path, previous: Path | None = None) -> Iterator[IO[Any]]:
    """Open a temporary file beside `path`; once it is written and synced, rename it to `path`.

    After a crash, a kill or a full disk, `path` holds either its old or its new content. With
    `previous`, the old file is kept under that name. Two processes must not write one path at once.
    """
    temporary = path.with_name(f"{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if previous is not None and path.exists():
            os.replace(path, previous)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


@contextmanager
def temporary_folder(goal: Path) -> Iterator[Path]:
    """An empty folder beside `goal`, removed on exit: rename it, or a file in it, to its place.

    The caller holds a lock, so a folder of this name was left by a process that was killed.
    """
    part = goal.with_name(f"{goal.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
    finally:
        shutil.rmtree(part, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` survive a power cut. Windows cannot open a folder, and its renames
    need no sync."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
