"""jsonargparse, with errors that are one line, name the thing and suggest the remedy."""

import difflib
import re
from typing import NoReturn

from jsonargparse import ArgumentParser, set_parsing_settings

from lightning_app.errors import UserError

# A config is read from disk only: never fetched. (LightningCLI would turn fetching on.)
set_parsing_settings(config_read_mode_fsspec_enabled=False)


class FriendlyErrors:
    """Mixin for a parser: its errors are UserErrors."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise UserError(tidy(message, known_keys(self))) from ex


class Parser(FriendlyErrors, ArgumentParser):
    """For the commands that do not need Lightning."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, allow_abbrev=False, default_env=False, **kwargs)


def known_keys(parser: ArgumentParser) -> list[str]:
    return [
        option.removeprefix("--")
        for action in parser._actions
        for option in action.option_strings
        if option.startswith("--")
    ]


def tidy(message: str, keys: list[str]) -> str:
    """jsonargparse's message in one line, with the nearest key where one is unknown."""
    text = " ".join(message.split())
    text = re.sub(r"^Parser key \"?([\w.]+)\"?:", r"--\1:", text)
    text = re.sub(r"^Problem with given class_path '?[\w.]+'?:", "", text).strip()
    text = text.removesuffix(".")
    unknown = None
    if found := re.match(r"[Uu]nrecognized arguments?: (\S+)", text):
        unknown = found[1].split("=")[0].removeprefix("--")
        text = (
            f"there is no option --{unknown}"
            if found[1].startswith("-")
            else (f"unexpected argument {found[1]!r}; options are written --name value")
        )
    elif (found := re.search(r"[Kk]ey [\"'`]?([\w.]+)[\"'`]? is not expected", text)) or (
        found := re.search(r"[Nn]o action for key [\"'`]?([\w.]+)", text)
    ):
        unknown = found[1]
        text = f"there is no option --{unknown}"
    if unknown is not None and text.startswith("there"):
        text += suggestion(unknown, keys)
    return text


def suggestion(unknown: str, keys: list[str]) -> str:
    near = difflib.get_close_matches(unknown, keys, n=1, cutoff=0.6)
    if not near:  # right name, wrong group: --n_layer for --model.n_layer
        last = unknown.split(".")[-1]
        near = [k for k in keys if k.split(".")[-1] == last] or difflib.get_close_matches(
            last, [k.split(".")[-1] for k in keys], n=1
        )
    return f"; did you mean --{near[0]}?" if near else "; --help lists them"
