"""An exponential average of the weights, to validate, save and generate with."""

import torch
from lightning.pytorch import Callback, LightningModule
from torch import Tensor

from lightning_app.lightning_internals import just_stepped
from lightning_app.runs.checkpoint import NETWORK_PREFIX, SECTION
from lightning_app.training.sharding import gather, shard_like


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
        average = {NETWORK_PREFIX + name: gather(of[id(p)]) for name, p in weights.items()}
        if trainer.checkpoint_callback.saving == "best":
            section["raw"], checkpoint["state_dict"] = checkpoint["state_dict"], average
        section["average"] = average  # the same tensors: they are stored once

    def on_load_checkpoint(self, trainer, pl_module, checkpoint) -> None:
        average = checkpoint[SECTION].get("average")
        if average is not None:
            self.average = [
                shard_like(average[NETWORK_PREFIX + name].to(pl_module.device), p)
                for name, p in pl_module.gpt.named_parameters()
            ]
