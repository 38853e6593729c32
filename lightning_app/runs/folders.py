"""Run folders: names, locks, and the checkpoint that a command uses."""

import difflib
import os
import re
import shlex
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from lightning_app.errors import UserError, program
from lightning_app.files import lock_file

LOGS = Path("logs")


def check_run_name(name: str) -> str:
    """`name` itself. Raises UserError unless a folder on any system can have it."""
    name = str(name)  # in a config, `run: 2024` is a number
    if not re.fullmatch(r"[\w][\w.+=@ -]*", name) or name.endswith((".", " ")):
        raise UserError(
            f"--run {name!r} is not a name; use letters, digits, - and _ (the folder is "
            f"{LOGS}/NAME)"
        )
    return name


def known_runs() -> list[str]:
    """The names of the runs with a checkpoint, sorted, one for each checkpoint."""
    return sorted(p.parent.parent.name for p in LOGS.glob("*/checkpoints/*.ckpt"))


def newest_run() -> str:
    """The name of the run with the newest best.ckpt. Raises UserError if there is none."""
    found = sorted(LOGS.glob("*/checkpoints/best.ckpt"), key=lambda p: p.stat().st_mtime)
    if not found and (unfinished := known_runs()):
        raise UserError(
            f"run {unfinished[0]} has no best.ckpt before its first validation; train it "
            f"further, or use --run {shlex.quote(unfinished[0])} --ckpt_path last"
        )
    if not found:
        raise UserError(f"no trained run under {LOGS}/; train one: {program()} fit")
    return found[-1].parent.parent.name


def find_checkpoint(ckpt_path: str | None, run: str | None) -> Path:
    """The file that --ckpt_path (a file, `best` or `last`; default best) and --run select.

    Raises UserError for a URL, and if the run or its checkpoint does not exist.
    """
    if ckpt_path not in (None, "best", "last"):
        return Path(ckpt_path) if "://" not in ckpt_path else reject_url(ckpt_path)
    run = run or newest_run()
    path = LOGS / run / "checkpoints" / f"{ckpt_path or 'best'}.ckpt"
    if not path.is_file():
        runs = sorted({*known_runs()} - {run})
        near = difflib.get_close_matches(run, runs, n=1)
        hint = (
            f"did you mean --run {shlex.quote(near[0])}?"
            if near
            else f"runs: {', '.join(runs) or 'none'}"
        )
        if path.with_name("last.ckpt").is_file():
            hint = "--ckpt_path last is there"
        what = f"run {run} has no" if (LOGS / run).is_dir() else f"there is no run {run}, so no"
        raise UserError(f"{what} {path}; {hint}")
    return path


def reject_url(url: str) -> Path:
    raise UserError(f"--ckpt_path {url} is a URL; download the file yourself and give its path")


def lock_run(run: str) -> FileLock:
    """Lock the run for this process; the operating system releases the lock when the process ends.

    Raises UserError if another process has locked it.
    """
    held = lock_file(LOGS / ".locks" / f"{run}.lock")
    try:
        held.acquire(timeout=0)
    except Timeout:
        raise UserError(
            f"run {run} is being trained by another process; wait for it, or use --run OTHER"
        ) from None
    return held


def set_aside(path: Path) -> Path | None:
    """Add the time to the name of a folder or file. Returns the new path, or None without one."""
    if not path.exists():
        return None
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    aside, n = path.with_name(f"{path.name}.{stamp}"), 1
    while aside.exists():
        aside, n = path.with_name(f"{path.name}.{stamp}.{n}"), n + 1
    os.replace(path, aside)
    return aside
