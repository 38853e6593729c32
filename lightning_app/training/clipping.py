"""The norm and the clipping of gradients, some of which may be sparse."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """The norm of all gradients as one vector, (); rows of a sparse gradient that occur several
    times are added up first, in place."""
    gradients = []
    for p in parameters:
        if p.grad is not None:
            if p.grad.is_sparse:
                p.grad = p.grad.coalesce()
            gradients.append(p.grad.values() if p.grad.is_sparse else p.grad)
    return torch.nn.utils.get_total_norm(gradients)


@torch.no_grad()
def clip_gradients(
    parameters: Sequence[nn.Parameter], limit: float, algorithm: str | None = None
) -> Tensor:
    """Limit the norm of all gradients, or with algorithm "value" every element; returns the norm
    that they had before. Only rows that a sparse gradient has are read and changed."""
    norm = gradient_norm(parameters)
    with_gradient = [p for p in parameters if p.grad is not None]
    dense = [p for p in with_gradient if p.grad is not None and not p.grad.is_sparse]
    sparse = [p.grad.values() for p in with_gradient if p.grad is not None and p.grad.is_sparse]
    if algorithm == "value":
        torch.nn.utils.clip_grad_value_(dense, limit)
        for values in sparse:
            values.clamp_(-limit, limit)
    else:
        torch.nn.utils.clip_grads_with_norm_(dense, limit, norm)
        for values in sparse:
            values.mul_((limit / (norm + 1e-6)).clamp(max=1.0))
    return norm
