"""Argument parsers whose errors are one line that names the option and the remedy.

jsonargparse has no error codes, so its messages are recognised by their words: the patterns below
are those of versions 4.53 to 5, and tests/cli/test_parsing.py fails when a message changes.
"""

import difflib
import re
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, Namespace, set_parsing_settings
from jsonargparse.typing import restricted_number_type

from lightning_app.errors import UserError

Seed = restricted_number_type("Seed", int, [(">=", 0), ("<", 2**63)])


class FriendlyErrors(ArgumentParser):
    """A parser that raises UserError for a mistake on the command line or in a config.

    `prog` is the command as typed, such as "main.py fit". It is None in parsers that jsonargparse
    creates from this class, for the options of a class that an option names (`class_path`).
    Options cannot be abbreviated.
    """

    def __init__(self, *args: Any, prog: str | None = None, **kwargs: Any) -> None:
        # Configs are read from disk, never downloaded; importing LightningCLI allows downloads.
        set_parsing_settings(config_read_mode_fsspec_enabled=False)
        usage = f"{prog} [--config CONFIG] [--option VALUE ...]"
        kwargs |= {"prog": prog, "usage": usage, "allow_abbrev": False}
        super().__init__(*args, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise UserError(explain_parser_error(message, known_keys(self))) from ex


def instantiate(parser: ArgumentParser, config: Namespace) -> Namespace:
    """The options with every class that they describe built.

    Raises the ImportError of a package that is not installed, and UserError for what else a class
    refuses.
    """
    try:
        return parser.instantiate(config)
    except UserError:
        raise
    except Exception as error:
        causes: list[BaseException] = [error]
        while (cause := causes[-1].__cause__) is not None:
            causes.append(cause)
        for cause in causes:
            if isinstance(cause, ImportError):
                raise cause from None
        found = re.search(r"Problem with given class_path '(.*?)':\s*([^\n]*)", str(error))
        if found is None:
            raise
        raise UserError(f"{found[1]}: {found[2]}") from error


class Parser(FriendlyErrors):
    """The parser of every command except fit, whose parser is LightningCLI's.

    `configs.split_configs` takes --config out of the command line before parsing; the option is
    defined here for --help.
    """

    def __init__(self, *args: Any, prog: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, prog=prog, **kwargs)
        if prog is not None:
            config = (
                "A config: a path, or a name in configs/; values of other commands are ignored."
            )
            self.add_argument("--config", type=str | None, help=config)


def known_keys(parser: ArgumentParser) -> list[str]:
    """The names of all options that have a value, such as `model.n_layer`."""
    return list(parser.get_defaults().keys())


# jsonargparse's messages about an unknown option, on the command line and in a config.
UNKNOWN_OPTION = (
    r"[Uu]nrecognized arguments?: --([\w.]+)",
    r"[Kk]ey [\"'`]?([\w.]+)[\"'`]? is not expected",
    r"[Nn]o action for key [\"'`]?([\w.]+)",
    r"^Option '([\w.]+)' is not accepted",
)
# The values that a type accepts.
TYPE_NAMES = {
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
    "BelowOne": "a number from 0 to below 1",
    "Rate": "a finite number above 0",
    "Decay": "a finite number, 0 or more",
    "Seed": "a whole number, 0 or more and below 2**63",
}
# Where jsonargparse's message names the types an option has: choices, or the name of a type.
EXPECTED_TYPE = (
    r"Expected an? typing\.Literal\[(.*?)\]|(?:Expected an? <class '|Not of type )(?:\w+\.)*(\w+)"
)
# Where it repeats the value that was given.
GIVEN_VALUE = (
    r"Given value: (.*)$",
    r"Got value: (.*)$",
    r"Not of type \w+: (\S+) does not conform",
    r"(?:base 10|to float): '(.*)'$",
)


def explain_wrong_type(text: str) -> str | None:
    """One line for a value of the wrong type; None where `text` is another message."""
    found = re.match(r"(--[\w.]+): (.*)", text)
    if not found or not (types := re.findall(EXPECTED_TYPE, found[2])):
        return None
    key, problem = found.groups()
    # an error in a class's own options, which `explain_parser_error` has already explained
    if inner := re.search(r"there is no option --([\w.]+)", problem):
        return f"there is no option {key}.{inner[1]}"
    if inner := re.search(r"Errors: - --([\w.]+ .*?) - ", problem):
        return f"{key}.{inner[1]}"
    if wrong := re.search(r"Problem with given class_path (.*?) - ", problem):
        return f"{key}: {wrong[1]}"
    if name := re.search(r"Expected a dot import path string: (\S+)", problem):
        return f"{key}: there is no class {name[1]}"
    value = next((v[1] for pattern in GIVEN_VALUE if (v := re.search(pattern, problem))), None)
    names = [literal or TYPE_NAMES.get(name, name) for literal, name in types]
    *others, last = dict.fromkeys(names)
    needed = f"{', '.join(others)} or {last}" if others else last
    return f"{key} is {value}; give {needed}" if value else f"{key} takes {needed}"


def not_a_group(given: str, group: str) -> str:
    """One line for a single value, `given`, where a group of options is expected."""
    first = {"data": "corpus", "optim": "name", "schedule": "name"}.get(group)
    remedy = f"did you mean --{group}.{first}?" if first else "--help lists them"
    return f"{given}: {group} is a group of options; {remedy}"


def explain_parser_error(message: str, keys: list[str]) -> str:
    """jsonargparse's message in one line; for an unknown option, with the nearest of `keys`."""
    text = " ".join(message.split()).removesuffix(".")
    text = re.sub(r"^Parser key \"?([\w.]+)\"?:", r"--\1:", text)
    text = re.sub(r"^Problem in config file .*?: ", "", text)
    if found := re.match(r"--(\w+): Unable to load config '(.*?)'", text):
        return not_a_group(f"--{found[1]} {found[2]}", found[1])
    if found := re.match(r"Subclasses are disabled for \w+, thus '(.*?)'", text):
        return f"class_path {found[1]} is not allowed here; give the options that --help lists"
    if line := explain_wrong_type(text):
        return line
    text = re.sub(r"argument (--[\w.]+): expected one argument", r"\1 needs a value", text)
    text = re.sub(r"the following arguments are required: (\w+)", r"--\1 is required", text)
    text = re.sub(r"Group '(.*)' does not accept option '(.*)'", r"No action for key \1.\2", text)
    for pattern in UNKNOWN_OPTION:
        if found := re.search(pattern, text):
            return f"there is no option --{found[1]}" + suggestion(found[1], keys)
    if found := re.match(r"[Uu]nrecognized arguments?: (\S+)", text):
        return f"unexpected argument {found[1]!r}; options are written --name value"
    return text


def suggestion(unknown: str, keys: list[str]) -> str:
    """The end of an error line: the option that was probably meant, or where to find it."""
    near = difflib.get_close_matches(unknown, keys, n=1, cutoff=0.6)
    if not near:  # right name, wrong group: --n_layer for --model.n_layer
        last = unknown.split(".")[-1]
        near = [k for k in keys if k.split(".")[-1] == last] or difflib.get_close_matches(
            last, [k.split(".")[-1] for k in keys], n=1
        )
    return f"; did you mean --{near[0]}?" if near else "; --help lists them"
