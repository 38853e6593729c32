"""Progress bars of training and evaluation, on standard error."""

import math
import sys
import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm

from lightning_app.lightning_internals import just_stepped
from lightning_app.training.module import CharGPT

UPDATE_SECONDS = 0.5  # between two updates of the training bar


class TrainingProgressBar(ProgressBar):
    """One line on standard error: loss, validation loss, characters per second, time left.

    Each validation adds a line with its metrics. If standard error is not a terminal, there is no
    bar, and those lines include the speed and the time left.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bar: tqdm | None = None
        self.enabled = True
        self.loss = math.nan  # of the last update
        self.updated = 0.0  # when the bar was updated
        self.reset_timing()

    def reset_timing(self) -> None:
        self.started: float | None = None  # end of the first step, which may compile
        self.first_step = 0  # its number
        self.validation_started = 0.0
        self.validation_seconds = 0.0  # of the last validation
        self.all_validation_seconds = 0.0

    def disable(self) -> None:
        self.enabled = False

    def enable(self) -> None:
        self.enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.reset_timing()
        if self.enabled and sys.stderr.isatty():
            self.bar = tqdm(
                total=trainer.max_steps,
                initial=trainer.global_step,
                bar_format="{percentage:3.0f}% |{bar:24}| {n:,}/{total:,} steps{postfix}",
                dynamic_ncols=True,
                file=sys.stderr,
            )
            if isinstance(pl_module, CharGPT) and pl_module.compile_network:
                self.bar.set_postfix_str("compiling, up to a minute the first time")

    def seconds_left(self, trainer: Trainer) -> float | None:
        """Time for the remaining steps at the mean speed so far, and for the remaining validations;
        None before the second step."""
        done, left = trainer.global_step - self.first_step, trainer.max_steps - trainer.global_step
        if self.started is None or done <= 0:
            return None
        training = time.perf_counter() - self.started - self.all_validation_seconds
        batches = left * trainer.accumulate_grad_batches
        every = trainer.val_check_batch or batches
        validations = math.ceil(batches / every) if batches else 0
        return training / done * left + validations * self.validation_seconds

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.started is None and just_stepped(trainer):
            self.started, self.first_step = time.perf_counter(), trainer.global_step
        if self.bar is None or time.perf_counter() - self.updated < UPDATE_SECONDS:
            return
        self.updated = time.perf_counter()
        self.loss = float(outputs["loss"])
        self.bar.n = trainer.global_step
        self.bar.set_postfix_str(self.postfix(trainer))

    def postfix(self, trainer: Trainer) -> str:
        """What follows the number of steps on the line."""
        metrics = trainer.callback_metrics
        parts = [] if math.isnan(self.loss) else [f"loss {self.loss:.3f}"]
        if "val/loss" in metrics:
            parts.append(f"val {metrics['val/loss']:.4f}")
        if "train/characters_per_second" in metrics:
            parts.append(f"{metrics['train/characters_per_second']:,.0f} characters/s")
        if (remaining := self.seconds_left(trainer)) is not None:
            minutes, seconds = divmod(round(remaining), 60)
            parts.append(f"{minutes}:{seconds:02d} left")
        return "  ".join(parts)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.validation_started = time.perf_counter()
        if self.bar is not None:
            self.bar.n = trainer.global_step
            self.bar.set_postfix_str("validating")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit" or not self.enabled:
            return
        self.validation_seconds = time.perf_counter() - self.validation_started
        self.all_validation_seconds += self.validation_seconds
        metrics = trainer.callback_metrics
        line = (
            f"step {trainer.global_step:,}/{trainer.max_steps:,}  "
            f"val loss {metrics['val/loss']:.4f}  perplexity {metrics['val/perplexity']:.3f}  "
            f"bpc {metrics['val/bpc']:.4f}"
        )
        if "val/gap" in metrics:
            line += f"  gap {metrics['val/gap']:+.4f}"
        if self.bar is not None:
            self.bar.write(line, file=sys.stderr)
        else:
            print(f"{line}  ({self.postfix(trainer)})", file=sys.stderr, flush=True)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self.close()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.close()

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None


class EvaluationProgressBar(ProgressBar):
    """The progress of `validate` and `test` on standard error, if it is a terminal.

    It appears after two seconds, and is removed at the end.
    """

    def __init__(self) -> None:
        super().__init__()
        self.enabled = sys.stderr.isatty()
        self.bar: tqdm | None = None

    def disable(self) -> None:
        self.enabled = False

    def start(self, trainer: Trainer, batches: list[int | float]) -> None:
        if self.enabled:
            self.bar = tqdm(
                total=sum(batches),
                desc="scoring",
                unit="batch",
                delay=2,
                leave=False,
                file=sys.stderr,
            )

    def advance(self) -> None:
        if self.bar is not None:
            self.bar.update()

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.start(trainer, trainer.num_val_batches)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.start(trainer, trainer.num_test_batches)

    def on_validation_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self.advance()

    def on_test_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self.advance()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.close()

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.close()
