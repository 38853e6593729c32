"""Passages that stand word for word in two texts: held-out text in the training text, say.

Every window of `length` characters gets a 64-bit hash, exactly comparable at any position, so one
text is sorted once and the other, of any size, streams past it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

BASE = 0x9E3779B97F4A7C15 | 1  # odd: invertible modulo 2**64
CHUNK = 1 << 20  # characters hashed at a time


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


class WindowIndex:
    """Every window of `length` characters of a text, to be looked up in others."""

    def __init__(self, ids: NDArray[np.integer], length: int) -> None:
        self.ids, self.length = ids, length
        self.hashes = window_hashes(ids, length) if len(ids) >= length else np.empty(0, np.uint64)
        self.order = np.argsort(self.hashes, kind="stable")
        self.sorted = self.hashes[self.order]
        first = np.r_[True, self.sorted[1:] != self.sorted[:-1]][: len(self.sorted)]
        # for each place in `sorted`, the first that has an equal hash
        self.heads = np.maximum.accumulate(np.where(first, np.arange(len(first)), 0))
        bits = max(16, len(self.hashes).bit_length() + 5)  # thinly filled: it passes by most
        self.filter_size, self.shift = 1 << bits, np.uint64(64 - bits)

    def found_in(self, other: NDArray[np.integer]) -> NDArray[np.int64]:
        """For each window of the text where `other` has it first, -1 where nowhere, (n,)."""
        return find_windows([self], other)[0]

    def filter(self, found: NDArray[np.int64]) -> NDArray[np.bool_]:
        """True for the upper bits of hashes that are still to be found."""
        wanted = np.zeros(self.filter_size, dtype=bool)
        left = found[self.order[self.heads]] < 0
        wanted[self.sorted[left] >> self.shift] = True
        return wanted

    def look_up(
        self,
        hashes: NDArray[np.uint64],
        first: int,
        wanted: NDArray[np.bool_],
        found: NDArray[np.int64],
    ) -> int:
        """Note in `found`, for windows not found before, the first of those that begin at `first`
        and on of another text and have these hashes. Returns for how many."""
        maybe = np.flatnonzero(wanted[hashes >> self.shift])
        place = np.searchsorted(self.sorted, hashes[maybe])
        place = np.minimum(place, len(self.sorted) - 1)
        hit = self.sorted[place] == hashes[maybe]
        place, at = place[hit], maybe[hit] + first
        # one entry of each run of equal hashes, the earliest place
        place, index = np.unique(place, return_index=True)
        new = found[self.order[place]] < 0
        found[self.order[place[new]]] = at[index[new]]
        return int(new.sum())

    def share(self, found: NDArray[np.int64]) -> None:
        """Give equal windows of the text what the first of them found."""
        found[self.order] = found[self.order[self.heads]]


def find_windows(
    indexes: Sequence[WindowIndex], other: NDArray[np.integer]
) -> list[NDArray[np.int64]]:
    """`found_in` of indexes of one length, while `other` streams past once; a bar after 2 s."""
    length = indexes[0].length
    found = [np.full(len(index.hashes), -1, dtype=np.int64) for index in indexes]
    filters = [index.filter(where) for index, where in zip(indexes, found, strict=True)]
    bar = tqdm(
        range(0, len(other) - length + 1, CHUNK), desc="comparing", delay=2, leave=False,
        disable=None,
    )  # fmt: skip
    for first in bar:
        hashes = window_hashes(other[first : first + CHUNK + length - 1], length)
        for i, index in enumerate(indexes):
            new = index.look_up(hashes, first, filters[i], found[i])
            if 100 * new > len(found[i]):  # what is found need not be looked up again
                filters[i] = index.filter(found[i])
    for index, where in zip(indexes, found, strict=True):
        index.share(where)
    return found


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


def covered_characters(where: NDArray[np.int64], length: int, n: int) -> int:
    """How many of the text's n characters lie in a window that was found."""
    change = np.zeros(n + 1, dtype=np.int64)
    hits = np.flatnonzero(where >= 0)
    np.add.at(change, hits, 1)
    np.add.at(change, hits + length, -1)
    return int(np.count_nonzero(np.cumsum(change[:-1]) > 0))
