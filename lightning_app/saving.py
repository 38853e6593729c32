"""When checkpoints are written, and how a run is interrupted without losing anything."""

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.io import TorchCheckpointIO

from lightning_app import checkpoints
from lightning_app.callbacks import check_finite, just_stepped
from lightning_app.checkpoints import SECTION


class Interrupted(BaseException):
    """A signal asked the run to stop; it has saved. `signum` gives the exit code, 128 + signum."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


class Signals:
    """Ctrl-C and SIGTERM: remembered until the step is over; the second Ctrl-C ends at once."""

    def __init__(self) -> None:
        self.received: int | None = None
        self.before: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        self.before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
        self.listen()
        return self

    def __exit__(self, *exception) -> None:
        if threading.current_thread() is threading.main_thread():
            for signum, handler in self.before.items():
                signal.signal(signum, handler)

    def listen(self) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, self.handle)
            signal.signal(signal.SIGTERM, self.handle)

    def handle(self, signum: int, frame) -> None:
        if self.received is not None and signum == signal.SIGINT:
            os._exit(128 + signum)  # what is being written is written beside: nothing breaks
        self.received = signum
        print("\nstopping after this step (Ctrl-C again: at once)", file=sys.stderr, flush=True)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint reading and writing, by way of `checkpoints`: whole or not at all."""

    def save_checkpoint(self, checkpoint, path, storage_options=None) -> None:
        path = Path(path)
        previous = path.with_name(checkpoints.PREVIOUS) if path.name == "last.ckpt" else None
        checkpoints.write(checkpoint, path, previous)

    def load_checkpoint(self, path, map_location=None, weights_only=None) -> dict:
        return checkpoints.read(Path(path))


class Checkpoints(Checkpoint):
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
