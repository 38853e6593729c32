"""Runs and configs on disk: names, folders, locks, and which checkpoint a command means."""

import copy
import difflib
import os
import re
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from lightning_app import checkpoints
from lightning_app.errors import UserError
from lightning_app.locks import lock_file
from lightning_app.parsing import not_a_group

LOGS = Path("logs")
GROUPS = ("data", "model", "optim", "schedule", "trainer", "generate")  # of options, in a config
PROJECT_CONFIGS = Path(__file__).parent.parent / "configs"


def find_config(name: str) -> Path:
    """A config by path, or by the bare name of a file in configs/; the path wins."""
    if "://" in name:
        raise UserError(f"--config {name} is a URL; download the file, read it, and give its path")
    candidates = [Path(name)]
    if Path(name).name == name:
        for folder in (Path("configs"), PROJECT_CONFIGS):
            candidates += [folder / name, folder / f"{name}.yaml"]
    for path in candidates:
        if path.is_file():
            return path
    known = sorted({p.stem for p in [*Path("configs").glob("*.yaml"), *configs_shipped()]})
    near = difflib.get_close_matches(Path(name).stem, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"configs/ has {', '.join(known) or 'none'}"
    raise UserError(f"--config {name} does not exist; {hint}")


def configs_shipped() -> list[Path]:
    return sorted(PROJECT_CONFIGS.glob("*.yaml"))


def split_configs(argv: list[str]) -> tuple[list[Path], list[str]]:
    """Take the --config options out of a command line; the rest keeps its order."""
    configs, rest = [], []
    arguments = iter(argv)
    for argument in arguments:
        if argument in ("--config", "-c"):
            value = next(arguments, None)
            if value is None:
                raise UserError("--config needs a path or the name of a file in configs/")
            configs.append(find_config(value))
        elif argument.startswith("--config="):
            configs.append(find_config(argument.removeprefix("--config=")))
        else:
            rest.append(argument)
    return configs, rest


def read_configs(paths: list[Path]) -> dict[str, Any]:
    """The configs' values, later files over earlier ones. Raises UserError for broken YAML."""
    merged: dict[str, Any] = {}
    for path in paths:
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except (yaml.YAMLError, ValueError) as error:
            mark = getattr(error, "problem_mark", None)
            where = f" in line {mark.line + 1}" if mark else ""
            problem = getattr(error, "problem", None) or " ".join(str(error).split())
            if isinstance(error, UnicodeDecodeError):
                problem = "not UTF-8 text"
            raise UserError(f"{path} is not valid YAML{where}: {problem}") from None
        if not isinstance(values, dict):
            raise UserError(f"{path} holds no `key: value` lines; see configs/ for examples")
        for name in GROUPS:
            if values.get(name) is not None and not isinstance(values[name], dict):
                given = " ".join(f"{path}: {name}: {values[name]}".split())
                raise UserError(not_a_group(given, name))
        merge(merged, values)
    return merged


def group(paths: list[Path], name: str) -> dict[str, Any]:
    """The values under `name:` in the configs."""
    return read_configs(paths).get(name) or {}


def merge(into: dict[str, Any], values: dict[str, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            merge(into[key], value)
        else:
            into[key] = copy.deepcopy(value)  # YAML aliases share objects


def check_name(name: str) -> str:
    name = str(name)  # in a config, `run: 2024` is a number
    if not re.fullmatch(r"[\w][\w.+=@ -]*", name) or name.endswith((".", " ")):
        raise UserError(
            f"--run {name!r} is not a name; use letters, digits, - and _ (the folder is "
            f"{LOGS}/NAME)"
        )
    return name


def run_name(run: str | None, configs: list[Path]) -> str | None:
    """--run, else the last config's stem; for a run's own config.yaml, that run."""
    if run is not None:
        return check_name(run)
    if not configs:
        return None
    path = configs[-1].resolve()
    if path.name == "config.yaml" and path.parent.parent == LOGS.resolve():
        return check_name(path.parent.name)
    return check_name(path.stem)


def known_runs() -> list[str]:
    return sorted(p.parent.parent.name for p in LOGS.glob("*/checkpoints/*.ckpt"))


def newest_run() -> str:
    """The run with the newest best.ckpt. Raises UserError when there is none."""
    found = sorted(LOGS.glob("*/checkpoints/best.ckpt"), key=lambda p: p.stat().st_mtime)
    if not found and (unfinished := known_runs()):
        raise UserError(
            f"run {unfinished[0]} has no best.ckpt before its first validation; fit on, or take "
            f"--run {unfinished[0]} --ckpt_path last"
        )
    if not found:
        raise UserError(f"no trained run under {LOGS}/; train one: python main.py fit")
    return found[-1].parent.parent.name


def find_checkpoint(ckpt_path: str | None, run: str | None) -> Path:
    """The file meant by --ckpt_path (a file, `best` or `last`; default best) and --run."""
    if ckpt_path not in (None, "best", "last"):
        return Path(ckpt_path) if "://" not in ckpt_path else reject_url(ckpt_path)
    run = run or newest_run()
    path = LOGS / run / "checkpoints" / f"{ckpt_path or 'best'}.ckpt"
    if not path.is_file():
        runs = sorted({*known_runs()} - {run})
        near = difflib.get_close_matches(run, runs, n=1)
        hint = f"did you mean --run {near[0]}?" if near else f"runs: {', '.join(runs) or 'none'}"
        if path.with_name("last.ckpt").is_file():
            hint = "--ckpt_path last is there"
        what = f"run {run} has no" if (LOGS / run).is_dir() else f"there is no run {run}, so no"
        raise UserError(f"{what} {path}; {hint}")
    return path


def reject_url(url: str) -> Path:
    raise UserError(f"--ckpt_path {url} is a URL; download the file yourself and give its path")


def lock(run: str) -> FileLock:
    """Hold the run for this process: a lock of the system's, which dies with its holder."""
    held = lock_file(LOGS / ".locks" / f"{run}.lock")
    try:
        held.acquire(timeout=0)
    except Timeout:
        raise UserError(
            f"run {run} is being trained by another process; wait for it, or use --run OTHER"
        ) from None
    return held


def set_aside(run: str) -> Path | None:
    """Move a run's folder to a name of its own; None when there is nothing to move."""
    folder = LOGS / run
    if not folder.exists():
        return None
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    aside, n = LOGS / f"{run}.{stamp}", 1
    while aside.exists():
        aside, n = LOGS / f"{run}.{stamp}.{n}", n + 1
    os.replace(folder, aside)
    return aside


def resume_point(run: str) -> tuple[Path, dict[str, Any], str | None] | None:
    """The file to resume a run from, its contents, and a line to say when it is not last.ckpt.

    None for a run without checkpoints. Raises UserError when none of them can be read.
    """
    folder = LOGS / run / "checkpoints"
    problem = None
    for name in ("last.ckpt", checkpoints.PREVIOUS, "best.ckpt"):
        path = folder / name
        if not path.exists():
            continue
        try:
            state = checkpoints.read(path)
        except UserError as error:
            problem = problem or error
            continue
        if name == "last.ckpt":
            return path, state, None
        return path, state, f"{problem or f'{folder}/last.ckpt is missing'}; going on from {path}"
    if problem:
        raise UserError(f"{problem}; --fresh true moves run {run} aside and starts anew")
    return None
