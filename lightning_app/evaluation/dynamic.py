"""Dynamic evaluation: the network learns on while it reads (Krause et al., arXiv 1904.08378).

Every character is scored before it is learned from, so the figure is an honest code length; but it
is one of the network and its learning together, not of the weights alone.
"""

from collections.abc import Collection
from dataclasses import dataclass

import torch
from jsonargparse.typing import ClosedUnitInterval, PositiveFloat
from tqdm import tqdm

from lightning_app.data.batches import Batch
from lightning_app.evaluation.metrics import CharacterLoss
from lightning_app.model.gpt import GPT, loss_per_character


@dataclass
class DynamicOptions:
    """How the network learns while it is scored with --evaluate dynamic.

    Args:
        learning_rate: Of each step, against the gradient over its root mean square so far.
        decay: What share of the way back to the trained weights each step goes.
    """

    learning_rate: PositiveFloat = 1e-4
    decay: ClosedUnitInterval = 1e-3


def dynamic_loss(gpt: GPT, batches: Collection[Batch], options: DynamicOptions) -> CharacterLoss:
    """The loss over batches of a text in reading order, each scored, then learned from. The
    weights of `gpt` move."""
    metric = CharacterLoss()
    weights = list(gpt.parameters())
    trained = [w.detach().clone() for w in weights]
    squares = [torch.zeros_like(w) for w in weights]
    bar = tqdm(batches, desc="reading", unit="step", delay=2, leave=False, disable=None)
    for step, (idx, targets) in enumerate(bar, 1):
        losses = loss_per_character(gpt(idx), targets)
        metric.update(losses, targets.flatten())
        gradients = torch.autograd.grad(losses.sum() / (targets >= 0).sum(), weights)
        with torch.no_grad():
            torch._foreach_mul_(squares, 1 - 1 / step)
            torch._foreach_addcmul_(squares, gradients, gradients, 1 / step)
            scale = torch._foreach_sqrt(squares)
            torch._foreach_add_(scale, 1e-8)
            torch._foreach_addcdiv_(weights, gradients, scale, -options.learning_rate)
            torch._foreach_lerp_(weights, trained, options.decay)
    return metric
