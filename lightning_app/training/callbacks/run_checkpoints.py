"""When checkpoints are written, and how a run is interrupted without losing anything."""

import signal
import time
from pathlib import Path

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping
from lightning.pytorch.loggers import TensorBoardLogger

from lightning_app.lightning_internals import just_stepped
from lightning_app.runs.checkpoint import SECTION
from lightning_app.training.callbacks.training_log import check_finite
from lightning_app.training.signals import Interrupted, Signals


class RunCheckpoints(Checkpoint):
    """Writes best.ckpt when val/loss improves, and last.ckpt every so often, at the end, and when
    interrupted. last.ckpt is written after a validation that falls on its step, so that a resumed
    run neither repeats nor misses one.

    `facts` is the constant part of what a checkpoint says about itself. `every_seconds` None means
    the larger of 30 s and 100 times what saving takes: at most 1 % of the time.
    """

    def __init__(
        self,
        folder: Path,
        facts: dict,
        signals: Signals,
        every_steps: int | None = None,
        every_seconds: float | None = None,
    ) -> None:
        self.folder, self.facts, self.signals = folder, facts, signals
        self.every_steps, self.every_seconds = every_steps, every_seconds
        self.started = False  # the first step has begun: nothing is being restored any more
        self.saving = ""  # "best" or "last" while one is written
        self.best: dict = {}  # loss and step
        self.saved_step = -1  # of last.ckpt
        self.saved_at, self.save_seconds = time.perf_counter(), 0.0
        self.stopped_early = False
        self.step_loss: torch.Tensor | None = None

    def on_train_start(self, trainer, pl_module) -> None:
        self.started = True
        self.signals.listen()  # over Lightning's own, which would end with exit code 0
        self.saved_at = time.perf_counter()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.step_loss = outputs["loss"]
        if trainer.global_step >= trainer.max_steps:
            trainer.should_stop = True  # makes Lightning validate at the end
        loop = trainer.fit_loop.epoch_loop
        if just_stepped(trainer) and not loop._should_check_val_fx(trainer.fit_loop._data_fetcher):
            self.save_last_if_due(trainer)

    def on_validation_end(self, trainer, pl_module) -> None:
        if trainer.state.fn != "fit" or trainer.fast_dev_run:
            return
        loss = pl_module.figures["val/loss"]
        stops = [c for c in trainer.callbacks if isinstance(c, EarlyStopping)]
        self.stopped_early = any(c.stopped_epoch or c.wait_count >= c.patience for c in stops)
        if not self.best or loss < self.best["loss"]:
            self.best = {"loss": loss, "step": trainer.global_step}
            self.save(trainer, "best")
        if just_stepped(trainer):
            ends = trainer.global_step >= trainer.max_steps or self.stopped_early
            self.save_last_if_due(trainer, force=ends)

    def save_last_if_due(self, trainer: Trainer, force: bool = False) -> None:
        every = self.every_seconds
        if every is None:
            every = max(30.0, 100 * self.save_seconds)
        by_time = trainer.global_rank == 0 and time.perf_counter() - self.saved_at >= every
        by_steps = self.every_steps and trainer.global_step % self.every_steps == 0
        asked = self.signals.received is not None
        if trainer.world_size > 1:  # all processes decide alike
            by_time = trainer.strategy.broadcast(by_time)
            asked = trainer.strategy.reduce_boolean_decision(asked, all=False)
        if force or asked or by_steps or (by_time and not self.every_steps):
            self.save(trainer, "last")
        if asked:
            raise Interrupted(self.signals.received or signal.SIGTERM)

    def on_train_end(self, trainer, pl_module) -> None:
        if self.saved_step != trainer.global_step and not trainer.fast_dev_run:
            self.save(trainer, "last")  # stopped by something else: max_time, a user's callback

    def save(self, trainer: Trainer, kind: str) -> None:
        if trainer.fast_dev_run:
            return
        if self.step_loss is not None:
            check_finite(self.step_loss, trainer)  # never save over good weights
        began = time.perf_counter()
        self.saving = kind
        if kind == "last":
            self.saved_step = trainer.global_step
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.flush()  # a run killed later goes on from here, without a gap
        trainer.save_checkpoint(self.folder / f"{kind}.ckpt")
        self.saving = ""
        if kind == "last":
            self.saved_at = time.perf_counter()
            self.save_seconds = self.saved_at - began

    def on_save_checkpoint(self, trainer, pl_module, checkpoint) -> None:
        checkpoint.setdefault(SECTION, {}).update(
            self.facts,
            step=trainer.global_step,
            characters=trainer.global_step * self.facts["global_batch"] * self.facts["block_size"],
            best=self.best,
            val_loss=pl_module.figures.get("val/loss"),
            figures=pl_module.figures,
            stopped_early=self.stopped_early,
        )

    def on_load_checkpoint(self, trainer, pl_module, checkpoint) -> None:
        section = checkpoint[SECTION]
        self.best, pl_module.figures = section["best"], section["figures"]
        self.saved_step = section["step"]
        if section["accumulate"] != self.facts["accumulate"]:
            # Same global batches in other micro-batches: count what is done in the new ones.
            progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
            done = section["step"] * self.facts["accumulate"]
            for counters in (progress["total"], progress["current"]):
                counters.update(dict.fromkeys(counters, done))
