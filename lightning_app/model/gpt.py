"""The network: the Qwen3 dense decoder, character ids in, logits out.

Pre-norm RMSNorm (arXiv 1910.07467), rotary positions (2104.09864), RMS-normalised queries and keys
(2302.05442), SwiGLU (2002.05202), grouped-query heads (2305.13245), no biases: today's standard
block, which the library `transformers` knows by the name Qwen3, so `export` needs no custom code.
The decoder itself is Algorithm 10 of *Formal Algorithms for Transformers* (2207.09238).

Shapes: B rows, T characters, V symbols in the alphabet, D = n_embd.
"""

from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from lightning_app.errors import UserError
from lightning_app.model.attention import attention
from lightning_app.model.dropout import Dropout
from lightning_app.model.kv_cache import KVCache, LayerCache, context_length

NORM_EPS = 1e-6


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


@dataclass(frozen=True)
class Positions:
    """Where the characters of a call of `GPT.forward` stand in their texts.

    Without a KV cache, `index` and `mask` are None: every row starts at position 0, and each
    character sees those up to its own.
    """

    cos: Tensor  # (T, head_dim / 2), or (B, 1, T, head_dim / 2)
    sin: Tensor
    index: Tensor | None = None  # (B, T)
    mask: Tensor | None = None  # (B, 1, T, S), True where a character sees a position


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

    def forward(self, x: Tensor, at: Positions, cache: LayerCache | None = None) -> Tensor:
        # Three parameters, so that Muon orthogonalises each apart; one product, which is faster.
        weight = torch.cat((self.q_proj.weight, self.k_proj.weight, self.v_proj.weight))
        qkv = F.linear(x, weight).split(self.sizes, dim=-1)  # (B, T, heads * head_dim) each
        q, k, v = (z.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for z in qkv)
        q = rotate(self.q_norm(q), at.cos, at.sin)  # (B, n_head, T, head_dim)
        k = rotate(self.k_norm(k), at.cos, at.sin)  # (B, n_kv_head, T, head_dim)
        if cache is not None and at.index is not None and at.mask is not None:
            k, v = cache.append(k, v, at.index, at.mask.size(-1))  # (B, n_kv_head, S, head_dim)
        y = attention(q, k, v, at.mask)  # (B, n_head, T, head_dim)
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

    def forward(self, x: Tensor, at: Positions, cache: LayerCache | None = None) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x), at, cache))
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
        values are added to it, and its lengths grow by T. Raises UserError for a longer `idx`.
        """
        T, block_size = idx.size(1), self.config.block_size
        if block_size < T:
            raise UserError(
                f"a window of {T:,} characters is longer than block_size {block_size:,}"
            )
        at = self.positions(idx, cache)
        layers = [None] * len(self.blocks) if cache is None else cache.layers
        x = self.dropout(self.embedding(idx)).to(at.cos.dtype)  # (B, T, D)
        for block, layer in zip(self.blocks, layers, strict=True):
            x = block(x, at, layer)
        if cache is not None:
            cache.length += T
        return self.lm_head(self.norm(x))

    def positions(self, idx: Tensor, cache: KVCache | None) -> Positions:
        """Where the characters of `idx` (B, T) stand, in the dtype of the products."""
        T, device = idx.size(1), idx.device
        autocast = torch.is_autocast_enabled(device.type)
        dtype = torch.get_autocast_dtype(device.type) if autocast else self.cos.dtype
        if cache is None:
            return Positions(self.cos[:T].to(dtype), self.sin[:T].to(dtype))
        index = cache.length[:, None] + torch.arange(T)  # (B, T)
        index = index.clamp(max=self.config.block_size - 1).to(device)  # padding
        span = torch.arange(int(cache.length.max()) + T, device=device)  # (S,)
        cos, sin = self.cos[index][:, None], self.sin[index][:, None]
        return Positions(cos.to(dtype), sin.to(dtype), index, span <= index[:, None, :, None])

    def kv_cache(self, batch_size: int) -> KVCache:
        """An empty cache for `batch_size` rows of text."""
        c = self.config
        shape = (c.n_layer, batch_size, c.n_kv_head, c.block_size, c.head_dim)
        return KVCache(shape, like=self.embedding.weight)

    @torch.no_grad()
    def generate(
        self,
        idx: Tensor,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        uniform: Tensor | None = None,
    ) -> Tensor:
        """`idx` (B, T) and max_new_tokens more ids a row, (B, T + max_new_tokens).

        The reference: short, without a cache. `uniform` (B, max_new_tokens) are the random numbers
        in [0, 1) to draw with; torch's own without it. The faster way is
        `lightning_app.generation`, which gives the same ids for the same numbers.
        """
        if uniform is None:
            uniform = torch.rand(len(idx), max_new_tokens, device=idx.device)
        for i in range(max_new_tokens):
            window = idx[:, -context_length(idx.size(1), self.config.block_size) :]
            logits = self(window)[:, -1].double() / temperature  # (B, V)
            if top_k is not None:
                smallest = logits.topk(min(top_k, logits.size(-1))).values[:, -1:]
                logits = logits.masked_fill(logits < smallest, float("-inf"))
            cumulated = logits.softmax(dim=-1).cumsum(dim=-1)
            drawn = (cumulated > uniform[:, i : i + 1]).int().argmax(dim=-1, keepdim=True)  # (B, 1)
            idx = torch.cat((idx, drawn), dim=1)
        return idx


def loss_per_character(logits: Tensor, targets: Tensor) -> Tensor:
    """Negative log-likelihood in nats, (B * T,) float32; 0 where the target is -1 (padding)."""
    logits = logits.flatten(0, 1).float()
    return F.cross_entropy(logits, targets.flatten(), ignore_index=-1, reduction="none")
