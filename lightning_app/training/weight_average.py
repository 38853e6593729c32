"""An exponential average of the weights, to validate, save and generate with."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lightning_app.torch_internals import foreach_lerp_


class WeightAverage:
    """An exponential average of a module's parameters.

    At each step the average is multiplied by `decay` and the weights by 1 - `decay`. In the first
    steps the decay is smaller, so that the average does not depend on the initialisation. While
    `swapped`, the parameters are the average and `other` is the raw weights; otherwise the
    parameters are the raw weights and `other` is the average.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay, self.swapped = decay, False
        self.module = module
        self.other: list[Tensor] = []  # one for each parameter; empty before the first step

    def parameters(self) -> list[nn.Parameter]:
        return list(self.module.parameters())  # not stored, because sharding replaces them

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
