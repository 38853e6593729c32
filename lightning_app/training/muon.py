"""Muon: a matrix's momentum, replaced by the nearest orthogonal matrix."""

import torch
from torch import Tensor

# Three odd quintics that together send singular values in 0.01..1 to 0.71..1.29: each has about the
# smallest error on what the one before it leaves (Polar Express, arXiv 2505.16932).
QUINTICS = ((7.7110, -22.1138, 16.2487), (3.6618, -2.7402, 0.5386), (2.6987, -2.0077, 0.4560))


def orthogonalize(g: Tensor) -> Tensor:
    """Roughly the orthogonal factor of each matrix in g (N, rows <= columns, columns), in g's type.

    Singular values end within 0.71..1.29, down to a hundredth of the Schatten 4-norm. That norm is
    the Frobenius norm of the first product, so it costs nothing, and lies closer above the largest
    singular value than the matrix's own Frobenius norm: it saves one of Muon's five steps, better
    polynomials another.
    """
    x = g / (g.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    a = x @ x.mT
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
    """One step of Muon, in place, for matrices that all have one shape or its transpose; they are
    orthogonalized in `dtype`."""
    lying = []  # on their long side
    for grad, memory in zip(grads, momenta, strict=True):
        memory.lerp_(grad, 1 - momentum)
        update = grad.lerp(memory, momentum)  # Nesterov
        lying.append(update.mT if update.size(0) > update.size(1) else update)
    for p, update in zip(params, orthogonalize(torch.stack(lying).to(dtype)), strict=True):
        rows, columns = p.shape
        scale = max(1.0, rows / columns) ** 0.5  # the same RMS change per output
        update = (update.mT if rows > columns else update).to(p.dtype)
        p.mul_(1 - lr * weight_decay).sub_(update * (lr * scale))
