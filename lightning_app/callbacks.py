"""What happens around the steps: the log, text samples, weight averaging, the progress bar."""

import math
import sys
import time

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch import callbacks as lightning_callbacks
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor
from tqdm import tqdm

from lightning_app.checkpoints import NETWORK, SECTION
from lightning_app.errors import UserError
from lightning_app.generation import GenerateOptions, complete
from lightning_app.metrics import figures


def just_stepped(trainer: Trainer) -> bool:
    """Whether the batch that ends now completed an optimizer step (accumulation!)."""
    return not trainer.fit_loop._should_accumulate()


def whole(x: Tensor) -> Tensor:
    """A sharded tensor put together; every process must ask."""
    return x.full_tensor() if isinstance(x, DTensor) else x


def like(x: Tensor, p: Tensor) -> Tensor:
    """x sharded as p is."""
    return distribute_tensor(x, p.device_mesh, p.placements) if isinstance(p, DTensor) else x


class TrainingLog(Callback):
    """Logs training every `log_every_n_steps` steps, and stops a run whose loss is not finite."""

    def __init__(self) -> None:
        self.characters_per_second = 0.0
        self.reset()

    def reset(self) -> None:
        self.characters, self.seconds, self.since = 0, 0.0, None

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if self.since is None:
            self.since = time.perf_counter()

    def on_validation_start(self, trainer, pl_module) -> None:
        self.pause()

    def pause(self) -> None:
        """Validation and saving are not training time."""
        if self.since is not None:
            self.seconds += time.perf_counter() - self.since
            self.since = None

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.characters += batch[0].numel() * trainer.world_size
        if not just_stepped(trainer):
            return
        step = trainer.global_step
        due = pl_module.logs(step)
        if due or trainer.strategy.root_device.type == "cpu":  # elsewhere looking costs a sync
            check_finite(outputs["loss"], trainer)
        if not due:
            return
        loss = float(pl_module.train_loss.compute())
        pl_module.train_loss.reset()
        self.pause()
        # the first steps of a process compile and warm up; they tell nothing about speed
        self.characters_per_second = self.characters / max(self.seconds, 1e-9)
        values = {f"train/{name}": value for name, value in figures(loss).items()}
        values["train/characters_per_second"] = self.characters_per_second
        if pl_module.gradient_norm is not None:
            values["train/gradient_norm"] = float(whole(pl_module.gradient_norm))
        for group in trainer.optimizers[0].param_groups:
            values[f"train/learning_rate/{group['name']}"] = group["lr"]
        for logger in trainer.loggers:
            logger.log_metrics(values, step=step)
        self.reset()
        self.since = time.perf_counter()

    def on_save_checkpoint(self, trainer, pl_module, checkpoint) -> None:
        """A resumed run logs the same means: keep the sum of the interval under way."""
        metric = pl_module.train_loss
        checkpoint.setdefault(SECTION, {})["train_loss"] = [float(metric.total), int(metric.count)]

    def on_load_checkpoint(self, trainer, pl_module, checkpoint) -> None:
        total, count = checkpoint[SECTION]["train_loss"]
        pl_module.train_loss.total = torch.tensor(total, dtype=torch.float64)
        pl_module.train_loss.count = torch.tensor(count)


def check_finite(loss: Tensor, trainer: Trainer) -> None:
    if not math.isfinite(value := float(loss)):
        groups = trainer.optimizers[0].param_groups
        rates = ", ".join(f"{g['name']} {g['peak_lr']:g}" for g in groups)
        clip = "" if trainer.gradient_clip_val else " or set --trainer.gradient_clip_val 1"
        raise UserError(
            f"the loss is {value} at step {trainer.global_step:,}: training diverged; lower "
            f"--optim.learning_rate and --optim.muon_learning_rate (now {rates}){clip}; "
            "checkpoints from before are kept"
        )


class EarlyStopping(lightning_callbacks.EarlyStopping):
    """Lightning's, but patience is what the options say now, not what a checkpoint remembers."""

    def load_state_dict(self, state_dict: dict) -> None:
        super().load_state_dict(state_dict | {"patience": self.patience})


class Timer(lightning_callbacks.Timer):
    """Lightning's for --trainer.max_time, but each call of `fit` has this time, not all together:
    the same command goes on."""

    def load_state_dict(self, state_dict: dict) -> None:
        pass


class TextSamples(Callback):
    """At each validation, what the model writes after two fixed prompts, to TensorBoard: nothing at
    all, and the first line of the validation text."""

    options = GenerateOptions(max_new_tokens=200)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        boards = [x for x in trainer.loggers if isinstance(x, TensorBoardLogger)]
        sharded = pl_module.device_mesh is not None  # no process has a network to write with
        if not boards or trainer.state.fn != "fit" or sharded:
            return
        head = trainer.datamodule.split("val")[: min(40, pl_module.hparams.block_size)]
        line = pl_module.tokenizer.whole(pl_module.tokenizer.decode(head)).split("\n")[0]
        prompts = ["", line + "\n" if "\n" in pl_module.tokenizer.ids else line]
        texts = complete(
            pl_module.gpt,
            pl_module.tokenizer,
            prompts,
            self.options,
            seed=0,
            unigram=pl_module.unigram,
        )
        for name, prompt, text in zip(("unprompted", "prompted"), prompts, texts, strict=True):
            block = "".join(f"    {row}\n" for row in (prompt + text).split("\n"))  # Markdown code
            for board in boards:
                board.experiment.add_text(f"samples/{name}", block, trainer.global_step)


class WeightAverage(Callback):
    """Validates, saves and generates with an exponential average of the weights.

    The average's memory grows to `decay` over the first steps, so an early one is not the
    initialisation. Checkpoints hold both: best.ckpt has the average as its weights, last.ckpt the
    raw ones.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.average: list[Tensor] | None = None  # one for each parameter

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if not just_stepped(trainer):
            return
        weights = [p.data for p in pl_module.gpt.parameters()]
        if self.average is None:
            self.average = [w.clone() for w in weights]
        n = trainer.global_step
        torch._foreach_lerp_(self.average, weights, 1 - min(self.decay, n / (10 + n)))

    def swap(self, pl_module: LightningModule) -> None:
        for p, average in zip(pl_module.gpt.parameters(), self.average or [], strict=False):
            raw = p.data.clone()
            p.data.copy_(average)
            average.copy_(raw)

    def on_validation_start(self, trainer, pl_module) -> None:
        self.swap(pl_module)

    def on_validation_end(self, trainer, pl_module) -> None:
        self.swap(pl_module)

    def on_save_checkpoint(self, trainer, pl_module, checkpoint) -> None:
        section = checkpoint.setdefault(SECTION, {})
        if self.average is None:
            return
        of = {id(p): a for p, a in zip(pl_module.gpt.parameters(), self.average, strict=True)}
        weights = pl_module.gpt.state_dict(keep_vars=True)  # tied matrices stand there twice
        average = {NETWORK + name: whole(of[id(p)]) for name, p in weights.items()}
        if trainer.checkpoint_callback.saving == "best":
            section["raw"], checkpoint["state_dict"] = checkpoint["state_dict"], average
        section["average"] = average  # the same tensors: they are stored once

    def on_load_checkpoint(self, trainer, pl_module, checkpoint) -> None:
        average = checkpoint[SECTION].get("average")
        if average is not None:
            self.average = [
                like(average[NETWORK + name].to(pl_module.device), p)
                for name, p in pl_module.gpt.named_parameters()
            ]


class StepBar(ProgressBar):
    """One line on standard error: loss, val loss, characters per second, time left. Where that is
    no terminal, one line at each validation."""

    def __init__(self, log: TrainingLog) -> None:
        super().__init__()
        self.log_ = log
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
        if "val/loss" in pl_module.figures:
            parts.append(f"val {pl_module.figures['val/loss']:.4f}")
        if self.log_.characters_per_second:
            parts.append(f"{self.log_.characters_per_second:,.0f} characters/s")
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
        f = pl_module.figures
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


class EvalBar(ProgressBar):
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
