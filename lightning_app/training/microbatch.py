"""The loss and gradient of a large batch, computed one micro-batch at a time.

On a CPU a training step waits for memory once a layer's activations are larger than the caches.
Split into micro-batches that fit, the same batch trains up to 1.3 times as fast
(benchmarks/throughput.py), and only one micro-batch's activations are in memory.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from lightning_app.torch_internals import foreach_add_, foreach_mul

# In a micro-batch. Half as many was slower at widths of 128 to 384, twice as many at 384.
MAX_CHARACTERS = 2048


@cache
def rows_per_microbatch(rows: int, length: int) -> int:
    """How many of a batch's `rows` of `length` characters make up a micro-batch.

    The largest divisor of `rows` with at most MAX_CHARACTERS characters; `rows` itself where that
    would have less than half of them, because small micro-batches are slow.
    """
    fitting = [n for n in range(1, rows + 1) if rows % n == 0 and n * length <= MAX_CHARACTERS]
    most = max(fitting, default=1)
    return most if 2 * most * length >= MAX_CHARACTERS else rows


class MicrobatchedLoss(torch.autograd.Function):
    """The mean loss of a batch, with a gradient that is computed in the forward pass.

    `MicrobatchedLoss.apply(loss, batch, rows, *weights)` returns the mean of `loss(*batch)`, and
    the losses themselves (B * T,), without a gradient. `batch` are tensors of B rows each, the
    first (B, T); B is a multiple of `rows`, the rows in a micro-batch. `loss` takes any number of
    rows and returns one loss per character; it may depend on `weights` only.

    The gradient is that of the full batch except for rounding. Each micro-batch's gradient is
    computed and added up before the next one's forward pass, so its activations are freed by then.
    """

    @staticmethod
    def forward(
        ctx: Any,
        loss: Callable[..., Tensor],
        batch: Sequence[Tensor],
        rows: int,
        *weights: Tensor,
    ) -> tuple[Tensor, Tensor]:
        parts, count, device = [], batch[0].numel(), batch[0].device.type
        for microbatch in zip(*(x.split(rows) for x in batch), strict=True):
            with torch.enable_grad():
                part = loss(*microbatch)  # (rows * T,)
                share = part.sum() / count  # of the batch's mean
            parts.append(part.detach())
            with torch.autocast(device, enabled=False):
                gradients = torch.autograd.grad(share, weights)
            if len(parts) == 1:
                ctx.gradients = gradients
            else:
                foreach_add_(ctx.gradients, gradients)
        losses = torch.cat(parts)
        ctx.mark_non_differentiable(losses)
        return losses.mean(), losses

    @staticmethod
    def backward(ctx: Any, mean_gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, None, *foreach_mul(ctx.gradients, mean_gradient)
