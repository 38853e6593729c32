"""An exponential average of the weights, to validate, save and generate with."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """An exponential average of a module's parameters.

    `decay` is how much of the average a step keeps; it grows to that over the first steps, so that
    an early average is not the initialisation. While `swapped`, the parameters hold the average,
    and `other` the raw weights; else it is the other way round.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay, self.swapped = decay, False
        self.module = module
        self.other: list[Tensor] = []  # one for each parameter; empty before the first step

    def parameters(self) -> list[nn.Parameter]:
        return list(self.module.parameters())  # asked anew: sharding replaces them

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after optimizer step number `step` (1 is the first)."""
        weights = [p.data for p in self.parameters()]
        if not self.other:
            self.other = [w.clone() for w in weights]
        self.follow_device()
        torch._foreach_lerp_(self.other, weights, 1 - min(self.decay, step / (10 + step)))

    def use(self, average: bool) -> None:
        """Give the parameters the average, or the raw weights."""
        if average == self.swapped or not self.other:
            return
        self.follow_device()
        for p, other in zip(self.parameters(), self.other, strict=True):
            kept = p.data.clone()
            p.data.copy_(other)
            other.copy_(kept)
        self.swapped = average

    def follow_device(self) -> None:
        """Move to the parameters' device: a checkpoint is loaded before the module gets there."""
        parameters = self.parameters()
        if self.other[0].device != parameters[0].device:
            self.other = [x.to(p.device) for x, p in zip(self.other, parameters, strict=True)]

    @contextmanager
    def used(self) -> Iterator[None]:
        """The parameters hold the average inside the block."""
        before = self.swapped
        self.use(True)
        try:
            yield
        finally:
            self.use(before)
