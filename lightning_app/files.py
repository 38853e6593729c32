"""Atomic writes, locks between processes, and a check that a file can be read."""

import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from filelock import FileLock

from lightning_app.errors import UserError


def lock_file(path: Path) -> FileLock:
    """A lock at `path`, not yet acquired; the operating system releases it when the process that
    holds it ends.

    Raises OSError if the file cannot be created; on some systems FileLock alone would then wait
    forever.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return FileLock(path)


@contextmanager
def atomic_write(path: Path, previous: Path | None = None) -> Iterator[IO[Any]]:
    """Open a temporary file in the folder of `path`; on exit, sync it and rename it to `path`.

    After a crash, a kill or a full disk, `path` has either its old or its new content. With
    `previous`, the old file is kept under that name. Two processes must not write to one path at
    the same time.
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
def temporary_folder(path: Path) -> Iterator[Path]:
    """An empty folder `path`.part, deleted on exit; rename it, or files in it, before that.

    The caller must hold a lock: an existing folder of this name is deleted, because only a process
    that was killed can have left it.
    """
    temporary = path.with_name(f"{path.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def locked_temporary_folder(name: str, parent: Path) -> Iterator[Path]:
    """An empty folder in which one process at a time prepares `name`, to be renamed into `parent`.

    Raises UserError if `parent` cannot be written.
    """
    try:
        with (
            lock_file(parent / f".{name}.lock"),
            temporary_folder(parent / f".{name}") as temporary,
        ):
            yield temporary
    except OSError as error:
        raise UserError(
            f"cannot write {name} to {parent}: {error.strerror or error}; "
            "make that folder writable or choose another"
        ) from error


def check_readable(file: Path) -> Path:
    """`file` itself. Raises UserError unless it is a regular file that this process may read."""
    try:
        # Opening a named pipe would block until another process writes to it.
        if not stat.S_ISREG(file.stat().st_mode):
            raise UserError(f"{file} is not a regular file; save its text to a file and name that")
        file.open("rb").close()
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}; check its permissions") from error
    return file


def sync_folder(folder: Path) -> None:
    """Write the entries of `folder` to disk, so that renames in it survive a power failure. Windows
    cannot open a folder, and does not need this."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
