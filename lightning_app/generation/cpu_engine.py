"""Generation on a CPU by compiled code.

One text: the network, the distribution and the draw are one compiled function over packed weights.
PyTorch's matrix-vector product reaches a third of the memory bandwidth, and each small operation
costs microseconds. Several texts, or several characters of a prompt: PyTorch's matrix products,
which from a few rows on are as fast as the machine allows, with compiled loops between them.

The weights are float32, bfloat16 (half the bytes), or int8 with a scale for each row (a quarter).
The reference is `torch_engine.uncached_logits`.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Literal, NamedTuple

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_app.generation.cpu_kernels import (
    activate_rows,
    add_rows,
    attend_rows,
    cache_keys,
    decode_row,
    draw_rows,
    next_logits,
    normalize_rows,
)
from lightning_app.generation.ngram_kernels import (
    add_logits_rows,
    add_vectors_rows,
    remember_rows,
)
from lightning_app.generation.numba_cache import max_threads
from lightning_app.generation.threads import ThreadChoice
from lightning_app.hardware import multiplies_bf16
from lightning_app.model.gpt import GPT
from lightning_app.model.ngrams import NgramCounts
from lightning_app.torch_internals import packed_linear

WeightFormat = Literal["float32", "bfloat16", "int8"]
Found = tuple[NDArray, NDArray, NDArray, NDArray]  # as `add_vectors_rows` returns it
PREFILL_SIZE = 128  # characters that a prefill computes together
# Sizes of PyTorch's products. oneDNN compiles code for each size, which takes milliseconds and
# about 2 MB for a layer's products, so that others are padded.
PRODUCT_SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
TRIAL_SIZE = 8  # characters that are generated to measure a number of threads


class PackedWeights(NamedTuple):
    """A network's weights, those of its L layers stacked.

    Each norm's gain is multiplied into the matrix that follows it. A matrix (rows, columns) is to
    be multiplied by its scale (rows,), which is 1 except for int8.
    """

    embedding: NDArray  # (V, D) float32
    qkv: NDArray  # (L, D + 2 KV, D)
    qkv_scale: NDArray
    o: NDArray  # (L, D, D)
    o_scale: NDArray
    gate_up: NDArray  # (L, 2 mlp_size, D)
    gate_up_scale: NDArray
    down: NDArray  # (L, D, mlp_size)
    down_scale: NDArray
    head: NDArray  # (V, D) always float32: rounding it moves the logits directly
    head_scale: NDArray
    q_gain: NDArray  # (L, head_dim)
    k_gain: NDArray
    cos: NDArray  # (block_size, head_dim / 2)
    sin: NDArray
    ngram_sizes: NDArray  # (N,) the n of each n-gram table; see `model.ngrams`
    ngram_rows: NDArray  # (N,)
    ngram_vectors: NDArray  # (2 N * V, D) float32
    ngram_gates: NDArray  # (2 N, D) float32
    ngram_starts: NDArray  # (rows of all tables + 1,)
    ngram_characters: NDArray  # (P,)
    ngram_shares: NDArray  # (P,) uint8, times 255
    codes: NDArray  # (V,) of the characters, for the tables


class CPUCache(NamedTuple):
    """The keys and values of B rows: float32, bfloat16 (as uint16), or int8 with scales; and for
    n-gram counts the ids of their characters, and the hashes of the n-grams up to them."""

    keys: NDArray  # (L, B, n_kv_head, block_size, head_dim)
    values: NDArray
    key_scale: NDArray  # (L, B, n_kv_head, block_size) float32, 1 except for int8
    value_scale: NDArray
    ids: NDArray  # (B, block_size) int64
    hashes: NDArray  # (B, N, block_size) uint32


def pack_weights(gpt: GPT, weights: WeightFormat = "float32") -> PackedWeights:
    """The network's weights for the compiled code; `gpt` is not changed."""

    def stack(matrices: list[Tensor]) -> tuple[NDArray, NDArray]:
        w = torch.stack(matrices).float()  # (L, rows, columns)
        if weights == "int8":
            return quantize(w)
        ones = np.ones(w.shape[:2], dtype=np.float32)
        return as_array(w.bfloat16() if weights == "bfloat16" else w), ones

    ngrams = gpt.ngrams or NgramCounts((), gpt.config.n_embd, gpt.config.vocab_size)
    with torch.no_grad():
        blocks = [(b.attention_norm, b.attention, b.mlp_norm, b.mlp) for b in gpt.blocks]
        qkv = [
            torch.cat((a.q_proj.weight, a.k_proj.weight, a.v_proj.weight)) * norm.weight
            for norm, a, _, _ in blocks
        ]
        gate_up = [
            torch.cat((m.gate_proj.weight, m.up_proj.weight)) * norm.weight
            for _, _, norm, m in blocks
        ]
        return PackedWeights(
            as_array(gpt.embedding.weight.float()),
            *stack(qkv),
            *stack([a.o_proj.weight for _, a, _, _ in blocks]),
            *stack(gate_up),
            *stack([m.down_proj.weight for _, _, _, m in blocks]),
            as_array((gpt.lm_head.weight * gpt.norm.weight).float()),
            np.ones(gpt.config.vocab_size, dtype=np.float32),
            as_array(torch.stack([a.q_norm.weight for _, a, _, _ in blocks]).float()),
            as_array(torch.stack([a.k_norm.weight for _, a, _, _ in blocks]).float()),
            as_array(gpt.cos.float()),
            as_array(gpt.sin.float()),
            np.array(ngrams.sizes, dtype=np.int64),
            np.array(ngrams.rows, dtype=np.int64),
            as_array(ngrams.weight.float()),
            as_array((ngrams.gates * gpt.norm.weight).float()),
            as_array(ngrams.starts),
            as_array(ngrams.characters),
            as_array(ngrams.shares),
            as_array(ngrams.codes),
        )


def quantize(x: Tensor) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """x as integers from -127 to 127, and a scale for each vector along the last dimension."""
    scale = x.abs().amax(dim=-1).clamp(min=1e-12) / 127
    return (x / scale[..., None]).round().to(torch.int8).numpy(), scale.numpy()


def as_array(x: Tensor) -> NDArray:
    """A NumPy view of x, or of a copy if x is not contiguous; bfloat16 as uint16."""
    x = x.detach().contiguous()
    return (x.view(torch.uint16) if x.dtype == torch.bfloat16 else x).numpy()


class CPUEngine:
    """Generates B texts on a CPU together.

    Args:
        gpt: The network, in float32; it is not changed.
        rows: B. Each call may be for some of the rows only, and costs no more than those.
        weights: float32 is exact. bfloat16 and int8 round the weights; for several texts they also
            use bfloat16 products, if the CPU has them, and store keys and values in this format.
        threads: How many threads compute. None chooses by measuring, up to PyTorch's number of
            threads; the results are the same, bit for bit.
    """

    def __init__(
        self,
        gpt: GPT,
        rows: int,
        weights: WeightFormat = "float32",
        threads: int | None = None,
    ) -> None:
        self.gpt, self.rows = gpt, rows
        self.packed = pack_weights(gpt, weights)
        rounded = weights != "float32" and rows > 1
        self.dtype = torch.bfloat16 if rounded and multiplies_bf16("cpu") else torch.float32
        shape = gpt.config.cache_shape(rows)
        formats = {"float32": np.float32, "bfloat16": np.uint16, "int8": np.int8}
        cache_dtype = np.dtype(formats[weights] if rounded else np.float32)
        keys, values = (np.zeros(shape, dtype=cache_dtype) for _ in "kv")
        key_scale, value_scale = (np.ones(shape[:-1], dtype=np.float32) for _ in "kv")
        ids = np.zeros((rows, shape[3]), dtype=np.int64)
        hashes = np.zeros((rows, len(self.packed.ngram_sizes), shape[3]), dtype=np.uint32)
        self.cache = CPUCache(keys, values, key_scale, value_scale, ids, hashes)
        self.length = np.zeros(rows, dtype=np.int64)  # (B,) characters in the cache
        most = min(torch.get_num_threads(), max_threads())
        self.choice = ThreadChoice(most, threads)
        self.threads = self.choice.fastest()  # of the present call

    @cached_property
    def products(self) -> list[list[Callable[[Tensor], Tensor]]]:
        """The matrix products of each layer: qkv, o, gate_up, down."""
        w = self.packed
        return [
            [self.product(m[layer]) for m in (w.qkv, w.o, w.gate_up, w.down)]
            for layer in range(self.gpt.config.n_layer)
        ]

    @cached_property
    def head(self) -> Callable[[Tensor], Tensor]:
        return packed_linear(torch.from_numpy(self.packed.head), self.rows)

    def product(self, matrix: NDArray) -> Callable[[Tensor], Tensor]:
        """A function x (n, columns) -> x @ matrix.T, for matrix (rows, columns)."""
        w = torch.from_numpy(matrix)
        w = w.view(torch.bfloat16) if w.dtype == torch.uint16 else w
        return packed_linear(w.to(self.dtype), self.rows if self.rows > 1 else PREFILL_SIZE)

    @contextmanager
    def use_threads(self, threads: int) -> Iterator[None]:
        """A context in which so many threads compute."""
        self.threads, before = threads, torch.get_num_threads()
        numba.set_num_threads(min(threads, max_threads()))
        torch.set_num_threads(threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    @torch.no_grad()
    def prefill(self, rows: Sequence[int], windows: Sequence[Sequence[int]]) -> None:
        """Replace the cached text of `rows` by `windows`.

        A window that several rows share is computed only once.
        """
        self.length[rows] = [len(w) for w in windows]
        first: dict[tuple[int, ...], int] = {}  # each window, and the first row that has it
        for row, window in zip(rows, windows, strict=True):
            first.setdefault(tuple(window), row)
        lengths = [len(window) for window in first]
        tokens = np.array([token for window in first for token in window], dtype=np.int64)
        cache_rows = np.repeat(np.array([*first.values()], dtype=np.int64), lengths)
        positions = np.concatenate([np.arange(n, dtype=np.int64) for n in lengths])
        for start in range(0, len(tokens), PREFILL_SIZE):
            part = slice(start, start + PREFILL_SIZE)
            with self.use_threads(self.choice.fastest()):
                self.forward(cache_rows[part], tokens[part], positions[part])
        for row, window in zip(rows, windows, strict=True):
            if (source := first[tuple(window)]) != row:
                for layers in self.cache[:4]:  # keys, values, their scales: (L, B, ...)
                    layers[:, row] = layers[:, source]
                for array in self.cache[4:]:  # ids, hashes: (B, ...)
                    array[row] = array[source]

    def decode(
        self,
        rows: NDArray[np.int64],
        tokens: NDArray[np.int64],
        uniform: NDArray[np.float64],
        seen: NDArray[np.bool_],
        samplers: NDArray[np.float64],
    ) -> NDArray[np.int64]:
        """Generate c ids for each of n rows, (n, c), one per random number of `uniform` (n, c).

        rows (n,): different numbers from 0 to B - 1. tokens (n,): each row's last character, which
        is not in the cache yet. seen (B, V) is True for characters already in the text; it is
        updated. samplers (B, 4): each row's `sampler_args`.
        """
        ids = np.empty(uniform.shape, dtype=np.int64)
        start, count = 0, uniform.shape[1]
        while start < count:
            threads = self.choice.next()
            end = count if threads == self.choice.fastest() else min(start + TRIAL_SIZE, count)
            part = slice(start, end)
            began = time.perf_counter()
            with self.use_threads(threads):
                self.decode_part(rows, tokens, uniform[:, part], seen, samplers, ids[:, part])
            self.choice.record(threads, time.perf_counter() - began, len(rows) * (end - start))
            tokens, start = ids[:, end - 1].copy(), end
        return ids

    def decode_part(
        self,
        rows: NDArray[np.int64],
        tokens: NDArray[np.int64],
        uniform: NDArray[np.float64],
        seen: NDArray[np.bool_],
        samplers: NDArray[np.float64],
        ids: NDArray[np.int64],
    ) -> None:
        """`decode` into `ids` (n, c), with the present number of threads."""
        if len(rows) == 1:
            row = rows[0]
            decode_row(
                tokens[0], row, self.length[row], uniform[0], seen[row], samplers[row],
                self.packed, self.cache, ids[0], self.threads,
            )  # fmt: skip
            self.length[row] += uniform.shape[1]
            return
        for i in range(uniform.shape[1]):
            logits = self.next_logits(rows, tokens)
            tokens = draw_rows(logits, rows, uniform[:, i].copy(), seen, samplers, self.threads)
            ids[:, i] = tokens

    def next_logits(
        self, rows: NDArray[np.int64], tokens: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """Add one character, tokens (n,), to the cache of each of n `rows`; logits (n, V) of the
        next one."""
        w = self.packed
        positions = self.length[rows]  # a copy
        self.length[rows] += 1
        if len(rows) == 1:
            logits = np.empty((1, len(w.head)), dtype=np.float32)
            next_logits(tokens[0], rows[0], positions[0], w, self.cache, logits[0], self.threads)
            return logits
        x, found = self.forward(rows, tokens, positions)
        final = torch.zeros(self.product_size(len(x)), x.shape[1])
        h = as_array(final)
        normalize_rows(x, h, self.threads)
        logits = as_array(self.head(final))[: len(x)]
        if found is not None:
            add_logits_rows(*found, w, h, logits, self.threads)
        return logits

    def product_size(self, n: int) -> int:
        """The number of rows of the products for n characters."""
        size = next((size for size in PRODUCT_SIZES if size >= n), n)
        return min(size, self.rows) if n <= self.rows else size

    def forward(
        self, rows: NDArray[np.int64], tokens: NDArray[np.int64], positions: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], Found | None]:
        """Add n characters to the cache; the output of the last block, (n, D), and the shares of
        the n-gram counts.

        rows, tokens, positions (n,): where each is, and its id. The characters before it are in the
        cache, or earlier among the n.
        """
        w, threads = self.packed, self.threads
        x, found = w.embedding[tokens], None  # (n, D) float32
        if len(w.ngram_rows):
            remember_rows(tokens, rows, positions, w, self.cache)
            found = add_vectors_rows(rows, positions, w, self.cache, x, threads)
        size = self.product_size(len(x))  # rows beyond the n are 0
        h, attended = (torch.zeros(size, x.shape[1], dtype=self.dtype) for _ in "12")
        activated = torch.zeros(size, w.down.shape[2], dtype=self.dtype)
        # the same memory, without the padding
        h_, attended_, activated_ = (as_array(y)[: len(x)] for y in (h, attended, activated))
        normalize_rows(x, h_, threads)
        for layer, (qkv, o, gate_up, down) in enumerate(self.products):
            projected = as_array(qkv(h))[: len(x)]  # (n, D + 2 KV)
            cache_keys(projected, w, layer, rows, positions, self.cache, threads)
            attend_rows(projected, w, layer, rows, positions, self.cache, attended_, threads)
            add_rows(x, as_array(o(attended)), w.o_scale[layer], h_, threads)
            activate_rows(as_array(gate_up(h)), w.gate_up_scale[layer], activated_, threads)
            add_rows(x, as_array(down(activated)), w.down_scale[layer], h_, threads)
        return x, found
