"""The metric from which loss, perplexity and bits per character are computed."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torchmetrics import Metric


class CharacterLoss(Metric):
    """Mean negative log-likelihood per character, from a float64 sum and an integer count.

    Sum and count are added over batches and over processes before the division, so the result does
    not depend on how characters are distributed over batches. They are moved to the device of the
    first losses; on MPS, which has no float64, they stay on the CPU.
    """

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.scored = 0
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def _apply(
        self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = ()
    ) -> "CharacterLoss":
        # Metric and Module call this private method for .to() and .half(): those of the module
        # that contains this metric must not change the dtype.
        return self

    def update(self, losses: Tensor, targets: Tensor) -> None:
        """Add losses (N,) in nats. Targets (N,) of -1 are padding: not counted, and of loss 0."""
        losses = losses.detach()
        if losses.device.type == "mps":
            losses, targets = losses.cpu(), targets.cpu()
        if self.total.device != losses.device:
            super()._apply(lambda t: t.to(losses.device))
        self.total += losses.double().sum()
        self.count += (targets >= 0).sum()

    def compute(self) -> Tensor:
        """The mean in nats, float64 (); sets `scored` to the number of characters it is over."""
        self.scored = int(self.count)
        return self.total / self.count


def loss_metrics(loss: float) -> dict[str, float]:
    """A loss in nats per character, also as perplexity and as bits per character."""
    perplexity = math.exp(loss) if loss < 700 else math.inf
    return {"loss": loss, "perplexity": perplexity, "bpc": loss / math.log(2)}
