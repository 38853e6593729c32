"""Progress bars of training and evaluation, on standard error."""

import math
import sys
import time

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm

from lightning_app.lightning_internals import just_stepped


class TrainingProgressBar(ProgressBar):
    """One line on standard error: loss, val loss, characters per second, time left. Where that is
    no terminal, one line at each validation."""

    def __init__(self) -> None:
        super().__init__()
        self.bar: tqdm | None = None
        self.shown = 0.0
        self.validation_seconds = 0.0
        self.loss = math.nan
        self.enabled = True

    def disable(self) -> None:
        self.enabled = False

    def enable(self) -> None:
        self.enabled = True

    @property
    def on_terminal(self) -> bool:
        return sys.stderr.isatty()

    def on_train_start(self, trainer, pl_module) -> None:
        self.started: float | None = None  # set when the first step, which compiles, is over
        self.validating = 0.0
        if self.enabled and self.on_terminal:
            self.bar = tqdm(
                total=trainer.max_steps,
                initial=trainer.global_step,
                bar_format="{percentage:3.0f}% |{bar:24}| {n:,}/{total:,} steps{postfix}",
                dynamic_ncols=True,
                file=sys.stderr,
            )
            if pl_module.compile_network:
                self.bar.set_postfix_str("compiling, up to a minute the first time")

    def seconds_left(self, trainer: Trainer) -> float:
        """Steps to come at the speed so far, and the validations between them."""
        done, left = trainer.global_step - self.first, trainer.max_steps - trainer.global_step
        training = time.perf_counter() - self.started - self.validating
        batches = left * trainer.accumulate_grad_batches
        every = trainer.val_check_batch or batches
        return training / done * left + -(-batches // every) * self.validation_seconds

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if self.started is None and just_stepped(trainer):
            self.started, self.first = time.perf_counter(), trainer.global_step
        if self.bar is None or time.perf_counter() - self.shown < 0.5:
            return
        self.shown = time.perf_counter()
        self.loss = float(outputs["loss"])
        self.bar.n = trainer.global_step
        self.bar.set_postfix_str(self.postfix(trainer, pl_module))

    def postfix(self, trainer: Trainer, pl_module: LightningModule) -> str:
        parts = [] if math.isnan(self.loss) else [f"loss {self.loss:.3f}"]
        metrics = trainer.callback_metrics
        if "val/loss" in metrics:
            parts.append(f"val {metrics['val/loss']:.4f}")
        if "train/characters_per_second" in metrics:
            parts.append(f"{metrics['train/characters_per_second']:,.0f} characters/s")
        if self.started is not None and trainer.global_step > self.first:
            minutes, seconds = divmod(round(self.seconds_left(trainer)), 60)
            parts.append(f"{minutes}:{seconds:02d} left")
        return "  ".join(parts)

    def on_validation_start(self, trainer, pl_module) -> None:
        self.validation_started = time.perf_counter()
        if self.bar is not None:
            self.bar.n = trainer.global_step
            self.bar.set_postfix_str("validating")

    def on_validation_end(self, trainer, pl_module) -> None:
        if trainer.state.fn != "fit" or not self.enabled:
            return
        self.validation_seconds = time.perf_counter() - self.validation_started
        self.validating += self.validation_seconds
        f = trainer.callback_metrics
        line = (
            f"step {trainer.global_step:,}/{trainer.max_steps:,}  val loss {f['val/loss']:.4f}  "
            f"perplexity {f['val/perplexity']:.3f}  bpc {f['val/bpc']:.4f}"
        )
        if "val/gap" in f:
            line += f"  gap {f['val/gap']:+.4f}"
        if self.bar is not None:
            self.bar.write(line, file=sys.stderr)
        else:
            print(f"{line}  ({self.postfix(trainer, pl_module)})", file=sys.stderr, flush=True)

    def on_exception(self, trainer, pl_module, exception) -> None:
        self.close()

    def on_train_end(self, trainer, pl_module) -> None:
        self.close()

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None


class EvaluationProgressBar(ProgressBar):
    """The progress of `validate` and `test`, on standard error, when it takes over two seconds."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = not sys.stderr.isatty()

    def disable(self) -> None:
        self.hidden = True

    def start(self, trainer: Trainer, batches: list[int]) -> None:
        self.bar = (
            tqdm(
                total=sum(batches),
                desc="scoring",
                unit="batch",
                delay=2,
                leave=False,
                file=sys.stderr,
            )
            if not self.hidden and trainer.is_global_zero
            else None
        )

    def advance(self, *args) -> None:
        if self.bar is not None:
            self.bar.update()

    def stop(self, *args) -> None:
        if self.bar is not None:
            self.bar.close()

    def on_validation_start(self, trainer, pl_module) -> None:
        self.start(trainer, trainer.num_val_batches)

    def on_test_start(self, trainer, pl_module) -> None:
        self.start(trainer, trainer.num_test_batches)

    on_validation_batch_end = on_test_batch_end = advance
    on_validation_end = on_test_end = stop
