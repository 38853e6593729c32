"""Muon: gradient descent by the orthogonal matrix nearest to a matrix's momentum.

Jordan et al. 2024, https://kellerjordan.github.io/posts/muon. The nearest orthogonal matrix (U V^T
of the singular value decomposition U S V^T) is approximated by Newton-Schulz steps: odd polynomials
of the matrix, which move its singular values towards 1 and need matrix products only.
"""

import torch
from torch import Tensor

# Coefficients of x, x^3 and x^5 in three steps, which together map singular values from 0.01..1 to
# 0.71..1.29. Each polynomial is close to optimal for the range that the one before it maps to
# (Polar Express, arXiv 2505.16932).
QUINTICS = ((7.7110, -22.1138, 16.2487), (3.6618, -2.7402, 0.5386), (2.6987, -2.0077, 0.4560))


def orthogonalize(g: Tensor) -> Tensor:
    """Approximately the orthogonal matrix nearest to each matrix in g (N, rows, columns).

    rows must not exceed columns. The result has the shape and dtype of g; its singular values are
    within 0.71..1.29, except those below a hundredth of the matrix's Schatten 4-norm, which are
    smaller. A zero matrix gives zero.

    Dividing by a norm brings the singular values into 0..1. The Schatten 4-norm (the fourth root of
    the sum of their fourth powers) is the square root of the Frobenius norm of x x^T, which the
    first step needs anyway, and is closer to the largest singular value than the Frobenius norm of
    x. That saves one of Muon's usual five steps; the polynomials above save another.
    """
    x = g / (g.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    a = x @ x.mT  # (N, rows, rows)
    norm = a.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-6)  # a zero matrix stays zero
    a, x = a / norm, x * norm.rsqrt()
    for step, (linear, cubic, quintic) in enumerate(QUINTICS):
        if step > 0:
            a = x @ x.mT
        p = torch.baddbmm(a, a, a, beta=cubic, alpha=quintic)
        x = torch.baddbmm(x, p, x, beta=linear)
    return x


def muon_step(
    params: list[Tensor],
    grads: list[Tensor],
    momenta: list[Tensor],
    lr: Tensor,
    weight_decay: Tensor,
    momentum: float,
    dtype: torch.dtype,
) -> None:
    """One step of Muon, which changes `params` and `momenta` in place.

    All matrices must have one shape or its transpose, so that they are orthogonalized in one batch,
    in `dtype`. `momenta` are the running averages of the gradients, of weight `momentum` for the
    past; `weight_decay` is per unit of the learning rate `lr`.
    """
    wide = []  # rows <= columns
    for grad, average in zip(grads, momenta, strict=True):
        average.lerp_(grad, 1 - momentum)
        update = grad.lerp(average, momentum)  # Nesterov
        wide.append(update.mT if update.size(0) > update.size(1) else update)
    for p, update in zip(params, orthogonalize(torch.stack(wide).to(dtype)), strict=True):
        rows, columns = p.shape
        scale = max(1.0, rows / columns) ** 0.5  # outputs change by the same RMS in every shape
        update = (update.mT if rows > columns else update).to(p.dtype)
        p.mul_(1 - lr * weight_decay).sub_(update * (lr * scale))
