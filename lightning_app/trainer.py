"""The Trainer of commands that only score or write, and errors of its flags in one line."""

from typing import Any

from jsonargparse import ArgumentParser
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


def add_trainer_flags(parser: ArgumentParser) -> None:
    parser.add_class_arguments(Trainer, "trainer", instantiate=False)
    parser.set_defaults({f"trainer.{name}": value for name, value in SCORING.items()})


def make_trainer(flags: dict[str, Any]) -> Trainer:
    """Raises UserError for flags that Lightning refuses: it knows them best."""
    try:
        return Trainer(**flags)
    except (MisconfigurationException, ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"--trainer: {error}") from error
