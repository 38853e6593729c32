"""A large batch's loss and gradient, a piece of the batch at a time.

On a CPU a training step waits for memory once a layer's activations outgrow the caches. Cut into
pieces that fit, the same batch trains up to 1.3 times as fast (benchmarks/throughput.py), and
needs memory for a piece only.
"""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

MAX_CHARACTERS = 2048  # of a piece; half was slower at widths of 128 to 384, twice at 384


@cache
def rows_per_microbatch(rows: int, length: int) -> int:
    """How many of a batch's rows of `length` characters make a piece: as many as divide the batch
    and stay within CHARACTERS, or all where that would be less than half of it."""
    fitting = [n for n in range(1, rows + 1) if rows % n == 0 and n * length <= MAX_CHARACTERS]
    most = max(fitting, default=1)
    return most if 2 * most * length >= MAX_CHARACTERS else rows


class MicrobatchedLoss(torch.autograd.Function):
    """`MeanLoss.apply(loss, idx, targets, rows, *weights)` is the mean of loss(idx, targets), and
    the losses (B * T,) themselves, without a gradient; idx and targets are (B, T).

    `loss` gives those of any number of rows, from `weights`; it sees `rows` of them at a time. The
    gradient is what autograd would find for the whole batch, but for rounding. It is added up in
    the forward pass, so that a piece's activations are gone before the next piece.
    """

    @staticmethod
    def forward(
        ctx,
        loss: Callable[[Tensor, Tensor], Tensor],
        idx: Tensor,
        targets: Tensor,
        rows: int,
        *weights: Tensor,
    ) -> tuple[Tensor, Tensor]:
        pieces = []
        for piece in zip(idx.split(rows), targets.split(rows), strict=True):
            with torch.enable_grad():
                losses = loss(*piece)
                share = losses.sum() / targets.numel()
            pieces.append(losses.detach())
            with torch.autocast(idx.device.type, enabled=False):
                gradients = torch.autograd.grad(share, weights)
            if len(pieces) == 1:
                ctx.gradients = gradients
            else:
                torch._foreach_add_(ctx.gradients, gradients)
        losses = torch.cat(pieces)
        ctx.mark_non_differentiable(losses)
        return losses.mean(), losses

    @staticmethod
    def backward(ctx, of_mean: Tensor, of_losses: Tensor) -> tuple:
        return None, None, None, None, *torch._foreach_mul(ctx.gradients, of_mean)
