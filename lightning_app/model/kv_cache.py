"""The KV cache, and the rule for which part of a long text the network sees."""

from dataclasses import dataclass

import torch
from torch import Tensor


def context_length(n: int, block_size: int) -> int:
    """How many of the last characters of a text of n characters the network sees.

    All n up to block_size. When a text grows past block_size, the older half of the context is
    dropped, and again each time the context has grown back to block_size: with a cache, the rest is
    then prefilled once per half block instead of once per character.
    """
    if n <= block_size:
        return n
    step = block_size - block_size // 2
    return n - -(-(n - block_size) // step) * step


@dataclass(frozen=True)
class LayerCache:
    """One layer's keys and values, and the positions that one call of `GPT.forward` uses."""

    keys: Tensor  # (B, n_kv_head, block_size, head_dim)
    values: Tensor  # (B, n_kv_head, block_size, head_dim)
    rows: Tensor  # (B, 1): 0, 1, ..., B - 1
    positions: Tensor  # (B, T) of the new characters
    mask: Tensor  # (B, 1, T, S), True where a new character may attend to a position

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store the new characters' k and v, (B, n_kv_head, T, head_dim) each; return the keys and
        values of positions 0 to S - 1, (B, n_kv_head, S, head_dim) each."""
        self.keys[self.rows, :, self.positions] = k.transpose(1, 2).to(self.keys.dtype)
        self.values[self.rows, :, self.positions] = v.transpose(1, 2).to(self.values.dtype)
        S = self.mask.size(-1)
        return self.keys[:, :, :S], self.values[:, :, :S]


class KVCache:
    """The keys and values of B rows of text, each row with its own length; see `GPT.kv_cache`.

    For n-gram counts it also has the characters' ids.

    Rows of different lengths are padded on the right. Padding occupies positions after the end of
    its row, which the row's queries are masked from; new characters overwrite it.
    """

    def __init__(self, shape: tuple[int, int, int, int, int], like: Tensor) -> None:
        """`shape` is (n_layer, B, n_kv_head, block_size, head_dim); dtype and device as `like`."""
        self.keys, self.values = like.new_zeros(shape), like.new_zeros(shape)
        self.ids = torch.zeros(
            shape[1], shape[3], dtype=torch.long, device=like.device
        )  # (B, block_size)
        self.rows = torch.arange(shape[1], device=like.device)[:, None]  # (B, 1)
        self.length = torch.zeros(
            shape[1], dtype=torch.long
        )  # (B,), on the CPU: shapes depend on it

    def positions(self, T: int) -> Tensor:
        """The positions of the next T characters of every row, (B, T)."""
        positions = self.length[:, None] + torch.arange(T)
        last = self.keys.size(3) - 1
        return positions.clamp(max=last).to(self.keys.device)  # only padding is out of range

    def layers(self, T: int) -> list[LayerCache]:
        """Each layer's cache for the next T characters of every row."""
        positions, S = self.positions(T), int(self.length.max()) + T
        places = torch.arange(S, device=positions.device)
        mask = places <= positions[:, None, :, None]  # (B, 1, T, S)
        return [
            LayerCache(keys, values, self.rows, positions, mask)
            for keys, values in zip(self.keys, self.values, strict=True)
        ]

    def append_ids(self, idx: Tensor) -> tuple[Tensor, Tensor]:
        """Store the next ids of every row, (B, T); the ids of positions 0 to S - 1, (B, S), and the
        positions of the new ones, (B, T)."""
        positions = self.positions(idx.size(1))
        self.ids[self.rows, positions] = idx
        return self.ids[:, : int(self.length.max()) + idx.size(1)], positions
