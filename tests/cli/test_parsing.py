"""Laws of error lines: they name the option, the value and the remedy, in one line.

The messages are jsonargparse's own, made by real parsers, so an upgrade that words them differently
fails here.
"""

from dataclasses import dataclass
from typing import Literal

import pytest
from jsonargparse.typing import (
    ClosedUnitInterval,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)

from lightning_app.cli.parsing import (
    TYPE_NAMES,
    FriendlyErrors,
    Parser,
    Seed,
    class_hint,
    explain_parser_error,
    instantiate,
    known_keys,
    not_a_group,
    suggestion,
    take_texts,
)
from lightning_app.errors import UserError
from lightning_app.training.optimizer import BelowOne, Decay, Rate
from tests.helpers import refusal


class Device:
    """A class that an option may name."""

    def __init__(self, speed: Literal["slow", "fast"] = "slow", config: str = "") -> None:
        self.speed, self.config = speed, config


@dataclass
class ModelOptions:
    """A group of options.

    Args:
        n_layer: Layers.
        n_head: Heads.
        name: A choice.
    """

    n_layer: PositiveInt = 4
    n_head: PositiveInt | None = None
    name: Literal["cosine", "linear"] = "linear"


TYPES = {
    "bool": bool,
    "int": int,
    "float": float,
    "list": list[int],
    "PositiveInt": PositiveInt,
    "NonNegativeInt": NonNegativeInt,
    "PositiveFloat": PositiveFloat,
    "NonNegativeFloat": NonNegativeFloat,
    "ClosedUnitInterval": ClosedUnitInterval,
    "BelowOne": BelowOne,
    "Rate": Rate,
    "Decay": Decay,
    "Seed": Seed,
}


@pytest.fixture
def parser() -> Parser:
    parser = Parser(prog="main.py try", description="A parser.")
    parser.add_class_arguments(ModelOptions, "model")
    parser.add_argument("--compile", type=Literal["auto"] | bool, default="auto")
    parser.add_argument("--device", type=Device | None)
    for name, kind in TYPES.items():
        parser.add_argument(f"--a_{name.lower()}", type=kind)
    return parser


def error_line(parser: Parser, *args: str) -> str:
    with pytest.raises(UserError) as error:
        parser.parse_args(args)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_known_keys_are_the_options_with_a_value_those_of_groups_by_their_whole_name(parser):
    keys = known_keys(parser)
    assert {"config", "model.n_layer", "model.n_head", "model.name", "device"} <= set(keys)
    assert not {"help", "model"} & set(keys)


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ("--model.n_layers", "there is no option --model.n_layers; did you mean --model.n_layer?"),
        ("--n_layer", "there is no option --n_layer; did you mean --model.n_layer?"),
        ("--modle.n_layer", "there is no option --modle.n_layer; did you mean --model.n_layer?"),
        ("--zzzzzz", "there is no option --zzzzzz; --help lists them"),
        ("--model.n_l", "there is no option --model.n_l; did you mean --model.n_layer?"),
    ],
)
def test_an_unknown_option_is_named_with_the_nearest_one(parser, given, line):
    assert error_line(parser, given, "3") == line
    assert error_line(parser, f"{given}=3") == line


def test_options_cannot_be_abbreviated(parser):
    assert "--comp" in error_line(parser, "--comp", "true")


@pytest.mark.parametrize("name", TYPES)
def test_a_value_of_the_wrong_type_is_named_with_what_the_type_takes(parser, name):
    option = f"--a_{name.lower()}"
    line = error_line(parser, option, "nothing_like_it")
    assert line == f"{option} is nothing_like_it; give {TYPE_NAMES[name]}"


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("positiveint", "0"),
        ("positiveint", "1.5"),
        ("nonnegativeint", "-1"),
        ("positivefloat", "0"),
        ("nonnegativefloat", "-0.5"),
        ("closedunitinterval", "1.5"),
        ("belowone", "1"),
        ("rate", "inf"),
        ("rate", "0"),
        ("decay", "-1"),
        ("rate", "1e38"),
        ("decay", "1e38"),
        ("seed", "-1"),
        ("seed", str(2**63)),
    ],
)
def test_a_value_out_of_range_is_named_with_the_range(parser, option, value):
    needed = {name.lower(): text for name, text in TYPE_NAMES.items()}[option]
    assert error_line(parser, f"--a_{option}", value) == f"--a_{option} is {value}; give {needed}"


def test_several_types_are_joined_by_or(parser):
    line = error_line(parser, "--model.n_head", "0")
    assert line == "--model.n_head is 0; give a whole number above 0 or null"
    assert error_line(parser, "--compile", "maybe").endswith("give 'auto' or true or false")


def test_choices_are_listed(parser):
    line = error_line(parser, "--model.name", "square")
    assert line == "--model.name is square; give 'cosine', 'linear'"


def test_a_missing_value_and_a_stray_word_are_named(parser):
    assert error_line(parser, "--model.n_layer") == "--model.n_layer needs a value"
    line = error_line(parser, "fast")
    assert line == "unexpected argument 'fast'; options are written --name value"


def test_a_required_option_is_named():
    parser = Parser(prog="main.py try")
    parser.add_argument("--to", type=str, required=True)
    assert "--to is required" in error_line(parser)


def test_a_value_in_place_of_a_group_names_the_group(parser):
    line = error_line(parser, "--model", "big")
    assert line == "--model big: model is a group of options; --help lists them"
    assert not_a_group("--data my.txt", "data").endswith("did you mean --data.corpus?")


def test_a_class_that_is_not_there_and_its_options_are_named(parser):
    assert error_line(parser, "--device", "Nowhere").startswith(
        "--device: there is no class Nowhere"
    )
    path = f"{Device.__module__}.Device"
    given = f'{{"class_path": "{path}", "init_args": {{"speed": "slower"}}}}'
    line = error_line(parser, "--device", given)
    assert line == "--device.speed is slower; give 'slow', 'fast'"
    line = error_line(parser, "--device", path, "--device.sped", "slow")
    assert line == "there is no option --device.sped; did you mean --device.speed?"
    device = parser.instantiate(
        parser.parse_args(["--device", path, "--device.speed", "fast", "--device.config", "x"])
    ).device
    assert (device.speed, device.config) == ("fast", "x")


@pytest.mark.parametrize(
    ("config", "line"),
    [
        (
            "model: {n_layers: 3}",
            "there is no option --model.n_layers; did you mean --model.n_layer?",
        ),
        (
            "modle: {n_layer: 3}",
            "there is no option --modle.n_layer; did you mean --model.n_layer?",
        ),
        ("model: {n_layer: two}", "--model.n_layer is two; give a whole number above 0"),
    ],
)
def test_a_mistake_in_a_config_has_the_same_line_as_on_the_command_line(config, line, tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text(config)
    parser = FriendlyErrors(prog="main.py try")
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(ModelOptions, "model")
    for given in (str(path), config):  # as `config_arguments` gives it
        assert error_line(parser, "--config", given) == line


def test_another_message_is_left_in_one_line():
    assert explain_parser_error("something\n   else.", []) == "something else"


def test_a_suggestion_prefers_a_near_name_to_the_same_name_in_another_group():
    keys = ["data.seed", "model.n_layer", "seed_everything"]
    assert suggestion("seed", keys) == "; did you mean --data.seed?"
    assert suggestion("model.layer", keys) == "; did you mean --model.n_layer?"
    assert suggestion("qqqq", keys) == "; --help lists them"


def test_configs_are_read_from_disk_only():
    fsspec = pytest.importorskip("fsspec")
    import lightning.pytorch.cli  # noqa: F401  (allows other file systems)

    with fsspec.open("memory://a.yaml", "w") as file:
        file.write("model: {n_layer: 3}")
    parser = FriendlyErrors(prog="main.py try")
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(ModelOptions, "model")
    assert "a.yaml" in error_line(parser, "--config", "memory://a.yaml")


def test_texts_are_taken_literally_and_the_rest_is_left():
    options = ("--prompt", "--stop")
    argv = ["--prompt", "-x", "--stop", "--", "--run", "a", "--prompt=b=c"]
    assert take_texts(argv, options) == ({"prompt": "b=c", "stop": "--"}, ["--run", "a"])
    with pytest.raises(UserError, match=r"^--prompt needs a value"):
        take_texts(["--prompt"], options)


class Refusing:
    """A class that refuses one of its options."""

    def __init__(self, size: int = 1) -> None:
        if size > 1:
            raise ValueError("size is too large\nand more")
        if size < 0:
            raise ModuleNotFoundError("no such module", name="absent")


def test_what_a_constructor_refuses_names_the_option_and_the_class():
    parser = Parser(prog="main.py try")
    parser.add_argument("--parts", type=list[Refusing] | Refusing | None)
    path = f"{Refusing.__module__}.Refusing"
    config = parser.parse_args(["--parts+=" + path, "--parts.size=2"])
    assert refusal(instantiate, parser, config) == "--parts Refusing: size is too large"
    config = parser.parse_args(["--parts", path, "--parts.size=-1"])
    with pytest.raises(ModuleNotFoundError):
        instantiate(parser, config)


@pytest.mark.parametrize(
    ("option", "given", "end"),
    [
        ("--trainer.logger", "tensorboard", "did you mean TensorBoardLogger?"),
        ("--trainer.logger", "csv", "did you mean CSVLogger?"),
        ("--trainer.logger", "CSVLoger", "did you mean CSVLogger?"),
        ("--trainer.logger", "wandb", "did you mean WandbLogger?"),
        ("--trainer.callbacks", "EarlyStop", "did you mean EarlyStopping?"),
        ("--trainer.callbacks", "qqqq", "Lightning has "),
        ("--device", "tensorboard", ""),
    ],
)
def test_a_class_that_lightning_does_not_have_suggests_one_that_it_has(option, given, end):
    assert end in class_hint(option, given)
