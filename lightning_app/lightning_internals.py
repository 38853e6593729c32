"""Every use of Lightning's private attributes, each with its reason; tested one by one.

Nothing here imports Lightning, so that lower layers may use it.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning.pytorch import Trainer
    from lightning.pytorch.strategies import ModelParallelStrategy

PROGRESS = "epoch_loop.batch_progress"  # in a checkpoint's loops


def just_stepped(trainer: "Trainer") -> bool:
    """Whether the micro-batch that ends now completed an optimizer step. Lightning tells callbacks
    when a batch ends, not whether it stepped."""
    return not trainer.fit_loop._should_accumulate()


def validates_now(trainer: "Trainer") -> bool:
    """Whether validation follows the batch that ends now: last.ckpt is then saved after it."""
    fetcher = trainer.fit_loop._data_fetcher
    assert fetcher is not None  # while fitting
    return trainer.fit_loop.epoch_loop._should_check_val_fx(fetcher)


def batches_done(trainer: "Trainer") -> int:
    """How many training micro-batches this run has processed, in all its epochs and calls: restored
    from a checkpoint before the first batch is fetched. (`completed` is one behind.)"""
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress  # typed as a counter without them
    return progress.total.processed


def batches_before_epoch(trainer: "Trainer") -> int:
    """How many micro-batches were processed in the epochs before the one that comes next."""
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress
    epoch: Any = trainer.fit_loop.epoch_progress.current
    if epoch.processed == epoch.ready:  # the last epoch is over
        return progress.total.processed
    return progress.total.processed - progress.current.processed


def processed_batches(checkpoint: dict[str, Any]) -> int:
    """How many micro-batches a checkpoint's run had processed. Raises KeyError or TypeError."""
    return checkpoint["loops"]["fit_loop"][PROGRESS]["total"]["processed"]


def set_processed_batches(checkpoint: dict[str, Any], count: int) -> None:
    """Count what was done in micro-batches of another size."""
    progress = checkpoint["loops"]["fit_loop"][PROGRESS]
    for counters in (progress["total"], progress["current"]):
        counters.update(dict.fromkeys(counters, count))


def spread_data_over_processes(strategy: "ModelParallelStrategy") -> None:
    """Make every process of the strategy read its own data: "auto" takes the processes of one
    machine alone."""
    strategy._data_parallel_size = strategy.num_nodes * strategy.num_processes
