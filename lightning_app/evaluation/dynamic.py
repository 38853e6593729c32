"""Dynamic evaluation: the weights are trained on the text while it is scored.

Krause et al., "Dynamic Evaluation of Transformer Language Models", arXiv 1904.08378. Every
character is scored before the weights are trained on it, so the loss is a valid code length; but it
measures the network together with this training, not the weights alone.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jsonargparse.typing import ClosedUnitInterval, PositiveFloat
from torch import Tensor
from tqdm import tqdm

from lightning_app.data.batches import Batch
from lightning_app.evaluation.metrics import CharacterLoss
from lightning_app.model.gpt import GPT, loss_per_character
from lightning_app.torch_internals import (
    foreach_add_,
    foreach_addcdiv_,
    foreach_addcmul_,
    foreach_lerp_,
    foreach_mul_,
    foreach_sqrt,
)


@dataclass
class DynamicOptions:
    """How the weights are trained with --evaluate dynamic.

    Args:
        learning_rate: Step size; each gradient is divided by its root mean square so far.
        decay: After each step, the weights move this fraction of the way back to the trained ones.
    """

    learning_rate: PositiveFloat = 1e-4
    decay: ClosedUnitInterval = 1e-3


def dynamic_loss(gpt: GPT, batches: Iterable[Batch], options: DynamicOptions) -> CharacterLoss:
    """The loss over batches of a text in reading order, with one training step after each.

    Changes the weights of `gpt` in place.
    """
    metric = CharacterLoss()
    weights: list[Tensor] = list(gpt.parameters())
    trained = [w.detach().clone() for w in weights]
    mean_squares = [torch.zeros_like(w) for w in weights]  # of all gradients so far
    bar = tqdm(batches, desc="reading", unit="step", delay=2, leave=False, disable=None)
    for step, (idx, targets) in enumerate(bar, 1):
        losses = loss_per_character(gpt(idx), targets)
        metric.update(losses, targets.flatten())
        gradients = torch.autograd.grad(losses.sum() / (targets >= 0).sum(), weights)
        with torch.no_grad():
            foreach_mul_(mean_squares, 1 - 1 / step)
            foreach_addcmul_(mean_squares, gradients, gradients, 1 / step)
            scale = foreach_sqrt(mean_squares)
            foreach_add_(scale, 1e-8)
            foreach_addcdiv_(weights, gradients, scale, -options.learning_rate)
            foreach_lerp_(weights, trained, options.decay)
    return metric
