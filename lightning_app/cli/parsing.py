"""jsonargparse, with errors that are one line, name the thing and suggest the remedy."""

import difflib
import re
from typing import NoReturn

from jsonargparse import ArgumentParser, set_parsing_settings
from jsonargparse.typing import restricted_number_type

from lightning_app.errors import UserError

# A config is read from disk only: never fetched. (LightningCLI would turn fetching on.)
set_parsing_settings(config_read_mode_fsspec_enabled=False)


Seed = restricted_number_type("Seed", int, [(">=", 0), ("<", 2**63)])


class FriendlyErrors:
    """Mixin for a parser: its errors are UserErrors, and its usage is a line."""

    def __init__(self, *args, prog: str, **kwargs) -> None:
        usage = f"{prog} [--config CONFIG] [--option VALUE ...]"
        kwargs |= {"prog": prog, "usage": usage, "allow_abbrev": False}
        super().__init__(*args, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise UserError(explain_parser_error(message, known_keys(self))) from ex


class Parser(FriendlyErrors, ArgumentParser):
    """For the commands that do not need Lightning. `runs.split_configs` takes --config out of the
    command line first; here it is for --help."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        config = "A config by path, or by its name in configs/; what concerns this command is used."
        self.add_argument("--config", type=str | None, help=config)


# How jsonargparse says that it does not know an option, on the command line and in a config.
UNKNOWN = (
    r"[Uu]nrecognized arguments?: --([\w.]+)",
    r"[Kk]ey [\"'`]?([\w.]+)[\"'`]? is not expected",
    r"[Nn]o action for key [\"'`]?([\w.]+)",
    r"^Option '([\w.]+)' is not accepted",
)


def known_keys(parser: ArgumentParser) -> list[str]:
    return [
        option.removeprefix("--")
        for action in parser._actions
        for option in action.option_strings
        if option.startswith("--")
    ]


# What a value must be, by the type it is not of.
NEEDS = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "list": "a list",
    "dict": "a mapping",
    "NoneType": "null",
    "PositiveInt": "a whole number above 0",
    "NonNegativeInt": "a whole number, 0 or more",
    "PositiveFloat": "a number above 0",
    "NonNegativeFloat": "a number, 0 or more",
    "ClosedUnitInterval": "a number from 0 to 1",
    "Memory": "a number from 0 to below 1",
    "Rate": "a finite number above 0",
    "Decay": "a finite number, 0 or more",
    "Seed": "a whole number, 0 or more and below 2**63",
}
TYPE = (
    r"Expected an? typing\.Literal\[(.*?)\]|(?:Expected an? <class '|Not of type )(?:\w+\.)*(\w+)"
)
VALUE = (
    r"Given value: (.*)$",
    r"Got value: (.*)$",
    r"Not of type \w+: (\S+) does not conform",
    r"(?:base 10|to float): '(.*)'$",
)


def explain_wrong_type(text: str) -> str | None:
    """One line for a value of none of an option's types; None for another message."""
    found = re.match(r"(--[\w.]+): (.*)", text)
    if not found or not (types := re.findall(TYPE, found[2])):
        return None
    key, problem = found.groups()
    # of a class's own options, said by `explain_parser_error` before
    if inner := re.search(r"there is no option --([\w.]+)", problem):
        return f"there is no option {key}.{inner[1]}"
    if inner := re.search(r"Errors: - --([\w.]+ .*?) - ", problem):
        return f"{key}.{inner[1]}"
    if wrong := re.search(r"Problem with given class_path (.*?) - ", problem):
        return f"{key}: {wrong[1]}"
    if name := re.search(r"Expected a dot import path string: (\S+)", problem):
        return f"{key}: there is no class {name[1]}"
    value = next((v[1] for pattern in VALUE if (v := re.search(pattern, problem))), None)
    needed = list(dict.fromkeys(literal or NEEDS.get(kind, kind) for literal, kind in types))
    last = needed.pop()
    needed = f"{', '.join(needed)} or {last}" if needed else last
    return f"{key} is {value}; give {needed}" if value else f"{key} takes {needed}"


def not_a_group(given: str, group: str) -> str:
    """One line where a value stands in place of a group of options."""
    first = {"data": "corpus", "optim": "name", "schedule": "name"}.get(group)
    remedy = f"did you mean --{group}.{first}?" if first else "--help lists them"
    return f"{given}: {group} is a group of options; {remedy}"


def explain_parser_error(message: str, keys: list[str]) -> str:
    """jsonargparse's message in one line, with the nearest key where one is unknown."""
    text = " ".join(message.split()).removesuffix(".")
    text = re.sub(r"^Parser key \"?([\w.]+)\"?:", r"--\1:", text)
    text = re.sub(r"^Problem in config file .*?: ", "", text)
    if found := re.match(r"--(\w+): Unable to load config '(.*?)'", text):
        return not_a_group(f"--{found[1]} {found[2]}", found[1])
    if found := re.match(r"Subclasses are disabled for \w+, thus '(.*?)'", text):
        return f"class_path {found[1]} cannot stand here; give the options that --help lists"
    if line := explain_wrong_type(text):
        return line
    text = re.sub(r"argument (--[\w.]+): expected one argument", r"\1 needs a value", text)
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
