"""The Trainer's flags: which are accepted here, and their errors in one line."""

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    BatchSizeFinder,
    GradientAccumulationScheduler,
    LearningRateFinder,
    StochasticWeightAveraging,
    Timer,
)
from lightning.pytorch.plugins import CheckpointIO, Precision
from lightning.pytorch.strategies import StrategyRegistry
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_app import hardware
from lightning_app.cli.explain import first_line, missing_package
from lightning_app.cli.parsing import FRACTION
from lightning_app.errors import UserError
from lightning_app.lightning_internals import print_reports

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
    StochasticWeightAveraging: "it counts epochs, and there are none; use --optim.average_decay",
    BackboneFinetuning: "the network has no backbone; to start with another run's weights use "
    "--init_from",
}
MONITORED = (
    *(f"{split}/{name}" for split in ("val", "train") for name in ("loss", "perplexity", "bpc")),
    *("val/gap", "train/gradient_norm", "train/characters_per_second"),
)
PROFILERS = ("simple", "advanced", "pytorch", "xla")  # the names that Lightning accepts
STARTED_WITHOUT_MAIN = ("ddp_spawn", "ddp_fork", "ddp_notebook")  # names of strategies


def as_list(given: Any) -> list[Any]:
    """The value of a Trainer flag that may be one object, several or none, as a list."""
    return list(given) if isinstance(given, (list, tuple)) else [given] if given else []


def is_limit(value: Any) -> bool:
    """Whether a value is a number of batches or a fraction of them."""
    return value is None or (value >= 0 if isinstance(value, int) else 0 <= value <= 1)


# Flags whose type admits values that Lightning refuses: what is accepted, and what to give.
RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    **{f"limit_{split}_batches": (is_limit, FRACTION) for split in ("val", "test", "predict")},
    "limit_train_batches": (is_limit, "a whole number of batches"),
    "max_steps": (lambda n: n >= -1, "a whole number above 0"),
    "max_epochs": (
        lambda n: n is None or n >= -1,
        "-1: training is counted in steps; use --trainer.max_steps",
    ),
    "num_nodes": (lambda n: n >= 1, "a whole number above 0"),
    "fast_dev_run": (lambda n: n >= 0, "true, or a number of batches"),
    "min_steps": (lambda n: n is None or n >= 0, "a whole number, 0 or more"),
    "accumulate_grad_batches": (lambda n: n >= 1, "a whole number above 0"),
    "overfit_batches": (lambda n: n >= 0 and n == int(n), "a whole number of batches"),
    "gradient_clip_val": (
        lambda x: (x or 0) >= 0,
        "the largest norm that a gradient may have, such as 1, or 0 for no limit",
    ),
    "gradient_clip_algorithm": (lambda name: name in (None, "norm", "value"), "norm or value"),
    "reload_dataloaders_every_n_epochs": (lambda n: n >= 0, "a whole number, 0 or more"),
    "default_root_dir": (lambda path: not Path(path or "").is_file(), "a folder, not a file"),
    "max_time": (
        lambda time: time is None or is_duration(time),
        "days:hours:minutes:seconds above 0, such as 00:00:30:00",
    ),
    "profiler": (
        lambda x: not isinstance(x, str) or x.lower() in PROFILERS,
        "simple, advanced or pytorch, or the name of a class, such as SimpleProfiler",
    ),
}


def is_duration(given: Any) -> bool:
    """Whether a value is a time limit, longer than 0 seconds, as Lightning's Timer takes one."""
    try:
        return (Timer(given).time_remaining() or 0) > 0
    except (MisconfigurationException, OverflowError, TypeError):
        return False


def check_values(trainer: Mapping[str, Any]) -> None:
    """Raise UserError for a flag whose value cannot be used by any command, ImportError for one
    that needs a package that is not installed."""
    for name, (accepts, needed) in RANGES.items():
        if not accepts(trainer[name]):
            raise UserError(f"--trainer.{name} is {trainer[name]}; give {needed}")
    if trainer["model_registry"]:
        raise UserError(
            "--trainer.model_registry is not supported: a run keeps its checkpoints in its folder; "
            "leave it out"
        )
    if trainer["barebones"]:
        raise UserError(
            "--trainer.barebones true is not supported: it would switch off the log and the "
            "checkpoints of the run; to measure speed, see benchmarks/"
        )
    if trainer["profiler"] == "xla" and find_spec("torch_xla") is None:
        raise ModuleNotFoundError(name="torch_xla")
    check_strategy(trainer["strategy"])


def check_devices(trainer: Mapping[str, Any]) -> None:
    """Raise UserError for an accelerator, devices or a strategy that this machine cannot use."""
    given = trainer["devices"]
    accelerator = hardware.choose_accelerator(str(trainer["accelerator"]))
    strategy = trainer["strategy"]
    if isinstance(strategy, str) and strategy.startswith("fsdp") and accelerator != "gpu":
        raise UserError(
            f"--trainer.strategy {strategy} needs a GPU; for processes on CPUs use "
            "--trainer.strategy ddp"
        )
    if given == "auto":
        return
    form = re.fullmatch(r"\[?(-?\d+(?:, ?\d+)*),?\]?", str(given))
    numbers = [int(number) for number in form[1].split(",")] if form else []
    are_indices = isinstance(given, list) or "," in str(given)
    if accelerator == "cpu":
        if not numbers or are_indices or numbers[0] < 1:
            raise UserError(
                f"--trainer.devices is {given}; give a number of processes, such as 1, or auto"
            )
        return
    if not numbers or (not are_indices and numbers[0] < 1 and numbers != [-1]):
        raise UserError(
            f"--trainer.devices is {given}; give a number of devices, such as 1, a list of their "
            "indices, such as [0], or auto"
        )
    present = torch.cuda.device_count() if accelerator == "gpu" else 1
    if max(numbers) >= present if are_indices else numbers[0] > present:
        raise UserError(f"--trainer.devices is {given}; this machine has {present}")


def check_strategy(name: Any) -> None:
    """Raise UserError for a strategy by name that does not exist or is not supported."""
    if not isinstance(name, str) or name == "auto":
        return
    if name.startswith(STARTED_WITHOUT_MAIN):
        raise UserError(
            f"--trainer.strategy {name} is not supported: its processes do not begin "
            "with this command; use --trainer.strategy ddp"
        )
    known = [
        known
        for known in StrategyRegistry.available_strategies()
        if not known.startswith((*STARTED_WITHOUT_MAIN, "single_", "xla"))
        and not re.search("_stage|_find_unused", known)
    ]
    if name not in StrategyRegistry.available_strategies():
        word = name.lower().removesuffix("strategy")
        near = difflib.get_close_matches(word, known, n=1)
        hint = f"did you mean {near[0]}?" if near else "use one of auto, " + ", ".join(known)
        raise UserError(f"--trainer.strategy: there is no strategy {name}; {hint}")


def check_flags(trainer: Namespace) -> None:
    """Raises UserError for flags of `fit` that have no meaning here or are out of range.

    Training is counted in optimizer steps, and validation in micro-batches: a text is one endless
    stream of windows, without epochs.
    """
    check_values(vars(trainer))
    if trainer.max_epochs not in (None, -1) or trainer.min_epochs not in (None, 0):
        raise UserError(
            "--trainer.max_epochs and --trainer.min_epochs are not supported: training is counted "
            "in steps; use --trainer.max_steps"
        )
    if trainer.max_steps < 1:
        raise UserError(f"--trainer.max_steps is {trainer.max_steps}; it must be at least 1")
    if (trainer.min_steps or 0) > trainer.max_steps:
        raise UserError(
            f"--trainer.min_steps {trainer.min_steps} is more than --trainer.max_steps "
            f"{trainer.max_steps}"
        )
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
    limit = trainer.limit_train_batches
    if limit not in (None, 1.0) and (isinstance(limit, float) or limit < 1):
        raise UserError(
            f"--trainer.limit_train_batches is {limit}; the training text is an endless stream: "
            "give a whole number of batches, or use --trainer.max_steps"
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


def check_plugins(plugins: Sequence[Any]) -> None:
    """Raise UserError for plugins of which the Trainer has one already."""
    formats = [plugin for plugin in plugins if isinstance(plugin, CheckpointIO)]
    if len(formats) > 1:  # the last one is ours
        raise UserError(
            f"--trainer.plugins {type(formats[0]).__name__} is not supported: a run writes its "
            "checkpoints with a plugin of its own"
        )
    for plugin in plugins:
        if isinstance(plugin, Precision):
            raise UserError(
                f"--trainer.plugins {type(plugin).__name__} is not supported; use "
                "--trainer.precision"
            )


def make_trainer(flags: dict[str, Any]) -> Trainer:
    """A Trainer with these arguments.

    It prints the reports of its profiler and its model summary, and no other message of Lightning.
    Raises UserError for flags that Lightning refuses.
    """
    check_values(flags)
    check_devices(flags)
    check_plugins(as_list(flags["plugins"]))
    print_reports()
    try:
        return Trainer(**flags)
    except (MisconfigurationException, OverflowError, RuntimeError, TypeError, ValueError) as error:
        if package := missing_package(error):
            raise UserError(
                f"the package {package} is not installed: pip install {package}"
            ) from error
        raise UserError(f"--trainer: {first_line(error)}") from error
