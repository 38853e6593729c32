"""Argument parsers whose errors are one line that names the option and the remedy.

jsonargparse has no error codes, so its messages are recognised by their words: the patterns below
are those of versions 4.53 to 5, and tests/cli/test_parsing.py fails when a message changes.
"""

import difflib
import importlib
import inspect
import re
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, Namespace, set_parsing_settings
from jsonargparse.typing import restricted_number_type

from lightning_app.cli.explain import first_line
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
    refused: list[tuple[type, Exception]] = []

    def build(kind: type, *args: Any, **kwargs: Any) -> Any:
        try:
            if kind.__name__.startswith("XLA") and find_spec("torch_xla") is None:
                # Lightning's classes raise this too, but then fail while they are deleted
                raise ModuleNotFoundError(name="torch_xla")
            return kind(*args, **kwargs)
        except Exception as error:
            refused.append((kind, error))
            raise

    try:
        return parser.instantiate(config, instantiators=[(build, object, True)])
    except Exception:
        # jsonargparse's own error lists what every other type of the option expects
        for kind, error in refused:
            if isinstance(error, ImportError):
                raise error from None
            if option := option_of_class(config, kind):
                raise UserError(f"{option} {kind.__name__}: {first_line(error)}") from error
        raise


def option_of_class(config: Namespace, kind: type) -> str | None:
    """The option that names the class `kind`; None if none does."""
    for key, value in config.items():
        if re.search(rf"\b{kind.__name__}\b", str(value)):
            return f"--{key.removesuffix('.class_path')}"
    return None


def take_texts(argv: Sequence[str], options: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The values of these options, whose names begin with --, and the other arguments.

    For options that take any text: a parser would read "--", "-x", "null" and "1e5" as something
    else.
    """
    texts: dict[str, str] = {}
    rest: list[str] = []
    arguments = iter(argv)
    for argument in arguments:
        option, equals, value = argument.partition("=")
        if option not in options:
            rest.append(argument)
            continue
        text = value if equals else next(arguments, None)
        if text is None:
            raise UserError(f"{option} needs a value")
        texts[option.removeprefix("--")] = text
    return texts, rest


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
    "Rate": "a number above 0, at most 100",
    "Decay": "a number from 0 to 1000",
    "Seed": "a whole number, 0 or more and below 2**63",
    "timedelta": "a time, such as 0:30:00",
}
FRACTION = "a whole number of batches, or a fraction such as 0.5"
# What to give for options whose types would not help.
VALUES = {
    "--trainer.callbacks": "the name of a class, such as LearningRateMonitor",
    "--trainer.gradient_clip_val": "a number, 0 or more",
    "--trainer.limit_predict_batches": FRACTION,
    "--trainer.limit_test_batches": FRACTION,
    "--trainer.limit_train_batches": "a whole number of batches",
    "--trainer.limit_val_batches": FRACTION,
    "--trainer.logger": "true, false, or the name of a class, such as CSVLogger",
    "--trainer.overfit_batches": "a whole number of batches",
    "--trainer.plugins": "the name of a class, such as LightningEnvironment",
    "--trainer.precision": "one of 32-true, bf16-mixed, 16-mixed, bf16-true, 16-true, 64-true",
}
# Options that name a class: Lightning's package of such classes, and their base class.
CLASS_OPTIONS = {
    "--trainer.callbacks": ("lightning.pytorch.callbacks", "Callback"),
    "--trainer.logger": ("lightning.pytorch.loggers", "Logger"),
    "--trainer.plugins": ("lightning.pytorch.plugins", None),
    "--trainer.profiler": ("lightning.pytorch.profilers", "Profiler"),
    "--trainer.strategy": ("lightning.pytorch.strategies", "Strategy"),
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
    if not (found := re.match(r"(--[\w.]+): (.*)", text)):
        return None
    key, problem = found.groups()
    value = next((v[1] for pattern in GIVEN_VALUE if (v := re.search(pattern, problem))), None)
    if line := explain_wrong_class(key, problem, value):
        return line
    if not (types := re.findall(EXPECTED_TYPE, problem)):
        return None
    names = [literal or TYPE_NAMES.get(name, name) for literal, name in types]
    if "a number" in names:
        names = [name for name in names if name != "a whole number"]
    *others, last = dict.fromkeys(names)
    needed = VALUES.get(key) or (f"{', '.join(others)} or {last}" if others else last)
    return f"{key} is {value}; give {needed}" if value else f"{key} takes {needed}"


def explain_wrong_class(key: str, problem: str, value: str | None) -> str | None:
    """One line for an option `key` that names a class, where the class does not exist or one of its
    own options is wrong; None for another problem."""
    # errors in the class's own options, which `explain_parser_error` has already explained
    if inner := re.search(r"- --([\w.]+ (?:is|takes|needs) .*?)(?= - | Given value|$)", problem):
        return f"{key}.{inner[1]}"
    if inner := max(  # the one with a suggestion
        re.finditer(r"there is no option --([\w.]+)(?:; did you mean --([\w.]+)\?)?", problem),
        key=lambda match: match[2] is not None,
        default=None,
    ):
        hint = f"; did you mean {key}.{inner[2]}?" if inner[2] else ""
        return f"there is no option {key}.{inner[1]}{hint}"
    if inner := re.search(r"NestedArg\(key='([\w.]+)'", problem):
        return f"{key}.{inner[1]} is an option of a class; first give {key} with its name"
    if wrong := re.search(r"given class_path '(.*?)': (.*?)(?= - | Given value|$)", problem):
        if not re.search(r"has no attribute|No module named", wrong[2]):
            return f"{key} {wrong[1]}: {wrong[2]}"
        return f"{key}: there is no class {wrong[1]} ({wrong[2]})"
    if wrong := re.search(r"Expected a dot import path string: (\S+)", problem):
        return f"{key}: there is no class {wrong[1]}{class_hint(key, wrong[1])}"
    kinds = re.findall(r"Import path .*?does not correspond to a subclass of (\w+)", problem)
    if kinds and value:
        kinds = list(dict.fromkeys(kinds))
        return f"{key}: {value} is not a {' or '.join(kinds)}{class_hint(key, value)}"
    return None


def class_hint(option: str, given: str) -> str:
    """The end of a line about a class that an option cannot have: Lightning's class with the most
    similar name, or all of Lightning's. Empty for an option of another kind."""
    if option not in CLASS_OPTIONS:
        return ""
    package, base = CLASS_OPTIONS[option]
    module = importlib.import_module(package)
    kind = getattr(module, base) if base else object
    names = [
        name
        for name in module.__all__
        if issubclass(getattr(module, name), kind) and not inspect.isabstract(getattr(module, name))
    ]
    words = {name.lower(): name for name in names}
    words |= {name.removesuffix(base or "").lower(): name for name in names}
    near = difflib.get_close_matches(given.split(".")[-1].lower(), words, n=1)
    if not near:
        return f"; Lightning has {', '.join(name for name in names if name != base)}"
    by_default = " (fit logs to TensorBoard without this option)" * (near[0] == "tensorboard")
    return f"; did you mean {words[near[0]]}?{by_default}"


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
    text = re.sub(r"the following arguments are required: (\w+).*", r"--\1 is required", text)
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
