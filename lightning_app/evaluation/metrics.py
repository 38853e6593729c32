"""The one accumulator behind loss, perplexity and bits per character."""

import math

import torch
from torch import Tensor
from torchmetrics import Metric


class CharacterLoss(Metric):
    """Mean negative log-likelihood over characters, exact: a float64 sum and an integer count.

    It stays on the host until it meets data, then goes where they are, except to MPS, which has no
    float64. Processes are summed, so no mean of means is ever taken.
    """

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.scored = 0
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def _apply(self, fn, exclude_state=()):  # a module's .to() and .half() pass it by
        return self

    def update(self, losses: Tensor, targets: Tensor) -> None:
        """Add losses in nats (N,); characters whose target is -1 do not count."""
        losses = losses.detach()
        if losses.device.type == "mps":
            losses, targets = losses.cpu(), targets.cpu()
        if self.total.device != losses.device:
            super()._apply(lambda t: t.to(losses.device))
        self.total += losses.double().sum()
        self.count += (targets >= 0).sum()

    def compute(self) -> Tensor:
        """The mean; `scored` then says over how many characters, of all processes."""
        self.scored = int(self.count)
        return self.total / self.count


def loss_metrics(loss: float) -> dict[str, float]:
    """The three faces of one number: loss in nats, perplexity, bits per character."""
    perplexity = math.exp(loss) if loss < 700 else math.inf
    return {"loss": loss, "perplexity": perplexity, "bpc": loss / math.log(2)}
