"""Laws of the Trainer's flags: what has no meaning in steps is refused, with the remedy."""

import inspect
import math

import pytest
from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch import Trainer

from lightning_app.cli.parsing import Parser
from lightning_app.cli.trainer_flags import (
    EVALUATION_DEFAULTS,
    add_trainer_flags,
    check_flags,
    make_trainer,
)
from lightning_app.errors import UserError

DEFAULTS = {p.name: p.default for p in inspect.signature(Trainer).parameters.values()}
ACCEPTED = DEFAULTS | {
    "max_epochs": None,
    "min_epochs": None,
    "max_steps": 20,
    "check_val_every_n_epoch": None,
    "val_check_interval": 10,
    "accumulate_grad_batches": 1,
    "enable_checkpointing": None,
    "gradient_clip_val": None,
    "num_sanity_val_steps": 0,
    "log_every_n_steps": 5,
    "overfit_batches": 0.0,
    "limit_train_batches": None,
    "barebones": False,
    "strategy": "auto",
}


def refusal(**flags) -> str:
    with pytest.raises(UserError) as error:
        check_flags(Namespace(**ACCEPTED | flags))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"max_epochs": -1, "min_epochs": 0},
        {"val_check_interval": 12, "accumulate_grad_batches": 3},
        {"gradient_clip_val": 0},
        {"gradient_clip_val": 0.5},
        {"enable_checkpointing": True},
        {"overfit_batches": 2},
        {"overfit_batches": 1.0},
    ],
)
def test_flags_that_count_in_steps_are_accepted(flags):
    check_flags(Namespace(**ACCEPTED | flags))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"max_epochs": 3}, ["--trainer.max_epochs", "--trainer.max_steps"]),
        ({"min_epochs": 1}, ["--trainer.min_epochs", "--trainer.max_steps"]),
        ({"max_steps": 0}, ["--trainer.max_steps is 0", "at least 1"]),
        ({"max_steps": -1}, ["--trainer.max_steps is -1"]),
        (
            {"check_val_every_n_epoch": 1},
            ["--trainer.check_val_every_n_epoch", "--trainer.val_check_interval"],
        ),
        *(
            ({"val_check_interval": value}, [f"--trainer.val_check_interval is {value!r}", "whole"])
            for value in (0, -1, 0.5, 1.0, True, "00:00:10:00", None)
        ),
        ({"accumulate_grad_batches": 0}, ["--trainer.accumulate_grad_batches is 0"]),
        (
            {"val_check_interval": 10, "accumulate_grad_batches": 3},
            ["val_check_interval 10", "accumulate_grad_batches 3", "multiple"],
        ),
        ({"enable_checkpointing": False}, ["enable_checkpointing", "--trainer.fast_dev_run"]),
        ({"gradient_clip_val": -1}, ["gradient_clip_val is -1", "0 for no limit"]),
        ({"gradient_clip_val": math.nan}, ["gradient_clip_val is nan"]),
        ({"num_sanity_val_steps": 2}, ["num_sanity_val_steps", "--trainer.fast_dev_run"]),
        ({"log_every_n_steps": 0}, ["log_every_n_steps is 0", "--trainer.logger false"]),
        ({"log_every_n_steps": None}, ["log_every_n_steps is None"]),
        ({"overfit_batches": 0.5}, ["--trainer.overfit_batches is 0.5", "whole number"]),
    ],
)
def test_other_flags_are_refused_with_a_remedy(flags, words):
    line = refusal(**flags)
    for word in words:
        assert word in line


def parsed(*args: str) -> Namespace:
    parser = Parser(prog="main.py try")
    add_trainer_flags(parser)
    return parser.instantiate(parser.parse_args(args)).trainer


def test_evaluation_has_defaults_of_its_own_which_flags_override():
    flags = parsed()
    assert {name: flags[name] for name in EVALUATION_DEFAULTS} == EVALUATION_DEFAULTS
    assert parsed("--trainer.precision", "bf16-mixed").precision == "bf16-mixed"


def test_a_class_is_given_by_its_name_with_its_options(tmp_path):
    save_dir = str(tmp_path)
    logger = parsed("--trainer.logger=CSVLogger", f"--trainer.logger.save_dir={save_dir}").logger
    assert type(logger).__name__ == "CSVLogger"
    assert logger.save_dir == save_dir


def test_every_argument_of_the_trainer_is_a_flag():
    parser = ArgumentParser()
    add_trainer_flags(parser)
    names = {key.removeprefix("trainer.") for key in parser.get_defaults().keys()}  # noqa: SIM118
    assert set(Trainer.__init__.__wrapped__.__annotations__) - {"return"} <= names


def test_flags_make_a_trainer():
    trainer = make_trainer(dict(parsed("--trainer.accelerator", "cpu", "--trainer.devices", "1")))
    assert trainer.loggers == []
    assert trainer.precision == "32-true"


@pytest.mark.parametrize(
    "flags", [{"accelerator": "gpux"}, {"precision": "12"}, {"accelerator": "cpu", "devices": 0}]
)
def test_what_lightning_refuses_is_a_user_error(flags):
    with pytest.raises(UserError, match=r"^--trainer"):
        make_trainer(DEFAULTS | flags)
