"""When a run's checkpoints are written, at its end and when a signal stops it too."""

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn

from lightning_app.lightning_internals import (
    just_stepped,
    set_processed_batches,
    validates_now,
)
from lightning_app.runs.checkpoint import SECTION
from lightning_app.training.module import CharGPT
from lightning_app.training.signals import Interrupted, Signals


class RunCheckpoints(Checkpoint):
    """Writes best.ckpt when val/loss improves, and last.ckpt at intervals, at the end, and when
    interrupted.

    If there is a validation at the same step, last.ckpt is written after it, so that a resumed run
    neither repeats nor omits a validation.

    Args:
        folder: Where the files are written.
        describe: Returns, for a Trainer, the facts that a checkpoint stores about its run; see
            `runs.resume`.
        signals: Records Ctrl-C and SIGTERM.
        every_steps: Steps from one last.ckpt to the next; None is by time.
        every_seconds: Seconds from one last.ckpt to the next; None is the larger of 30 and 100
            times the time of saving, so saving takes at most 1 % of the time.
    """

    def __init__(
        self,
        folder: Path,
        describe: Callable[[Trainer], dict[str, Any]],
        signals: Signals,
        every_steps: int | None = None,
        every_seconds: float | None = None,
    ) -> None:
        self.folder, self.describe, self.signals = folder, describe, signals
        self.every_steps, self.every_seconds = every_steps, every_seconds
        self.facts: dict[str, Any] = {}
        self.started = False  # whether training has begun, after a checkpoint was restored
        self.best: dict[str, Any] = {}  # loss and step
        self.saved_step = -1  # of last.ckpt
        self.saved_at, self.save_seconds = time.perf_counter(), 0.0
        self.stopped_early = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.facts = self.describe(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.started = True
        self.signals.listen()  # replaces Lightning's handlers, which exit with code 0
        self.saved_at = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        ends = trainer.global_step >= trainer.max_steps  # CharGPT then has a validation follow
        if just_stepped(trainer) and not ends and not validates_now(trainer):
            self.save_last_if_due(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: CharGPT) -> None:  # type: ignore[override]
        if trainer.state.fn != TrainerFn.FITTING or dev_run(trainer):
            return
        loss = pl_module.eval_metrics["val/loss"]
        self.stopped_early = any(
            c.stopping_reason != EarlyStoppingReason.NOT_STOPPED for c in early_stops(trainer)
        )
        if not self.best or loss < self.best["loss"]:
            self.best = {"loss": loss, "step": trainer.global_step}
            self.save(trainer, pl_module, "best")
        if just_stepped(trainer):
            ends = trainer.global_step >= trainer.max_steps or self.stopped_early
            self.save_last_if_due(trainer, pl_module, force=ends)

    def save_last_if_due(
        self, trainer: Trainer, pl_module: LightningModule, force: bool = False
    ) -> None:
        """Save last.ckpt if it is time, or if a signal was received; then raise Interrupted."""
        every = self.every_seconds
        if every is None:
            every = max(30.0, 100 * self.save_seconds)
        by_time = trainer.global_rank == 0 and time.perf_counter() - self.saved_at >= every
        by_steps = self.every_steps and trainer.global_step % self.every_steps == 0
        asked = self.signals.received is not None
        if trainer.world_size > 1:  # all processes must decide the same
            by_time = trainer.strategy.broadcast(by_time)
            asked = trainer.strategy.reduce_boolean_decision(asked, all=False)
        if force or asked or by_steps or (by_time and not self.every_steps):
            self.save(trainer, pl_module, "last")
        if asked:
            raise Interrupted(self.signals.received or signal.SIGTERM)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.saved_step != trainer.global_step and not dev_run(trainer):
            self.save(trainer, pl_module, "last")  # stopped by max_time or a user's callback

    def save(self, trainer: Trainer, pl_module: LightningModule, name: str) -> None:
        """Save NAME.ckpt. Raises UserError if the last loss is not finite."""
        if dev_run(trainer):
            return
        assert isinstance(pl_module, CharGPT)
        pl_module.check_finite(trainer.global_step)  # keeps the checkpoint with good weights
        pl_module.check_finite_weights(trainer.global_step)
        began = time.perf_counter()
        if name == "last":
            self.saved_step = trainer.global_step
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.flush()  # so that the curves of a killed run have no gap
            else:
                logger.save()
        trainer.save_checkpoint(self.folder / f"{name}.ckpt")
        if name == "last":
            self.saved_at = time.perf_counter()
            self.save_seconds = self.saved_at - began

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint.setdefault(SECTION, {}).update(
            self.facts,
            characters=trainer.global_step * self.facts["global_batch"] * self.facts["block_size"],
            best=self.best,
            stopped_early=self.stopped_early,
        )

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        section = checkpoint[SECTION]
        self.best, self.saved_step = section["best"], section["step"]
        for callback in early_stops(trainer):  # it has not stopped this call, with these options
            stopped = {"stopped_epoch": 0, "stopping_reason": EarlyStoppingReason.NOT_STOPPED.value}
            state = checkpoint["callbacks"].get(callback.state_key, {})
            state.update(stopped, patience=callback.patience)
        if section["accumulate"] != self.facts["accumulate"]:
            # The same global batches in other micro-batches: convert the number of those done.
            set_processed_batches(checkpoint, section["step"] * self.facts["accumulate"])


def early_stops(trainer: Trainer) -> list[EarlyStopping]:
    """The callbacks that stop training early, ours and the user's."""
    return [c for c in trainer.early_stopping_callbacks if isinstance(c, EarlyStopping)]


def dev_run(trainer: Trainer) -> bool:
    """Whether this is only a trial of a few batches (fast_dev_run), which writes no files."""
    return bool(getattr(trainer, "fast_dev_run", False))
