"""The Trainer's flags: which are accepted here, and their errors in one line."""

import difflib
from collections.abc import Sequence
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    GradientAccumulationScheduler,
    LearningRateFinder,
)
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_app.errors import UserError

EVALUATION_DEFAULTS = {  # of validate, test and predict, in place of the Trainer's own
    "precision": "32-true",  # scores are reported to six digits
    "logger": False,  # validate and test leave no run in TensorBoard
    "enable_checkpointing": False,
    "enable_model_summary": False,
    "use_distributed_sampler": False,  # CharDataModule gives each process its own batches
}
NOT_SUPPORTED: dict[type[Callback], str] = {
    LearningRateFinder: "parameter groups have rates of their own; use --optim.learning_rate and "
    "--optim.muon_learning_rate",
    BatchSizeFinder: "use --data.batch_size",
    GradientAccumulationScheduler: "a run keeps its global batch; use "
    "--trainer.accumulate_grad_batches",
}
MONITORED = (
    *(f"{split}/{name}" for split in ("val", "train") for name in ("loss", "perplexity", "bpc")),
    *("val/gap", "train/gradient_norm", "train/characters_per_second"),
)
STARTED_WITHOUT_MAIN = ("ddp_spawn", "ddp_fork", "ddp_notebook")  # names of strategies


def check_flags(trainer: Namespace) -> None:
    """Raises UserError for flags of `fit` that have no meaning here or are out of range.

    Training is counted in optimizer steps, and validation in micro-batches: a text is one endless
    stream of windows, without epochs.
    """
    if trainer.max_epochs not in (None, -1) or trainer.min_epochs not in (None, 0):
        raise UserError(
            "--trainer.max_epochs and --trainer.min_epochs are not supported: training is counted "
            "in steps; use --trainer.max_steps"
        )
    if trainer.max_steps < 1:
        raise UserError(f"--trainer.max_steps is {trainer.max_steps}; it must be at least 1")
    if trainer.check_val_every_n_epoch is not None:
        raise UserError(
            "--trainer.check_val_every_n_epoch is not supported: there are no epochs; use "
            "--trainer.val_check_interval, in batches"
        )
    interval, accumulate = trainer.val_check_interval, trainer.accumulate_grad_batches
    if not isinstance(interval, int) or isinstance(interval, bool) or interval < 1:
        raise UserError(
            f"--trainer.val_check_interval is {interval!r}; give a whole number of batches"
        )
    if accumulate < 1:
        raise UserError(f"--trainer.accumulate_grad_batches is {accumulate}; it must be at least 1")
    if interval % accumulate:
        raise UserError(
            f"--trainer.val_check_interval {interval} is not a multiple of "
            f"--trainer.accumulate_grad_batches {accumulate}: validation would fall inside a step"
        )
    if trainer.enable_checkpointing is False:
        raise UserError(
            "--trainer.enable_checkpointing false would save nothing of the run; to try a command "
            "without writing files use --trainer.fast_dev_run true"
        )
    if not (trainer.gradient_clip_val or 0) >= 0:
        raise UserError(
            f"--trainer.gradient_clip_val is {trainer.gradient_clip_val}; give the largest "
            "norm that a gradient may have, such as 1, or 0 for no limit"
        )
    if trainer.num_sanity_val_steps != 0:
        raise UserError(
            "--trainer.num_sanity_val_steps is not supported: it would report the loss of an "
            "untrained network; to try a command without writing files use "
            "--trainer.fast_dev_run true"
        )
    if not isinstance(trainer.log_every_n_steps, int) or trainer.log_every_n_steps < 1:
        raise UserError(
            f"--trainer.log_every_n_steps is {trainer.log_every_n_steps}; it must be at least 1 "
            "(to log nothing: --trainer.logger false)"
        )
    if not float(trainer.overfit_batches).is_integer():
        raise UserError(
            f"--trainer.overfit_batches is {trainer.overfit_batches}; give a whole number of "
            "batches"
        )
    limit = trainer.limit_train_batches
    if limit not in (None, 1.0) and (isinstance(limit, float) or limit < 1):
        raise UserError(
            f"--trainer.limit_train_batches is {limit}; the training text is an endless stream: "
            "give a whole number of batches, or use --trainer.max_steps"
        )
    if trainer.barebones:
        raise UserError(
            "--trainer.barebones true is not supported: it would switch off the log and the "
            "checkpoints of the run; to measure speed, see benchmarks/"
        )
    if isinstance(trainer.strategy, str) and trainer.strategy.startswith(STARTED_WITHOUT_MAIN):
        raise UserError(
            f"--trainer.strategy {trainer.strategy} is not supported: its processes do not begin "
            "with this command; use --trainer.strategy ddp"
        )


def check_callbacks(callbacks: Sequence[Callback]) -> None:
    """Raise UserError for callbacks of the user's that cannot work in a run."""
    for callback in callbacks:
        name = type(callback).__name__
        for kind, remedy in NOT_SUPPORTED.items():
            if isinstance(callback, kind):
                raise UserError(f"--trainer.callbacks {name} is not supported: {remedy}")
        monitor = getattr(callback, "monitor", None)
        if monitor is not None and monitor not in MONITORED:
            near = difflib.get_close_matches(monitor, MONITORED, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}? " if near else ""
            raise UserError(
                f"--trainer.callbacks {name} monitors {monitor}, which is not logged; {hint}"
                f"Known: {', '.join(MONITORED)}"
            )


def add_trainer_flags(parser: ArgumentParser) -> None:
    """Give a parser the options --trainer.*, with the defaults of a command that does not train."""
    parser.add_class_arguments(Trainer, "trainer", instantiate=False)
    parser.set_defaults({f"trainer.{name}": value for name, value in EVALUATION_DEFAULTS.items()})


def make_trainer(flags: dict[str, Any]) -> Trainer:
    """A Trainer with these arguments. Raises UserError for flags that Lightning refuses."""
    try:
        return Trainer(**flags)
    except (MisconfigurationException, ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"--trainer: {error}") from error
