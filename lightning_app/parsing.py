"""jsonargparse, with errors that are one line, name the thing and suggest the remedy."""

import difflib
import re
from typing import NoReturn

from jsonargparse import ArgumentParser, set_parsing_settings

from lightning_app.errors import UserError

# A config is read from disk only: never fetched. (LightningCLI would turn fetching on.)
set_parsing_settings(config_read_mode_fsspec_enabled=False)


class FriendlyErrors:
    """Mixin for a parser: its errors are UserErrors, and its usage is a line."""

    def __init__(self, *args, prog: str, **kwargs) -> None:
        usage = f"{prog} [--config CONFIG] [--option VALUE ...]"
        kwargs |= {"prog": prog, "usage": usage, "allow_abbrev": False}
        super().__init__(*args, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise UserError(tidy(message, known_keys(self))) from ex


class Parser(FriendlyErrors, ArgumentParser):
    """For the commands that do not need Lightning."""


# How jsonargparse says that it does not know an option, on the command line and in a config.
UNKNOWN = (
    r"[Uu]nrecognized arguments?: --([\w.]+)",
    r"[Kk]ey [\"'`]?([\w.]+)[\"'`]? is not expected",
    r"[Nn]o action for key [\"'`]?([\w.]+)",
)


def known_keys(parser: ArgumentParser) -> list[str]:
    return [
        option.removeprefix("--")
        for action in parser._actions
        for option in action.option_strings
        if option.startswith("--")
    ]


def tidy(message: str, keys: list[str]) -> str:
    """jsonargparse's message in one line, with the nearest key where one is unknown."""
    text = " ".join(message.split()).removesuffix(".")
    text = re.sub(r"^Parser key \"?([\w.]+)\"?:", r"--\1:", text)
    text = re.sub(r"^Problem in config file .*?: ", "", text)
    text = re.sub(
        r"Not of type \w+: (\S+) does not conform to restriction v(.*)", r"\1 is not \2", text
    )
    text = re.sub(r"Expected a typing.Literal\[(.*)\]. Got value: (.*)", r"\2 is none of \1", text)
    text = re.sub(r"the following arguments are required: (\w+)", r"--\1 is required", text)
    text = re.sub(r"Group '(.*)' does not accept option '(.*)'", r"No action for key \1.\2", text)
    for pattern in UNKNOWN:
        if found := re.search(pattern, text):
            return f"there is no option --{found[1]}" + suggestion(found[1], keys)
    if found := re.match(r"[Uu]nrecognized arguments?: (\S+)", text):
        return f"unexpected argument {found[1]!r}; options are written --name value"
    return text


def suggestion(unknown: str, keys: list[str]) -> str:
    near = difflib.get_close_matches(unknown, keys, n=1, cutoff=0.6)
    if not near:  # right name, wrong group: --n_layer for --model.n_layer
        last = unknown.split(".")[-1]
        near = [k for k in keys if k.split(".")[-1] == last] or difflib.get_close_matches(
            last, [k.split(".")[-1] for k in keys], n=1
        )
    return f"; did you mean --{near[0]}?" if near else "; --help lists them"
