"""An exponential average of the weights, to validate, save and generate with."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from lightning_app.model.gpt import GPT
from lightning_app.runs.checkpoint import NETWORK_PREFIX, RAW_WEIGHTS
from lightning_app.torch_internals import foreach_lerp_
from lightning_app.training.sharding import copy_weights, gather, shard_like


class WeightAverage:
    """An exponential average of a network's weights.

    At each step the average is multiplied by `decay` and the weights by 1 - `decay`. In the first
    steps the decay is smaller, so that the average does not depend on the initialisation. While
    `swapped`, the parameters are the average and `other` is the raw weights; otherwise the
    parameters are the raw weights and `other` is the average.
    """

    def __init__(self, gpt: GPT, decay: float) -> None:
        self.decay, self.swapped = decay, False
        self.gpt = gpt
        self.other: list[Tensor] = []  # one for each parameter; empty before the first step

    def parameters(self) -> list[nn.Parameter]:
        return list(self.gpt.parameters())  # not stored, because sharding replaces them

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Add the weights after optimizer step number `step` (1 is the first) to the average."""
        weights = [p.data for p in self.parameters()]
        if not self.other:
            self.other = [w.clone() for w in weights]
        self.follow_device()
        foreach_lerp_(self.other, weights, 1 - min(self.decay, step / (10 + step)))

    def reset(self) -> None:
        """Forget the average; the parameters stay as they are."""
        self.other, self.swapped = [], False

    def use(self, average: bool) -> None:
        """Set the parameters to the average, or to the raw weights."""
        if average == self.swapped or not self.other:
            return
        self.follow_device()
        for p, other in zip(self.parameters(), self.other, strict=True):
            kept = p.data.clone()
            p.data.copy_(other)
            other.copy_(kept)
        self.swapped = average

    def follow_device(self) -> None:
        """Move to the parameters' device: a checkpoint is loaded before the module is moved."""
        parameters = self.parameters()
        if self.other[0].device != parameters[0].device:
            self.other = [x.to(p.device) for x, p in zip(self.other, parameters, strict=True)]

    @contextmanager
    def used(self) -> Iterator[None]:
        """A context in which the parameters are the average."""
        before = self.swapped
        self.use(True)
        try:
            yield
        finally:
            self.use(before)

    def write(self, checkpoint: dict[str, Any]) -> None:
        """Make the average a checkpoint's state_dict; the raw weights are kept as RAW_WEIGHTS."""
        if not self.other:
            return
        other_of = dict(zip(map(id, self.parameters()), self.other, strict=True))
        weights = self.gpt.state_dict(keep_vars=True)  # has tied matrices twice
        other = {
            NETWORK_PREFIX + name: gather(other_of.get(id(p), p.detach()))
            for name, p in weights.items()
        }
        if self.swapped:
            checkpoint[RAW_WEIGHTS] = other
        else:
            checkpoint[RAW_WEIGHTS], checkpoint["state_dict"] = checkpoint["state_dict"], other

    def read(self, checkpoint: dict[str, Any], weights_are_loaded: bool) -> None:
        """Take the average from a checkpoint, and let training resume from the raw weights.

        They become the checkpoint's state_dict, or, if that has been loaded already, those of the
        network.
        """
        if RAW_WEIGHTS not in checkpoint:
            return
        raw = checkpoint[RAW_WEIGHTS]
        if weights_are_loaded:
            average = [p.detach().clone() for p in self.gpt.parameters()]
            network = {name.removeprefix(NETWORK_PREFIX): w for name, w in raw.items()}
            copy_weights(network, self.gpt)
        else:
            state, checkpoint["state_dict"] = checkpoint["state_dict"], raw
            names = [name for name, _ in self.gpt.named_parameters()]
            average = [state[NETWORK_PREFIX + name].clone() for name in names]
        if self.decay:
            self.other = [shard_like(a, p) for a, p in zip(average, self.parameters(), strict=True)]


class RawWeightsAfterErrors(L.Callback):
    """Puts the raw weights back after an error during validation: Lightning then calls no hook of
    the module."""

    def __init__(self, average: WeightAverage) -> None:
        self.average = average

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        self.average.use(False)
