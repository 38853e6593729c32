"""Passages that stand word for word in two texts: held-out text in the training text, say.

Every window of `length` characters gets a 64-bit hash, exactly comparable at any position, so one
text is sorted once and the other, of any size, streams past it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BASE = 0x9E3779B97F4A7C15 | 1  # odd: invertible modulo 2**64
CHUNK = 1 << 20  # characters hashed at a time
FILTER_BITS = 24


@dataclass(frozen=True)
class Passage:
    """Characters first to last - 1 of the text stand at `elsewhere` and on in the other."""

    first: int
    last: int
    elsewhere: int


def window_hashes(ids: NDArray[np.integer], length: int) -> NDArray[np.uint64]:
    """A hash of each window ids[i : i + length], equal for equal windows (n - length + 1,).

    Polynomial, modulo 2**64, by doubling: windows of 1, 2, 4, ... characters are joined, and the
    last two overlap.
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
            hashes ^= hashes >> np.uint64(31)  # or runs of one character would collide
            size, power = size + step, power * BASE * 3 % 2**64
    return hashes


class Index:
    """Every window of `length` characters of a text, to be looked up in others."""

    def __init__(self, ids: NDArray[np.integer], length: int) -> None:
        self.ids, self.length = ids, length
        self.hashes = window_hashes(ids, length) if len(ids) >= length else np.empty(0, np.uint64)
        self.order = np.argsort(self.hashes, kind="stable")
        self.sorted = self.hashes[self.order]
        self.filter = np.zeros(1 << FILTER_BITS, dtype=bool)  # passes by most that are not there
        self.filter[self.hashes >> np.uint64(64 - FILTER_BITS)] = True

    def found_in(self, other: NDArray[np.integer]) -> NDArray[np.int64]:
        """For each window of the text where `other` has it first, -1 where nowhere, (n,)."""
        where = np.full(len(self.hashes), -1, dtype=np.int64)
        if not len(where):
            return where
        for first, hashes in self.stream(other):
            maybe = np.flatnonzero(self.filter[hashes >> np.uint64(64 - FILTER_BITS)])
            place = np.searchsorted(self.sorted, hashes[maybe])
            place = np.minimum(place, len(self.sorted) - 1)
            hit = self.sorted[place] == hashes[maybe]
            place, at = place[hit], maybe[hit] + first
            # one entry of each run of equal hashes, the earliest place in `other`
            place, index = np.unique(place, return_index=True)
            new = where[self.order[place]] < 0
            where[self.order[place[new]]] = at[index[new]]
        # equal windows of the text share what the first of them found
        heads = np.maximum.accumulate(
            np.where(np.r_[True, self.sorted[1:] != self.sorted[:-1]], np.arange(len(where)), 0)
        )
        where[self.order] = where[self.order[heads]]
        return where

    def stream(self, other: NDArray[np.integer]) -> Iterator[tuple[int, NDArray[np.uint64]]]:
        for first in range(0, len(other) - self.length + 1, CHUNK):
            yield (
                first,
                window_hashes(other[first : first + CHUNK + self.length - 1], self.length),
            )


def passages(where: NDArray[np.int64], length: int) -> list[Passage]:
    """The longest stretches covered by windows that were found, in order of appearance.

    `where` is what `Index.found_in` gave; neighbours in a stretch stand side by side in the other
    text as well, or overlap.
    """
    hits = np.flatnonzero(where >= 0)
    if not len(hits):
        return []
    breaks = np.flatnonzero((np.diff(hits) != 1) | (np.diff(where[hits]) != 1)) + 1
    return [
        Passage(int(run[0]), int(run[-1]) + length, int(where[run[0]]))
        for run in np.split(hits, breaks)
    ]


def covered(where: NDArray[np.int64], length: int, n: int) -> int:
    """How many of the text's n characters lie in a window that was found."""
    change = np.zeros(n + 1, dtype=np.int64)
    hits = np.flatnonzero(where >= 0)
    np.add.at(change, hits, 1)
    np.add.at(change, hits + length, -1)
    return int(np.count_nonzero(np.cumsum(change[:-1]) > 0))
