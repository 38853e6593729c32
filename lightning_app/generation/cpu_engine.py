"""Writing on a CPU: what the network does a character at a time, compiled.

One text: the network, the distribution and the draw in one function over packed weights. PyTorch's
product of a matrix with a vector moves a third of what memory delivers, and each small operation
costs microseconds. Several texts: PyTorch's products, which are as fast as the machine from some
rows on, and compiled loops over the rows for everything between them.

The weights are float32; bfloat16, half the bytes; or int8 with a scale for each row, a quarter. The
reference is `generation.uncached_logits`.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_app.generation.cpu_kernels import (
    activate_rows,
    add_rows,
    attend_rows,
    choose_rows,
    normalize_rows,
    write_row,
)
from lightning_app.generation.options import WeightFormat
from lightning_app.hardware import multiplies_bf16
from lightning_app.model.gpt import GPT


class PackedWeights(NamedTuple):
    """A network's weights: L layers stacked, each norm's gain in the matrix that reads it; the true
    matrix is (rows, columns) times its scale (rows,)."""

    embedding: NDArray  # (V, D) float32
    qkv: NDArray  # (L, D + 2 KV, D)
    qkv_scale: NDArray
    o: NDArray  # (L, D, D)
    o_scale: NDArray
    gate_up: NDArray  # (L, 2 hidden, D)
    gate_up_scale: NDArray
    down: NDArray  # (L, D, hidden)
    down_scale: NDArray
    head: NDArray  # (V, D) float32: logits are small differences
    head_scale: NDArray
    q_gain: NDArray  # (L, head_dim)
    k_gain: NDArray
    cos: NDArray  # (block_size, head_dim / 2)
    sin: NDArray


class CPUCache(NamedTuple):
    """Keys and values of the characters read: float32, bfloat16, or int8 times a scale each."""

    keys: NDArray  # (L, B, KV, block_size, head_dim)
    values: NDArray
    key_scale: NDArray  # (L, B, KV, block_size) float32, 1 but for int8
    value_scale: NDArray


def pack_weights(gpt: GPT, weights: WeightFormat = "float32") -> PackedWeights:
    def stack(matrices: list[Tensor]) -> tuple[NDArray, NDArray]:
        w = torch.stack(matrices).float()  # (L, rows, columns)
        if weights == "int8":
            return quantize(w)
        ones = np.ones(w.shape[:2], dtype=np.float32)
        return as_array(w.bfloat16() if weights == "bfloat16" else w), ones

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
        )


def quantize(x: Tensor) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """x as whole numbers of -127..127 times a scale for each of its last dimension's vectors."""
    scale = x.abs().amax(dim=-1).clamp(min=1e-12) / 127
    return (x / scale[..., None]).round().to(torch.int8).numpy(), scale.numpy()


def as_array(x: Tensor) -> NDArray:
    """The same memory for NumPy, where it is contiguous; bfloat16 as uint16."""
    x = x.detach().contiguous()
    return (x.view(torch.uint16) if x.dtype == torch.bfloat16 else x).numpy()


def linear(matrix: Tensor, rows: int) -> Callable[[Tensor], Tensor]:
    """x (rows, columns) -> x @ matrix.mT; oneDNN's with the matrix laid out beforehand, which is
    1.2 to 2 times as fast."""
    if not torch.backends.mkldnn.is_available():
        return lambda x: x @ matrix.mT
    packed = torch.ops.mkldnn._reorder_linear_weight(matrix, rows)
    return lambda x: torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")


class CPUEngine:
    """B texts that are written on a CPU together.

    Args:
        gpt: The network, float32, which is not changed.
        rows: B.
        weights: float32 gives the network's own text. With bfloat16 and int8 several texts go
            through bfloat16 products, where the CPU has them, and keep keys and values in as few
            bytes as weights; one text stays in float32 but for the weights.
    """

    def __init__(self, gpt: GPT, rows: int, weights: WeightFormat = "float32") -> None:
        c = gpt.config
        self.gpt, self.rows = gpt, rows
        self.packed = pack_weights(gpt, weights)
        narrow = weights != "float32" and rows > 1
        self.dtype = torch.bfloat16 if narrow and multiplies_bf16("cpu") else torch.float32
        shape = (c.n_layer, rows, c.n_kv_head, c.block_size, c.head_dim)
        kept = {"bfloat16": np.uint16, "int8": np.int8}[weights] if narrow else np.float32
        self.cache = CPUCache(
            *(np.zeros(shape, dtype=kept) for _ in "kv"),
            *(np.ones(shape[:-1], dtype=np.float32) for _ in "kv"),
        )
        self.length = np.zeros(rows, dtype=np.int64)  # characters in the cache
        self.threads = min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)
        numba.set_num_threads(self.threads)
        if rows > 1:
            w = self.packed
            self.products = [
                [self.product(m[layer]) for m in (w.qkv, w.o, w.gate_up, w.down)]
                for layer in range(c.n_layer)
            ]
            self.head = linear(torch.from_numpy(w.head), rows)

    def product(self, matrix: NDArray) -> Callable[[Tensor], Tensor]:
        w = torch.from_numpy(matrix)
        w = w.view(torch.bfloat16) if w.dtype == torch.uint16 else w
        return linear(w.to(self.dtype), self.rows)

    def prefill(self, rows: Sequence[int], windows: Sequence[Sequence[int]]) -> None:
        """Forget what `rows` hold and read a window into each; PyTorch does, a window that several
        have only once."""
        distinct = {window: i for i, window in enumerate(dict.fromkeys(map(tuple, windows)))}
        longest = max(map(len, distinct))
        self.length[rows] = [len(w) for w in windows]
        if not longest:
            return
        padded = [[*w, *[0] * (longest - len(w))] for w in distinct]
        part = self.gpt.kv_cache(len(distinct))
        with torch.autocast("cpu", torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            self.gpt.forward(torch.tensor(padded), part)
        which = [distinct[tuple(w)] for w in windows]
        cache = self.cache
        for x, kept, scale in (
            (part.keys[:, which], cache.keys, cache.key_scale),
            (part.values[:, which], cache.values, cache.value_scale),
        ):
            if kept.dtype == np.int8:
                codes, scale[:, rows] = quantize(x)
                kept[:, rows] = codes
            else:
                kept[:, rows] = as_array(x.bfloat16() if kept.dtype == np.uint16 else x.float())

    def decode(
        self, tokens: NDArray, uniform: NDArray, seen: NDArray, choice: tuple
    ) -> NDArray[np.int64]:
        """Ids (B, n) for uniform numbers (B, n), after each row's last character, `tokens` (B,),
        which the cache does not have yet; `seen` (B, V) gets True for each id.

        choice is (kind, limit, temperature, penalty) of `fill_distribution`.
        """
        ids = np.empty(uniform.shape, dtype=np.int64)
        if self.rows == 1:
            write_row(
                tokens[0], self.length[0], uniform[0], seen[0], choice, self.packed, self.cache,
                ids[0], self.threads,
            )  # fmt: skip
            self.length += uniform.shape[1]
            return ids
        for i in range(uniform.shape[1]):
            chosen = np.empty(self.rows, dtype=np.int64)
            logits = self.logits(tokens)
            choose_rows(logits, uniform[:, i].copy(), seen, choice, chosen, self.threads)
            ids[:, i] = tokens = chosen
        return ids

    def logits(self, tokens: NDArray) -> NDArray[np.float32]:
        """Read a character a row into the cache; logits (B, V) of what follows."""
        w, threads = self.packed, self.threads
        x = w.embedding[tokens]
        h, mixed = (torch.empty(x.shape, dtype=self.dtype) for _ in "12")
        activated = torch.empty(self.rows, w.down.shape[2], dtype=self.dtype)
        h_, mixed_, activated_ = map(as_array, (h, mixed, activated))  # the same memory
        normalize_rows(x, h_, threads)
        for layer, (qkv, o, gate_up, down) in enumerate(self.products):
            projected = as_array(qkv(h))
            attend_rows(projected, w, layer, self.length, self.cache, mixed_, threads)
            add_rows(x, as_array(o(mixed)), w.o_scale[layer], h_, threads)
            activate_rows(as_array(gate_up(h)), w.gate_up_scale[layer], activated_, threads)
            add_rows(x, as_array(down(activated)), w.down_scale[layer], h_, threads)
        final = torch.empty(x.shape)
        normalize_rows(x, as_array(final), threads)
        self.length += 1
        return as_array(self.head(final))
