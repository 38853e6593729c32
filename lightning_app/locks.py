"""Locks between processes: the system's own, which die with their holder."""

from pathlib import Path

from filelock import FileLock


def lock_file(path: Path) -> FileLock:
    """A lock at `path`, not yet taken. Raises OSError where the file cannot be made, at once:
    FileLock itself would, on some systems, wait for ever."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return FileLock(path)
