"""Every use of private or undocumented parts of Lightning, with its reason and a test.

Others are where a base class needs them: `FitCLI._set_seed` in cli/commands/fit_options.py, and the
hooks of `CsvTable` in training/csv_table.py. Nothing here imports Lightning, so that lower layers
may use it.
"""

import logging
import sys
from datetime import timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.loggers import CSVLogger
    from lightning.pytorch.loggers.csv_logs import ExperimentWriter
    from lightning.pytorch.strategies import ModelParallelStrategy
    from torch import Tensor

# What Lightning logs with `info` there is what a user asked for.
REPORT_LOGGERS = (
    "lightning.pytorch.profilers.profiler",
    "lightning.pytorch.callbacks.model_summary",
)
PROGRESS = "epoch_loop.batch_progress"  # in a checkpoint's loops


def has_trainer(module: "LightningModule") -> bool:
    """Whether a Trainer uses the module. `module.trainer` raises an error without one."""
    return module._trainer is not None


def set_callback_metrics(trainer: "Trainer", metrics: dict[str, "Tensor"]) -> None:
    """Put metrics into `trainer.callback_metrics`, for callbacks, without logging them.

    Relies on the Trainer keeping this dictionary and adding to it. (`module.log` would also give
    them to the loggers, at the number of the step before.)
    """
    trainer.callback_metrics.update(metrics)


def just_stepped(trainer: "Trainer") -> bool:
    """Whether the micro-batch that ends now completed an optimizer step. Lightning tells callbacks
    when a batch ends, not whether it stepped."""
    return not trainer.fit_loop._should_accumulate()


def validates_now(trainer: "Trainer") -> bool:
    """Whether validation follows the batch that ends now. If so, last.ckpt is saved after it."""
    fetcher = trainer.fit_loop._data_fetcher
    assert fetcher is not None  # while fitting
    return trainer.fit_loop.epoch_loop._should_check_val_fx(fetcher)


def batches_done(trainer: "Trainer") -> int:
    """How many training micro-batches this run has processed, in all epochs and calls of `fit`. It
    is restored from a checkpoint before the first batch is fetched. (The counter `completed` is one
    less at that time.)"""
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress  # its type hint lacks `total`
    return progress.total.processed


def batches_before_epoch(trainer: "Trainer") -> int:
    """How many micro-batches were processed in the epochs before the one that comes next."""
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress
    epoch: Any = trainer.fit_loop.epoch_progress.current
    if epoch.processed == epoch.ready:  # the last epoch is over
        return progress.total.processed
    return progress.total.processed - progress.current.processed


def processed_batches(checkpoint: dict[str, Any]) -> int:
    """How many micro-batches the run of a checkpoint had processed. Raises KeyError or TypeError if
    the checkpoint is damaged."""
    return checkpoint["loops"]["fit_loop"][PROGRESS]["total"]["processed"]


def set_processed_batches(checkpoint: dict[str, Any], count: int) -> None:
    """Set a checkpoint's counters of processed micro-batches to `count`, for a run that is resumed
    with micro-batches of another size."""
    progress = checkpoint["loops"]["fit_loop"][PROGRESS]
    for counters in (progress["total"], progress["current"]):
        counters.update(dict.fromkeys(counters, count))


def spread_data_over_processes(strategy: "ModelParallelStrategy") -> None:
    """Make every process of the strategy read its own data: Lightning's default counts only the
    processes of one machine."""
    strategy._data_parallel_size = strategy.num_nodes * strategy.num_processes


def limit_waiting(trainer: "Trainer", limit: timedelta) -> None:
    """How long processes of several machines wait for each other, instead of 30 minutes. Lightning
    accepts a limit only with a strategy that is built by hand."""
    if hasattr(trainer.strategy, "_timeout"):
        trainer.strategy._timeout = limit


def set_default_version(logger: "CSVLogger", version: str) -> None:
    """The folder of a CSVLogger's table, unless one was given. Lightning would begin another each
    time."""
    if logger._version is None:
        logger._version = version


def set_csv_writer(logger: "CSVLogger", writer: "ExperimentWriter") -> None:
    """What writes a CSVLogger's table. Lightning's own deletes a table that exists."""
    logger._experiment = writer


def print_reports() -> None:
    """Make profilers and model summaries print their reports on standard error.

    They log them, at a level that the command line switches off for everything (see
    `cli.dispatch`), because Lightning logs much else that nobody asked for. RichModelSummary prints
    by itself, on standard output, which is for results.
    """

    def show(text: str, *args: Any) -> None:
        print(text, file=sys.stderr, flush=True)

    for name in REPORT_LOGGERS:
        logging.getLogger(name).info = show  # type: ignore[method-assign, assignment]
    if "rich" in sys.modules:
        sys.modules["rich"].reconfigure(stderr=True)
