"""Config files: found by path or name, read, merged."""

import copy
import difflib
from pathlib import Path
from typing import Any

import yaml

from lightning_app.cli.parsing import not_a_group
from lightning_app.errors import UserError
from lightning_app.runs.folders import (
    LOGS,
    check_run_name,
)

GROUPS = ("data", "model", "optim", "schedule", "trainer", "generate")  # of options, in a config
PROJECT_CONFIGS = Path(__file__).parent.parent.parent / "configs"


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
    known = sorted({p.stem for p in [*Path("configs").glob("*.yaml"), *shipped_configs()]})
    near = difflib.get_close_matches(Path(name).stem, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"configs/ has {', '.join(known) or 'none'}"
    raise UserError(f"--config {name} does not exist; {hint}")


def shipped_configs() -> list[Path]:
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
        merge_values(merged, values)
    return merged


def config_group(paths: list[Path], name: str) -> dict[str, Any]:
    """The values under `name:` in the configs."""
    return read_configs(paths).get(name) or {}


def merge_values(into: dict[str, Any], values: dict[str, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            merge_values(into[key], value)
        else:
            into[key] = copy.deepcopy(value)  # YAML aliases share objects


def run_name(run: str | None, configs: list[Path]) -> str | None:
    """--run, else the last config's stem; for a run's own config.yaml, that run."""
    if run is not None:
        return check_run_name(run)
    if not configs:
        return None
    path = configs[-1].resolve()
    if path.name == "config.yaml" and path.parent.parent == LOGS.resolve():
        return check_run_name(path.parent.name)
    return check_run_name(path.stem)
