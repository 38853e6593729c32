"""The Trainer's flags: which make sense here, and their errors in one line."""

from typing import Any

from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_app.errors import UserError

SCORING = {
    "precision": "32-true",  # the figure is exact, so are the products
    "logger": False,  # no empty runs in TensorBoard
    "enable_checkpointing": False,
    "enable_model_summary": False,
    "use_distributed_sampler": False,  # batches know their process themselves
}


def check_flags(trainer: Namespace) -> None:
    """Refuse, by UserError, flags that make no sense where one counts in steps."""
    if trainer.max_epochs not in (None, -1) or trainer.min_epochs not in (None, 0):
        raise UserError(
            "--trainer.max_epochs and min_epochs mean nothing here: a text is one stream of "
            "windows; use --trainer.max_steps"
        )
    if trainer.max_steps < 1:
        raise UserError(f"--trainer.max_steps is {trainer.max_steps}; it must be at least 1")
    if trainer.check_val_every_n_epoch is not None:
        raise UserError(
            "--trainer.check_val_every_n_epoch means nothing here; use "
            "--trainer.val_check_interval, in batches"
        )
    interval, accumulate = trainer.val_check_interval, trainer.accumulate_grad_batches
    if not isinstance(interval, int) or isinstance(interval, bool) or interval < 1:
        raise UserError(
            f"--trainer.val_check_interval is {interval!r}; give a whole number of batches"
        )
    if accumulate < 1:
        raise UserError(f"--trainer.accumulate_grad_batches is {accumulate}; at least 1")
    if interval % accumulate:
        raise UserError(
            f"--trainer.val_check_interval {interval} is not a multiple of "
            f"--trainer.accumulate_grad_batches {accumulate}: validation would fall inside a step"
        )
    if trainer.enable_checkpointing is False:
        raise UserError(
            "--trainer.enable_checkpointing false would lose the run; to try something without a "
            "trace use --trainer.fast_dev_run true"
        )
    if not (trainer.gradient_clip_val or 0) >= 0:
        raise UserError(
            f"--trainer.gradient_clip_val is {trainer.gradient_clip_val}; give the largest norm "
            "that a gradient may have, like 1, or 0 for any"
        )
    if trainer.num_sanity_val_steps != 0:
        raise UserError(
            "--trainer.num_sanity_val_steps would score weights before any training; to try "
            "everything without a trace use --trainer.fast_dev_run true"
        )
    if not isinstance(trainer.log_every_n_steps, int) or trainer.log_every_n_steps < 1:
        raise UserError(
            f"--trainer.log_every_n_steps is {trainer.log_every_n_steps}; at least 1 (no log at "
            "all: --trainer.logger false)"
        )
    if not float(trainer.overfit_batches).is_integer():
        raise UserError("--trainer.overfit_batches takes a whole number of batches here")


def add_trainer_flags(parser: ArgumentParser) -> None:
    parser.add_class_arguments(Trainer, "trainer", instantiate=False)
    parser.set_defaults({f"trainer.{name}": value for name, value in SCORING.items()})


def make_trainer(flags: dict[str, Any]) -> Trainer:
    """Raises UserError for flags that Lightning refuses: it knows them best."""
    try:
        return Trainer(**flags)
    except (MisconfigurationException, ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"--trainer: {error}") from error
