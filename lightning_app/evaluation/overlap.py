"""Passages that occur in two texts, such as held-out text that also occurs in the training text.

Each window of `length` characters has a 64-bit hash that does not depend on its position. The
hashes of one text are sorted once; those of the other, which may be of any size, are computed in
chunks and looked up.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

BASE = 0x9E3779B97F4A7C15 | 1  # odd: invertible modulo 2**64
CHUNK_SIZE = 1 << 20  # characters hashed at a time
COPY_LENGTH = 50  # characters; in generated text, shorter copies of the training text are normal


@dataclass(frozen=True)
class Passage:
    """Characters first to last - 1 of a text, which occur in the other text from `elsewhere` on."""

    first: int
    last: int
    elsewhere: int


def window_hashes(ids: NDArray[np.integer], length: int) -> NDArray[np.uint64]:
    """A hash of each window ids[i : i + length], (n - length + 1,); equal windows have equal ones.

    A polynomial modulo 2**64, computed for windows of 1, 2, 4, ... characters, each from the hashes
    of its two halves; for the last length the halves overlap.
    """
    hashes = ids.astype(np.uint64) + np.uint64(1)
    with np.errstate(over="ignore"):
        hashes *= np.uint64(BASE)
        hashes ^= hashes >> np.uint64(29)
        size, power = 1, BASE
        while size < length:
            step = min(size, length - size)
            count = len(hashes) - step
            hashes = hashes[:count] * np.uint64(power) + hashes[step:]
            hashes ^= hashes >> np.uint64(31)  # otherwise runs of one character collide
            size, power = size + step, power * BASE * 3 % 2**64
    return hashes


class WindowIndex:
    """All windows of `length` characters of a text, to be found in other texts."""

    def __init__(self, ids: NDArray[np.integer], length: int) -> None:
        self.ids, self.length = ids, length
        self.hashes = window_hashes(ids, length) if len(ids) >= length else np.empty(0, np.uint64)
        self.order = np.argsort(self.hashes, kind="stable")
        self.sorted = self.hashes[self.order]
        first = np.r_[True, self.sorted[1:] != self.sorted[:-1]][: len(self.sorted)]
        # for each index into `sorted`, the first index with the same hash
        self.heads = np.maximum.accumulate(np.where(first, np.arange(len(first)), 0))
        # at most 1/32 of the filter is True, so it excludes most windows of another text
        bits = max(16, len(self.hashes).bit_length() + 5)
        self.filter_size, self.shift = 1 << bits, np.uint64(64 - bits)

    def find_in(self, other: NDArray[np.integer]) -> NDArray[np.int64]:
        """Where each window first occurs in `other`, or -1, (number of windows,)."""
        return find_windows([self], other)[0]

    def filter(self, found: NDArray[np.int64]) -> NDArray[np.bool_]:
        """A table of the upper bits of a hash: False if no window not yet found has them."""
        possible = np.zeros(self.filter_size, dtype=bool)
        missing = found[self.order[self.heads]] < 0
        possible[self.sorted[missing] >> self.shift] = True
        return possible

    def look_up(
        self,
        hashes: NDArray[np.uint64],
        first: int,
        possible: NDArray[np.bool_],
        found: NDArray[np.int64],
    ) -> int:
        """Look up the hashes of the windows of another text that start at `first`, `first` + 1, ...

        Writes to `found` the positions of windows not found before, of equal windows only for the
        first, and returns how many these are. `possible` is what `filter` returned.
        """
        candidates = np.flatnonzero(possible[hashes >> self.shift])
        rank = np.searchsorted(self.sorted, hashes[candidates])
        rank = np.minimum(rank, len(self.sorted) - 1)
        hit = self.sorted[rank] == hashes[candidates]
        rank, position = rank[hit], candidates[hit] + first
        rank, index = np.unique(rank, return_index=True)  # the first position of each hash
        new = found[self.order[rank]] < 0
        found[self.order[rank[new]]] = position[index[new]]
        return int(new.sum())

    def copy_to_equal_windows(self, found: NDArray[np.int64]) -> None:
        """Copy the position found for the first of several equal windows to the others."""
        found[self.order] = found[self.order[self.heads]]


def find_windows(
    indexes: Sequence[WindowIndex], other: NDArray[np.integer]
) -> list[NDArray[np.int64]]:
    """`find_in` for several indexes of the same length, in one pass over `other`. Shows a progress
    bar after 2 s."""
    length = indexes[0].length
    found = [np.full(len(index.hashes), -1, dtype=np.int64) for index in indexes]
    filters = [index.filter(positions) for index, positions in zip(indexes, found, strict=True)]
    bar = tqdm(
        range(0, len(other) - length + 1, CHUNK_SIZE), desc="comparing", delay=2, leave=False,
        disable=None,
    )  # fmt: skip
    for first in bar:
        hashes = window_hashes(other[first : first + CHUNK_SIZE + length - 1], length)
        for i, index in enumerate(indexes):
            new = index.look_up(hashes, first, filters[i], found[i])
            if 100 * new > len(found[i]):  # exclude the windows that are found from now on
                filters[i] = index.filter(found[i])
    for index, positions in zip(indexes, found, strict=True):
        index.copy_to_equal_windows(positions)
    return found


def passages(found: NDArray[np.int64], length: int) -> list[Passage]:
    """The passages that windows of `length` characters form, in order of position.

    `found` is what `find_in` returned. Consecutive windows are one passage if they are consecutive
    in the other text too.
    """
    hits = np.flatnonzero(found >= 0)
    if not len(hits):
        return []
    breaks = np.flatnonzero((np.diff(hits) != 1) | (np.diff(found[hits]) != 1)) + 1
    return [
        Passage(int(run[0]), int(run[-1]) + length, int(found[run[0]]))
        for run in np.split(hits, breaks)
    ]


def covered_characters(found: NDArray[np.int64], length: int, n: int) -> int:
    """How many of the n characters of a text are in a window that was found."""
    change = np.zeros(n + 1, dtype=np.int64)  # windows that start minus windows that end here
    hits = np.flatnonzero(found >= 0)
    np.add.at(change, hits, 1)
    np.add.at(change, hits + length, -1)
    return int(np.count_nonzero(np.cumsum(change[:-1]) > 0))
