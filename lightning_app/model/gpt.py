"""The network: the Qwen3 dense decoder, character ids in, logits out.

Pre-norm RMSNorm (arXiv 1910.07467), rotary positions (2104.09864), RMS-normalised queries and keys
(2302.05442), SwiGLU (2002.05202), grouped-query attention (2305.13245), no biases: today's standard
block. The library `transformers` has it under the name Qwen3, so an exported network needs no
custom code, unless it has n-gram tables. The complete decoder is Algorithm 10 of *Formal Algorithms
for Transformers* (2207.09238).

Shapes: B rows, T characters, S cached positions, V characters in the alphabet, D = n_embd.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from lightning_app.errors import UserError
from lightning_app.model.attention import attention
from lightning_app.model.dropout import Dropout
from lightning_app.model.kv_cache import KVCache, LayerCache, context_length
from lightning_app.model.ngrams import NgramCounts

NORM_EPS = 1e-6
MAX_NGRAM = 17  # characters
MAX_ROWS = 2**24  # of a table


@dataclass(frozen=True)
class GPTConfig:
    """The sizes of a network. Raises UserError for sizes that cannot be built.

    n_kv_head: Key/value heads; None means n_head.
    mlp_size: Hidden width of the MLP; None means 8/3 n_embd, rounded down to a multiple of 64,
        which gives SwiGLU as many parameters as an MLP of width 4 n_embd without a gate.
    rope_theta: Base of the rotary positions; the longest wavelength is nearly 2 pi rope_theta
        characters.
    ngram_rows: Rows of the tables for the last 2, 3, ... characters, 0 for none; see
        `model.ngrams`. Empty: no counts, which is exactly Qwen3.
    """

    vocab_size: int
    block_size: int
    n_layer: int
    n_head: int
    n_embd: int
    # None is accepted for these two and replaced in __post_init__, so that readers get an int.
    n_kv_head: int = None  # type: ignore[assignment]
    mlp_size: int = None  # type: ignore[assignment]
    dropout: float = 0.0
    tie_embeddings: bool = False
    rope_theta: float = 500.0
    ngram_rows: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        derived = {"n_kv_head": self.n_head, "mlp_size": max(64, self.n_embd * 8 // 3 // 64 * 64)}
        for name, size in derived.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, size)
        sizes = ("vocab_size", "block_size", "n_layer", "n_head", "n_embd", "n_kv_head", "mlp_size")
        for name in sizes:
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 1")
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
        object.__setattr__(self, "ngram_rows", tuple(self.ngram_rows or ()))  # None, a list
        if len(self.ngram_rows) > MAX_NGRAM - 1:
            raise UserError(
                f"ngram_rows has {len(self.ngram_rows)} tables; it may have {MAX_NGRAM - 1}, for 2 "
                f"to {MAX_NGRAM} characters"
            )
        for rows in self.ngram_rows:
            if not 0 <= rows <= MAX_ROWS:
                raise UserError(
                    f"ngram_rows has {rows} rows; a table may have 1 to {MAX_ROWS:,}, and 0 means "
                    "no table"
                )
        if not any(self.ngram_rows):
            object.__setattr__(self, "ngram_rows", ())
        if not 1 <= self.rope_theta < 1e9:
            raise UserError(f"rope_theta is {self.rope_theta}; it must be at least 1 and below 1e9")
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout is {self.dropout}; it must be at least 0 and below 1")

    @property
    def head_dim(self) -> int:
        return self.n_embd // self.n_head

    def cache_shape(self, batch_size: int) -> tuple[int, int, int, int, int]:
        """(n_layer, B, n_kv_head, block_size, head_dim): the shape of a cache's keys or values."""
        return (self.n_layer, batch_size, self.n_kv_head, self.block_size, self.head_dim)

    def flops_per_character(self, window: float | None = None) -> float:
        """FLOPs of training on one character of a window of `window` characters, by default a full
        one.

        6 per weight of a matrix product, and for attention its two products over the window,
        forward and backward; counted as in the PaLM paper (arXiv 2204.02311, appendix B).
        """
        window = self.block_size if window is None else window
        d, kv = self.n_embd, self.n_kv_head * self.head_dim
        weights = self.n_layer * (2 * d * d + 2 * d * kv + 3 * d * self.mlp_size)
        weights += d * self.vocab_size
        return 6 * weights + 12 * self.n_layer * window * d


class RMSNorm(nn.Module):
    """x / RMS(x) * weight over the last dimension (arXiv 1910.07467)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], self.weight.to(x.dtype), NORM_EPS)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions: rotate each pair (x[i], x[i + head_dim / 2]) by its position's angle.

    x (B, heads, T, head_dim); cos, sin (T, head_dim / 2), or (B, 1, T, head_dim / 2).
    """
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


class Attention(nn.Module):
    """Causal self-attention with rotary positions, x (B, T, D) to (B, T, D)."""

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

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, cache: LayerCache | None = None
    ) -> Tensor:
        # Separate parameters, because Muon orthogonalises each by itself; one product is faster.
        weight = torch.cat((self.q_proj.weight, self.k_proj.weight, self.v_proj.weight))
        qkv = F.linear(x, weight).split(self.sizes, dim=-1)  # (B, T, heads * head_dim) each
        q, k, v = (z.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for z in qkv)
        q = rotate(self.q_norm(q), cos, sin)  # (B, n_head, T, head_dim)
        k = rotate(self.k_norm(k), cos, sin)  # (B, n_kv_head, T, head_dim)
        mask = None
        if cache is not None:
            k, v = cache.append(k, v)  # (B, n_kv_head, S, head_dim)
            mask = cache.mask
        y = attention(q, k, v, mask)  # (B, n_head, T, head_dim)
        return self.o_proj(y.transpose(1, 2).flatten(2))  # (B, T, D)


class MLP(nn.Module):
    """SwiGLU (arXiv 2002.05202), x (B, T, D) to (B, T, D)."""

    def __init__(self, c: GPTConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(c.n_embd, c.mlp_size, bias=False)
        self.up_proj = nn.Linear(c.n_embd, c.mlp_size, bias=False)
        self.down_proj = nn.Linear(c.mlp_size, c.n_embd, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        weight = torch.cat((self.gate_proj.weight, self.up_proj.weight))
        gate, up = F.linear(x, weight).chunk(2, dim=-1)  # (B, T, mlp_size) each
        return self.down_proj(F.silu(gate) * up)  # (B, T, D)


class Block(nn.Module):
    """Attention, then the MLP; the output of each is added to its input, x (B, T, D)."""

    def __init__(self, c: GPTConfig) -> None:
        super().__init__()
        self.attention_norm, self.attention = RMSNorm(c.n_embd), Attention(c)
        self.mlp_norm, self.mlp = RMSNorm(c.n_embd), MLP(c)
        self.dropout = Dropout(c.dropout)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, cache: LayerCache | None = None
    ) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x), cos, sin, cache))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))


class GPT(nn.Module):
    """The network: ids (B, T) to logits (B, T, V) of the characters that follow."""

    cos: Tensor  # (block_size, head_dim / 2)
    sin: Tensor

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        c = self.config = config
        self.embedding = nn.Embedding(c.vocab_size, c.n_embd)
        self.ngrams = NgramCounts(c.ngram_rows, c.n_embd, c.vocab_size) if c.ngram_rows else None
        self.dropout = Dropout(c.dropout)
        # for mypy the elements of an nn.ModuleList are of type nn.Module
        self.blocks = cast(Sequence[Block], nn.ModuleList(Block(c) for _ in range(c.n_layer)))
        self.norm = RMSNorm(c.n_embd)
        self.lm_head = nn.Linear(c.n_embd, c.vocab_size, bias=False)
        if c.tie_embeddings:
            self.lm_head.weight = self.embedding.weight

        with torch.device("cpu"):  # real values even while the weights are on the meta device
            frequencies = c.rope_theta ** (-torch.arange(0, c.head_dim, 2) / c.head_dim)
            angles = torch.outer(torch.arange(c.block_size), frequencies)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        self.init_weights()

    def init_weights(self) -> None:
        """Every block starts as the identity. Untied, every logit starts at 0, so the first loss is
        ln V. All other matrices keep nn.Linear's uniform(+-1/sqrt(fan_in))."""
        for block in self.blocks:
            nn.init.zeros_(block.attention.o_proj.weight)
            nn.init.zeros_(block.mlp.down_proj.weight)
        if self.config.tie_embeddings:  # this matrix also makes the logits: keep them small
            nn.init.normal_(self.embedding.weight, std=0.02)
        else:
            nn.init.normal_(self.embedding.weight, std=1.0)
            nn.init.zeros_(self.lm_head.weight)

    def forward(
        self,
        idx: Tensor,
        cache: KVCache | None = None,
        begins: Tensor | None = None,
    ) -> Tensor:
        """Logits (B, T, V) for the character after each of `idx` (B, T).

        Without a cache, every row starts at position 0. With one, row b continues at position
        cache.length[b]; its keys and values are added to the cache, and every length grows by T.
        `begins` (B,), where each row begins in the training text, is given for windows of that text
        only: n-gram tables leave it out of their counts (see `NgramCounts.look_up`), and other
        networks ignore it.
        Raises UserError if T exceeds block_size.
        """
        T, block_size, device = idx.size(1), self.config.block_size, idx.device.type
        if block_size < T:
            raise UserError(
                f"a window of {T:,} characters is longer than block_size {block_size:,}"
            )
        layers: Sequence[LayerCache | None]
        if cache is None:
            layers = [None] * len(self.blocks)
            cos, sin = self.cos[:T], self.sin[:T]  # (T, head_dim / 2)
        else:
            layers = caches = cache.layers(T)
            positions = caches[0].positions[:, None]  # (B, 1, T)
            cos, sin = self.cos[positions], self.sin[positions]  # (B, 1, T, head_dim / 2)
        autocast = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if autocast else self.cos.dtype
        cos, sin = cos.to(dtype), sin.to(dtype)

        x = self.embedding(idx)  # (B, T, D)
        if self.ngrams is not None:
            window, places = (idx, None) if cache is None else cache.append_ids(idx)
            shares = self.ngrams.look_up(window, places, begins)
            x = x + self.ngrams.vectors(shares)
        x = self.dropout(x).to(dtype)
        for block, layer in zip(self.blocks, layers, strict=True):
            x = block(x, cos, sin, layer)
        if cache is not None:
            cache.length += T
        x = self.norm(x)
        logits = self.lm_head(x)  # (B, T, V)
        return logits if self.ngrams is None else logits + self.ngrams.logits(shares, x)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """`nn.Module.compile` of every block. The same code serves all of them, so that this takes
        half the time of compiling the network as a whole; the steps are as fast."""
        for block in self.blocks:
            block.compile(*args, **kwargs)

    def kv_cache(self, batch_size: int) -> KVCache:
        """An empty cache for `batch_size` rows of text."""
        return KVCache(self.config.cache_shape(batch_size), like=self.embedding.weight)

    @torch.no_grad()
    def generate(
        self,
        idx: Tensor,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        uniform: Tensor | None = None,
    ) -> Tensor:
        """`idx` (B, T), T at least 1, followed by max_new_tokens ids: (B, T + max_new_tokens).

        Temperature 0 always takes the most likely character. `uniform` (B, max_new_tokens) are the
        random numbers in [0, 1) to draw with, one per character; by default torch draws them.
        Call in evaluation mode.

        This is the short reference, without a cache. `lightning_app.generation` is faster, has more
        sampling methods, and gives the same ids for the same random numbers.
        """
        if uniform is None:
            uniform = torch.rand(len(idx), max_new_tokens, dtype=torch.float64, device=idx.device)
        if temperature == 0:
            temperature, top_k = 1.0, 1
        for i in range(max_new_tokens):
            window = idx[:, -context_length(idx.size(1), self.config.block_size) :]
            p = (self(window)[:, -1].double() / temperature).softmax(dim=-1)  # (B, V)
            if top_k is not None:  # a stable sort: of equal ones, the lower id is first
                others = p.argsort(dim=-1, descending=True, stable=True)[:, top_k:]
                p = p.scatter(-1, others, 0.0)
            cumulated = p.cumsum(dim=-1)
            passed = cumulated > uniform[:, i : i + 1] * cumulated[:, -1:]
            idx = torch.cat((idx, passed.int().argmax(dim=-1, keepdim=True)), dim=1)
        return idx


def loss_per_character(logits: Tensor, targets: Tensor) -> Tensor:
    """Negative log-likelihood in nats, (B * T,) float32; 0 where the target is -1 (padding)."""
    logits = logits.flatten(0, 1).float()
    return F.cross_entropy(logits, targets.flatten(), ignore_index=-1, reduction="none")
