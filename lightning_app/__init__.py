"""A laboratory for character-level GPTs on PyTorch Lightning.

The public names below are imported on first use, so that `load` and what it returns need PyTorch
but not Lightning.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_app.data.datamodule import CharDataModule
    from lightning_app.data.tokenizer import Tokenizer
    from lightning_app.errors import UserError
    from lightning_app.generation.sampling import GenerateOptions
    from lightning_app.model.gpt import GPT, GPTConfig
    from lightning_app.runs.checkpoint import TrainedModel, load
    from lightning_app.training.module import CharGPT
    from lightning_app.training.optimizer import OptimOptions
    from lightning_app.training.schedules import ScheduleOptions

MODULES = {  # public name: its module
    "CharDataModule": "data.datamodule",
    "CharGPT": "training.module",
    "GPT": "model.gpt",
    "GPTConfig": "model.gpt",
    "GenerateOptions": "generation.sampling",
    "OptimOptions": "training.optimizer",
    "ScheduleOptions": "training.schedules",
    "Tokenizer": "data.tokenizer",
    "TrainedModel": "runs.checkpoint",
    "UserError": "errors",
    "load": "runs.checkpoint",
}

__all__ = [
    "GPT",
    "CharDataModule",
    "CharGPT",
    "GPTConfig",
    "GenerateOptions",
    "OptimOptions",
    "ScheduleOptions",
    "Tokenizer",
    "TrainedModel",
    "UserError",
    "load",
]


def __getattr__(name: str) -> Any:  # PEP 562
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
