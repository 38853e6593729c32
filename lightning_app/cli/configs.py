"""Config files: finding them by path or name, reading and merging them; renamed options."""

import contextlib
import copy
import difflib
import os
import re
import sys
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import get_loader

from lightning_app.cli.parsing import not_a_group
from lightning_app.errors import UserError
from lightning_app.runs.folders import LOGS, check_run_name

RENAMED_OPTIONS = {  # old name: new name
    "data.rename": "data.replace_names",
    "schedule.windows": "data.window_schedule",
    "yardsticks": "baselines",
}
OLD_NAMES_END = "0.3"  # the version that removes this table
GROUPS = ("data", "model", "optim", "schedule", "trainer", "generate")  # of options, in a config


def project_configs(package: Path) -> Path:
    """The folder of the configs that come with the project: a wheel has it in the package, a
    checkout (and so an editable installation) next to it."""
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


PROJECT_CONFIGS = project_configs(Path(__file__).parent.parent)


def find_config(name: str) -> Path:
    """A config by path, or by the bare name of a file in ./configs or of one that comes with the
    project. An existing path takes precedence over a name, ./configs over the project's folder.

    Raises UserError if there is none (it suggests a similar name) and for a URL.
    """
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
    """The config files that come with the project."""
    return sorted(PROJECT_CONFIGS.glob("*.yaml"))


def split_configs(argv: list[str]) -> tuple[list[Path], list[str]]:
    """Take the --config options out of a command line.

    Returns the paths of the configs, and the other arguments in their order, with today's names in
    place of old ones. Old names, in the arguments or in a config, are reported on standard error.
    Raises UserError for a config that is missing or cannot be read.
    """
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
    rest, notes = rename_arguments(rest)
    for path in configs:
        notes += read_config(path)[1]
    if is_first_process():
        print(*(f"{note}\n" for note in notes), sep="", end="", file=sys.stderr)
    return configs, rest


def is_first_process() -> bool:
    """Whether this is the first of the processes that Lightning, torchrun or SLURM started."""
    return all(os.environ.get(k, "0") == "0" for k in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))


def rename_arguments(argv: list[str]) -> tuple[list[str], list[str]]:
    """The command line with today's names of options, and a line about each old name in it.

    Raises UserError where an option is given under both names.
    """
    renamed, notes = [], []
    given = {re.split(r"\+?=|\+$", argument)[0] for argument in argv}
    for argument in argv:
        found = re.fullmatch(r"--([\w.]+)(\+?(?:=.*)?)", argument, re.DOTALL)
        if found and (new := RENAMED_OPTIONS.get(found[1])):
            notes.append(renaming_note(f"--{found[1]}", f"--{new}", f"--{new}" in given))
            argument = f"--{new}{found[2]}"
        renamed.append(argument)
    return renamed, list(dict.fromkeys(notes))


def rename_values(values: dict[str, Any], path: Path) -> tuple[dict[str, Any], list[str]]:
    """A config's values under today's names of options, and a line about each old name in it.

    Raises UserError where an option is given under both names. `path` is named in the lines.
    """
    renamed, notes = copy.deepcopy(values), []
    for old, new in RENAMED_OPTIONS.items():
        old_group, _, old_key = old.rpartition(".")
        source = renamed.get(old_group) if old_group else renamed
        if not isinstance(source, dict) or old_key not in source:
            continue
        new_group, _, new_key = new.rpartition(".")
        target = renamed.setdefault(new_group, {}) if new_group else renamed
        notes.append(renaming_note(f"{path}: {old}", new, new_key in target))
        target[new_key] = source.pop(old_key)
        if not source:
            del renamed[old_group]
    return renamed, notes


def renaming_note(old: str, new: str, both: bool) -> str:
    """The line about an old name. Raises UserError where the new name is given too (`both`)."""
    if both:
        raise UserError(f"{old} is the old name of {new}; give only {new}")
    return f"{old} is now {new}; the old name works until version {OLD_NAMES_END}"


def read_config(path: Path) -> tuple[dict[str, Any], list[str]]:
    """A config's values under today's names of options, and a line about each old name in it.

    A group without values (`data:` and nothing below it) is left out. Raises UserError for broken
    YAML, for a value in place of a group, and for an option given under its old and its new name.
    """
    try:
        text = path.read_text(encoding="utf-8")
        values = get_loader("yaml")(text) or {}  # as the parser reads it: 1e-3 is a number
        if isinstance(values, str):  # the loader reads a single line `data:` as a string
            values = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or " ".join(str(error).split())
        if isinstance(error, UnicodeDecodeError):
            problem = "not UTF-8 text"
        raise UserError(f"{path} is not valid YAML{where}: {problem}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} has no `key: value` lines; see configs/ for examples")
    for name in GROUPS:
        if name in values and values[name] is None:
            del values[name]
        elif name in values and not isinstance(values[name], dict):
            given = " ".join(f"{path}: {name}: {values[name]}".split())
            raise UserError(not_a_group(given, name))
    return rename_values(values, path)


def read_configs(paths: list[Path]) -> dict[str, Any]:
    """The values of all configs, merged; those of later files replace those of earlier ones.

    Raises UserError as `read_config` does.
    """
    merged: dict[str, Any] = {}
    for path in paths:
        merge_values(merged, read_config(path)[0])
    return merged


def config_group(paths: list[Path], name: str) -> dict[str, Any]:
    """The values under `name:` in the configs."""
    return read_configs(paths).get(name) or {}


def config_arguments(paths: list[Path]) -> list[str]:
    """The configs as arguments for a jsonargparse parser that has --config, in order.

    Each is `--config=YAML`, with the values that `read_config` returns, not a path: the file itself
    may have old names. A config without values is left out. The parser merges them, because
    it knows which options of a class (`class_path`) a later config replaces.
    """
    contents = [values for path in paths if (values := read_config(path)[0])]
    return [f"--config={dump_yaml(x)}" for x in contents]


class QuotedDumper(yaml.SafeDumper):
    """Puts quotes around a string that the parser would read as something else, such as "1e5": for
    PyYAML it is a string, for jsonargparse a number."""


def represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    plain = False
    with contextlib.suppress(yaml.YAMLError, ValueError):
        plain = get_loader("yaml")(text) == text
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if plain else "'")


QuotedDumper.add_representer(str, represent_text)


def dump_yaml(values: dict[str, Any]) -> str:
    """Values as YAML from which jsonargparse reads the same values."""
    return yaml.dump(values, Dumper=QuotedDumper, sort_keys=False)


def merge_values(into: dict[str, Any], values: dict[str, Any]) -> None:
    """Put `values` into `into`, in place; nested mappings are merged key by key."""
    for key, value in values.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            merge_values(into[key], value)
        else:
            into[key] = copy.deepcopy(value)  # YAML aliases share objects


def run_name(run: str | None, configs: list[Path]) -> str | None:
    """The name of the run that a command is about: the value of --run, else the name of the last
    config without its ending; for a run's own config.yaml, the name of that run. None without both.

    Raises UserError for a name that a folder cannot have.
    """
    if run is not None:
        return check_run_name(run)
    if not configs:
        return None
    path = configs[-1].resolve()
    if path.name == "config.yaml" and path.parent.parent == LOGS.resolve():
        return check_run_name(path.parent.name)
    return check_run_name(path.stem)
