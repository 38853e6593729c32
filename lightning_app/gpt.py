"""The network: the Qwen3 dense decoder, character ids in, logits out.

Pre-norm RMSNorm (arXiv 1910.07467), rotary positions (2104.09864), RMS-normalised queries and keys
(2302.05442), SwiGLU (2002.05202), grouped-query heads (2305.13245), no biases: today's standard
block, which `transformers`, vLLM, llama.cpp and MLX already know, so `export` needs no custom code.
The decoder itself is Algorithm 10 of *Formal Algorithms for Transformers* (2207.09238).

Shapes: B rows, T characters, V symbols in the alphabet, D = n_embd.
"""

from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from lightning_app.errors import UserError

NORM_EPS = 1e-6
PIECE = 128  # queries that attend together on a CPU; 64 and 256 were slower


@dataclass(frozen=True)
class GPTConfig:
    """The sizes of a network; raises UserError for sizes that cannot be built.

    `n_kv_head` None means one key/value head per query head; `mlp_size` None means 8/3 n_embd,
    rounded down to a multiple of 64, which gives SwiGLU the parameters of a 4 n_embd MLP.
    `rope_theta` sets the longest wavelength of the rotary positions, 2 pi rope_theta characters.
    """

    vocab_size: int
    block_size: int
    n_layer: int
    n_head: int
    n_embd: int
    n_kv_head: int | None = None
    mlp_size: int | None = None
    dropout: float = 0.0
    tie_embeddings: bool = False
    rope_theta: float = 500.0

    def __post_init__(self) -> None:
        if self.n_kv_head is None:
            object.__setattr__(self, "n_kv_head", self.n_head)
        if self.mlp_size is None:
            object.__setattr__(self, "mlp_size", max(64, self.n_embd * 8 // 3 // 64 * 64))
        for name in ("vocab_size", "block_size", "n_layer", "n_head", "n_embd", "n_kv_head"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.mlp_size < 1:
            raise UserError(f"mlp_size is {self.mlp_size}; it must be at least 1")
        if self.n_embd % (2 * self.n_head):
            raise UserError(
                f"n_embd {self.n_embd} does not divide into n_head {self.n_head} heads of an even "
                f"size; take a multiple of {2 * self.n_head}"
            )
        if self.n_head % self.n_kv_head:
            raise UserError(
                f"n_head {self.n_head} is not a multiple of n_kv_head {self.n_kv_head}; "
                "each key/value head serves the same number of query heads"
            )
        if not 1 <= self.rope_theta < 1e9:
            raise UserError(f"rope_theta is {self.rope_theta}; it must be at least 1 and below 1e9")
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout is {self.dropout}; it must be at least 0 and below 1")

    @property
    def head_dim(self) -> int:
        return self.n_embd // self.n_head

    def flops_per_character(self) -> int:
        """Training FLOPs a character: 6 a weight in matrix products, and attention's two products
        over the whole window, forward and backward (PaLM's count, arXiv 2204.02311, appendix B).
        """
        d, kv = self.n_embd, self.n_kv_head * self.head_dim
        weights = self.n_layer * (2 * d * d + 2 * d * kv + 3 * d * self.mlp_size)
        weights += d * self.vocab_size
        return 6 * weights + 12 * self.n_layer * self.block_size * d


class KVCache:
    """Keys and values of the characters read so far: B rows, each with its own length.

    Rows may differ in length: a row's padding lies at positions it has not reached, which its
    queries cannot see, and is overwritten when the row gets there.
    """

    def __init__(self, gpt: "GPT", batch_size: int) -> None:
        c, like = gpt.config, gpt.embedding.weight
        shape = (c.n_layer, batch_size, c.n_kv_head, c.block_size, c.head_dim)
        self.keys, self.values = like.new_zeros(shape), like.new_zeros(shape)
        self.length = torch.zeros(batch_size, dtype=torch.long)  # on the host: it steers slicing
        self.rows = torch.arange(batch_size, device=like.device)[:, None]  # (B, 1)

    def append(
        self, layer: int, k: Tensor, v: Tensor, positions: Tensor, span: int
    ) -> tuple[Tensor, Tensor]:
        """Write k, v (B, n_kv_head, T, head_dim) at `positions` (B, T); return the first `span`
        positions of every row, (B, n_kv_head, span, head_dim)."""
        keys, values = self.keys[layer], self.values[layer]
        keys[self.rows, :, positions] = k.transpose(1, 2).to(keys.dtype)
        values[self.rows, :, positions] = v.transpose(1, 2).to(values.dtype)
        return keys[:, :, :span], values[:, :, :span]


class RMSNorm(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], self.weight.to(x.dtype), NORM_EPS)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions: turn each pair (x[i], x[i + head_dim / 2]) by its position's angle.

    x (B, heads, T, head_dim); cos, sin (T, head_dim / 2), or (B, 1, T, head_dim / 2).
    """
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def attend(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor | None = None) -> Tensor:
    """Softmax attention: q (B, n_head, T, head_dim), k and v (B, n_kv_head, S, head_dim).

    `hidden` (B, 1, T, S) is True where a query must not look; without it S is T, and a query sees
    the keys up to its own place.
    """
    if q.device.type != "cpu":
        mask = None if hidden is None else ~hidden
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=hidden is None, enable_gqa=True
        )
    # On a CPU the fused kernel's backward is slow at these lengths; two matrix products with a
    # float32 softmax between them, compiled, train 1.3 times as fast.
    if k.size(1) != q.size(1):
        k, v = (x.repeat_interleave(q.size(1) // x.size(1), dim=1) for x in (k, v))
    if hidden is not None:
        return Weigh.apply(q, k, v, hidden)
    pieces = []  # queries by the piece: none multiplies keys that its whole piece cannot see
    for first in range(0, q.size(2), PIECE):
        piece = q[:, :, first : first + PIECE]
        end = first + piece.size(2)
        future = torch.ones(piece.size(2), end, dtype=torch.bool, device=q.device).triu(first + 1)
        pieces.append(Weigh.apply(piece, k[:, :, :end], v[:, :, :end], future))
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=2)


class Weigh(torch.autograd.Function):
    """Softmax attention by its definition; `hidden` broadcasts to (B, n_head, T, S).

    The gradient is the one that autograd would find, by formulas that compile well for a CPU: the
    weights are kept, not computed again, and no gradient arrives transposed.
    """

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, hidden: Tensor) -> Tensor:
        scores = (q @ k.mT).float() * q.size(-1) ** -0.5
        weights = scores.masked_fill(hidden, float("-inf")).softmax(dim=-1).to(v.dtype)
        y = weights @ v  # (B, n_head, T, head_dim)
        ctx.save_for_backward(q, k, v, weights, y)
        return y

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, weights, y = ctx.saved_tensors
        of_weights = (grad @ v.mT).float()
        mean = (grad.float() * y.float()).sum(dim=-1, keepdim=True)  # (weights * of_weights).sum
        of_scores = weights.float() * (of_weights - mean) * q.size(-1) ** -0.5
        of_scores = of_scores.to(q.dtype)
        return of_scores @ k, of_scores.mT @ q, weights.mT @ grad, None


@torch.library.custom_op("lightning_app::keep_mask", mutates_args=())
def keep_mask(x: Tensor, dropped: int) -> Tensor:
    """True, like x, except for about `dropped` in 256 elements; from torch's generator."""
    words = torch.empty(-(-x.numel() // 8), dtype=torch.int64).random_(-(2**63), None)
    return (words.view(torch.uint8)[: x.numel()] >= dropped).view(x.shape)


@keep_mask.register_fake
def _(x: Tensor, dropped: int) -> Tensor:
    return x.new_empty(x.shape, dtype=torch.bool)


class Dropout(nn.Module):
    """nn.Dropout, but on a CPU one byte decides about an element: to draw a float32 for each took a
    sixth of a training step. The share is then the nearest 256th, p 0.15 is 0.148."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or x.device.type != "cpu":
            return F.dropout(x, self.p, self.training)
        dropped = min(255, round(256 * self.p))
        if dropped == 0:
            return x
        return x * keep_mask(x, dropped) * (256 / (256 - dropped))


class Attention(nn.Module):
    def __init__(self, c: GPTConfig) -> None:
        super().__init__()
        kv_size = c.n_kv_head * c.head_dim
        self.sizes = (c.n_embd, kv_size, kv_size)
        self.head_dim = c.head_dim
        self.q_proj = nn.Linear(c.n_embd, c.n_embd, bias=False)
        self.k_proj = nn.Linear(c.n_embd, kv_size, bias=False)
        self.v_proj = nn.Linear(c.n_embd, kv_size, bias=False)
        self.o_proj = nn.Linear(c.n_embd, c.n_embd, bias=False)
        self.q_norm, self.k_norm = RMSNorm(c.head_dim), RMSNorm(c.head_dim)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, hidden=None, append=None) -> Tensor:
        # Three parameters, so that Muon orthogonalises each apart; one product, which is faster.
        weight = torch.cat((self.q_proj.weight, self.k_proj.weight, self.v_proj.weight))
        qkv = F.linear(x, weight).split(self.sizes, dim=-1)  # (B, T, heads * head_dim) each
        q, k, v = (z.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for z in qkv)
        q, k = rotate(self.q_norm(q), cos, sin), rotate(self.k_norm(k), cos, sin)
        if append:
            k, v = append(k, v)
        y = attend(q, k, v, hidden)  # like q: (B, n_head, T, head_dim)
        return self.o_proj(y.transpose(1, 2).flatten(2))  # (B, T, D)


class MLP(nn.Module):
    def __init__(self, c: GPTConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(c.n_embd, c.mlp_size, bias=False)
        self.up_proj = nn.Linear(c.n_embd, c.mlp_size, bias=False)
        self.down_proj = nn.Linear(c.mlp_size, c.n_embd, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        weight = torch.cat((self.gate_proj.weight, self.up_proj.weight))
        gate, up = F.linear(x, weight).chunk(2, dim=-1)  # (B, T, mlp_size) each
        return self.down_proj(F.silu(gate) * up)


class Block(nn.Module):
    def __init__(self, c: GPTConfig) -> None:
        super().__init__()
        self.attention_norm, self.attention = RMSNorm(c.n_embd), Attention(c)
        self.mlp_norm, self.mlp = RMSNorm(c.n_embd), MLP(c)
        self.dropout = Dropout(c.dropout)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, hidden=None, append=None) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x), cos, sin, hidden, append))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))


class GPT(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        c = self.config = config
        self.embedding = nn.Embedding(c.vocab_size, c.n_embd)
        self.dropout = Dropout(c.dropout)
        self.blocks = nn.ModuleList(Block(c) for _ in range(c.n_layer))
        self.norm = RMSNorm(c.n_embd)
        self.lm_head = nn.Linear(c.n_embd, c.vocab_size, bias=False)
        if c.tie_embeddings:
            self.lm_head.weight = self.embedding.weight

        with torch.device("cpu"):  # real numbers also where weights are only shapes (meta)
            frequencies = c.rope_theta ** (-torch.arange(0, c.head_dim, 2) / c.head_dim)
            angles = torch.outer(torch.arange(c.block_size), frequencies)
        self.register_buffer("cos", angles.cos(), persistent=False)  # (block_size, head_dim / 2)
        self.register_buffer("sin", angles.sin(), persistent=False)
        self.init_weights()

    def init_weights(self) -> None:
        """Start as the identity: every block adds nothing, and (untied) every logit is 0, so the
        first loss is ln V. Other matrices keep nn.Linear's uniform(+-1/sqrt(fan_in))."""
        for block in self.blocks:
            nn.init.zeros_(block.attention.o_proj.weight)
            nn.init.zeros_(block.mlp.down_proj.weight)
        if self.config.tie_embeddings:  # the same matrix makes the logits: keep them small
            nn.init.normal_(self.embedding.weight, std=0.02)
        else:
            nn.init.normal_(self.embedding.weight, std=1.0)
            nn.init.zeros_(self.lm_head.weight)

    def forward(self, idx: Tensor, cache: KVCache | None = None) -> Tensor:
        """Logits (B, T, V) of the character after each of `idx` (B, T), at most block_size in all.

        With a cache, row b's characters stand at positions cache.length[b] and on; their keys and
        values are added to it, and its lengths grow by T.
        """
        T = idx.size(1)
        dtype = torch.get_autocast_dtype(idx.device.type) if autocast(idx) else self.cos.dtype
        if cache is None:
            cos, sin = self.cos[:T], self.sin[:T]
            hidden = None
        else:
            span = int(cache.length.max()) + T
            positions = cache.length[:, None] + torch.arange(T)  # (B, T)
            positions = positions.clamp(max=self.config.block_size - 1).to(idx.device)  # padding
            cos, sin = self.cos[positions][:, None], self.sin[positions][:, None]
            hidden = torch.arange(span, device=idx.device) > positions[:, None, :, None]
        cos, sin = cos.to(dtype), sin.to(dtype)

        x = self.dropout(self.embedding(idx)).to(dtype)  # (B, T, D)
        for layer, block in enumerate(self.blocks):
            append = None
            if cache is not None:

                def append(k: Tensor, v: Tensor, layer: int = layer) -> tuple[Tensor, Tensor]:
                    return cache.append(layer, k, v, positions, span)

            x = block(x, cos, sin, hidden, append)
        if cache is not None:
            cache.length += T
        return self.lm_head(self.norm(x))


def autocast(like: Tensor) -> bool:
    """Whether mixed precision is on for the device `like` lives on."""
    return torch.is_autocast_enabled(like.device.type)


def loss_per_character(logits: Tensor, targets: Tensor) -> Tensor:
    """Negative log-likelihood in nats, (B * T,) float32; 0 where the target is -1 (padding)."""
    logits = logits.flatten(0, 1).float()
    return F.cross_entropy(logits, targets.flatten(), ignore_index=-1, reduction="none")
