"""Softmax attention: PyTorch's fused kernel, or two matrix products to train on a CPU.

Shapes: B rows, T queries, S keys.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

QUERY_BLOCK = 128  # queries per matrix product on a CPU; 64 and 256 were slower
MAX_BLOCKS = 4  # more take long to compile


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Softmax attention, (B, n_head, T, head_dim).

    q is (B, n_head, T, head_dim), k and v (B, n_kv_head, S, head_dim). `mask` (B, 1, T, S) is True
    where a query may attend to a key. Without a mask attention is causal: S equals T, and query i
    attends to keys 0 to i.
    """
    if q.device.type != "cpu" or not torch.is_grad_enabled():
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=True
        )
    # On a CPU the fused kernel's backward pass is slow. Two matrix products with a float32 softmax
    # between them, compiled, make training with windows of 64 to 256 1.3 times as fast.
    if k.size(1) != q.size(1):  # each key/value head serves several query heads
        k, v = (x.repeat_interleave(q.size(1) // x.size(1), dim=1) for x in (k, v))
    if mask is not None:
        return MaskedAttention.apply(q, k, v, mask)
    outputs = []  # one per block of queries: a block skips the keys that come after all of it
    size = max(QUERY_BLOCK, -(-q.size(2) // MAX_BLOCKS))
    for start in range(0, q.size(2), size):
        block = q[:, :, start : start + size]
        end = start + block.size(2)
        causal = torch.ones(block.size(2), end, dtype=torch.bool, device=q.device).tril(start)
        outputs.append(MaskedAttention.apply(block, k[:, :, :end], v[:, :, :end], causal))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)


class MaskedAttention(torch.autograd.Function):
    """Softmax attention by its definition, with a backward pass that compiles well for a CPU.

    `mask` broadcasts to (B, n_head, T, S) and is True where a query may attend. The attention
    probabilities are saved for the backward pass instead of being computed again, and no gradient
    is returned as a transposed view.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        scores = (q @ k.mT).float() * q.size(-1) ** -0.5  # (B, n_head, T, S)
        p = scores.masked_fill(~mask, float("-inf")).softmax(dim=-1).to(v.dtype)
        y = p @ v  # (B, n_head, T, head_dim)
        ctx.save_for_backward(q, k, v, p, y)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, p, y = ctx.saved_tensors
        grad_p = (grad @ v.mT).float()  # (B, n_head, T, S)
        mean = (grad.float() * y.float()).sum(dim=-1, keepdim=True)  # equals (p * grad_p).sum(-1)
        grad_scores = p.float() * (grad_p - mean) * q.size(-1) ** -0.5
        grad_scores = grad_scores.to(q.dtype)
        return grad_scores @ k, grad_scores.mT @ q, p.mT @ grad, None
