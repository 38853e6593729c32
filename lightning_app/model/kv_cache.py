"""Keys and values of the characters read so far, and how much of a long text the network sees."""

import torch
from torch import Tensor


def context_length(n: int, block_size: int) -> int:
    """How many of a text's n characters the network sees.

    All of them up to block_size; when a text outgrows it, the older half of the context is dropped,
    and again each time block_size is reached.
    """
    if n <= block_size:
        return n
    step = block_size - block_size // 2
    return n - -(-(n - block_size) // step) * step


class LayerCache:
    """One layer's keys and values: (B, n_kv_head, block_size, head_dim) each."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values
        self.rows = torch.arange(len(keys), device=keys.device)[:, None]  # (B, 1)

    def append(self, k: Tensor, v: Tensor, positions: Tensor, span: int) -> tuple[Tensor, Tensor]:
        """Write k, v (B, n_kv_head, T, head_dim) at `positions` (B, T); return the first `span`
        positions of every row, (B, n_kv_head, span, head_dim) each."""
        self.keys[self.rows, :, positions] = k.transpose(1, 2).to(self.keys.dtype)
        self.values[self.rows, :, positions] = v.transpose(1, 2).to(self.values.dtype)
        return self.keys[:, :, :span], self.values[:, :, :span]


class KVCache:
    """The keys and values of B rows of text, each with a length of its own; see `GPT.kv_cache`.

    Rows may differ in length: a row's padding lies at positions it has not reached, which its
    queries cannot see, and is overwritten when the row gets there.
    """

    def __init__(self, shape: tuple[int, int, int, int, int], like: Tensor) -> None:
        """`shape` is (n_layer, B, n_kv_head, block_size, head_dim); dtype and device as `like`."""
        self.keys, self.values = like.new_zeros(shape), like.new_zeros(shape)
        self.layers = [LayerCache(k, v) for k, v in zip(self.keys, self.values, strict=True)]
        self.length = torch.zeros(shape[1], dtype=torch.long)  # on the host: it steers slicing
