"""What happens around the steps: the log, text samples, weight averaging, the progress bar."""

import math
import time

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from lightning_app.errors import UserError
from lightning_app.evaluation.metrics import loss_metrics
from lightning_app.lightning_internals import just_stepped
from lightning_app.runs.checkpoint import SECTION
from lightning_app.training.sharding import gather


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
        values = {f"train/{name}": value for name, value in loss_metrics(loss).items()}
        values["train/characters_per_second"] = self.characters_per_second
        if pl_module.gradient_norm is not None:
            values["train/gradient_norm"] = float(gather(pl_module.gradient_norm))
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
