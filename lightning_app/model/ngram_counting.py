"""Counting what follows n-grams: in a text, for the tables of `model.ngrams`, and in a window.

There are N tables, one for each of N sizes n. The hash of an n-gram selects a row of its table; the
rows of all tables follow one another. A row has an entry for each character that occurred, P in
all.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

MULTIPLIER = 0x735A2D97  # odd and below 2**31, so that int64 holds the product of the hash
MASK = 0xFFFFFFFF
COUNTED_AT_ONCE = 1 << 20  # characters
MAX_COUNTED = 20_000_000  # characters of a text: about twenty seconds
PARTS = 16  # of a text; see `TextCounts`


def table_sizes(rows: Sequence[int]) -> tuple[int, ...]:
    """The n of each table, for the rows of n = 2, 3, ..., with 0 where there is no table."""
    return tuple(n for n, number in enumerate(rows, 2) if number)


def ngram_hashes(codes: Tensor, sizes: Sequence[int]) -> Tensor:
    """Hashes (B, T, N) of the last n characters of every position, for N sizes n, ascending.

    `codes` (B, max(n) - 1 + T): the code of every character, 0 before the first one of a window;
    the first max(n) - 1 columns are those before the first position. All arithmetic is that of
    unsigned 32-bit integers. From the newest code to the oldest, starting with h = 0:

        h = (h ^ code) * MULTIPLIER
        h = h ^ (h >> 15)
    """
    longest = sizes[-1]
    T = codes.size(1) - longest + 1
    h, hashes = torch.zeros_like(codes[:, :T]), []
    for n in range(1, longest + 1):
        h = ((h ^ codes[:, longest - n : longest - n + T]) * MULTIPLIER) & MASK
        h = h ^ (h >> 15)
        if n in sizes:
            hashes.append(h)
    return torch.stack(hashes, dim=-1)


def rows_of(hashes: Tensor, rows: Sequence[int]) -> Tensor:
    """The rows of the tables for hashes (..., N), of N tables with so many `rows`."""
    sizes = torch.tensor(rows, device=hashes.device)
    return hashes % sizes + sizes.cumsum(0) - sizes


def scaled_shares(counts: Tensor, totals: Tensor) -> Tensor:
    """The weight of a character, for its count and the sum of all counts after its n-gram.

    It is ln(1 + 100 p) / ln(101) with p = count / (total + 2): unlike p itself, it distinguishes
    1 from 5 %; and what was seen once has less weight than what was seen often.
    """
    return torch.log1p(100 * counts / (totals + 2)) / math.log(101)


def shares_of_counts(sources: Tensor, counts: Tensor, size: int) -> Tensor:
    """`scaled_shares` of counts (E,), whose sources (E,) are below size."""
    totals = counts.new_zeros(size).scatter_add_(0, sources, counts)
    return scaled_shares(counts, totals.index_select(0, sources))


def as_bytes(shares: Tensor) -> Tensor:
    """Shares times 255, uint8."""
    return (shares * 255).round().byte()


def entry_rows(starts: Tensor) -> Tensor:
    """The row of each entry, (P,)."""
    lengths = starts.diff()
    return torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths)


def entry_shares(starts: Tensor, counts: Tensor) -> Tensor:
    """The shares of all entries for their counts (P,), times 255, uint8."""
    return as_bytes(shares_of_counts(entry_rows(starts), counts.float(), len(starts) - 1))


class TextCounts(NamedTuple):
    """What followed the n-grams of a text.

    starts: (rows of all tables + 1,) the first entry of each row, and P.
    characters: (P,) ids.
    counts: (P,) int32.
    shares: (P,) uint8, `scaled_shares` times 255.
    part_shares: (PARTS, P); row k are the shares without the counts of part k of the text.
    """

    starts: Tensor
    characters: Tensor
    counts: Tensor
    shares: Tensor
    part_shares: Tensor


class RangeCounts(NamedTuple):
    """What followed the n-grams of a range of a text, in a part of it: keys row * V + id, unique
    and ascending, and how often each occurred."""

    part: int
    keys: NDArray[np.int64]
    times: NDArray[np.int32]


def count_text(
    ids: NDArray[np.integer], codes: Tensor, sizes: Sequence[int], rows: Sequence[int]
) -> TextCounts:
    """Count a text, its ids (n,), for tables of these sizes n with so many `rows`.

    `codes` (V,) are those of the characters. Of a long text, MAX_COUNTED characters are counted,
    which are spread over it. Its parts are PARTS equal ones, by the position of an n-gram's last
    character.
    """
    V, R = len(codes), sum(rows)
    ranges = list(count_ranges(ids, codes, sizes, rows))
    # With counts NumPy sorts; without them it takes ten times as long.
    keys, _ = np.unique(np.concatenate([r.keys for r in ranges]), return_counts=True)
    starts = torch.zeros(R + 1, dtype=torch.int64)
    starts[1:] = torch.from_numpy(np.bincount(keys // V, minlength=R).cumsum())
    places = [torch.from_numpy(np.searchsorted(keys, r.keys)) for r in ranges]
    times = [torch.from_numpy(r.times) for r in ranges]
    counts = torch.zeros(len(keys), dtype=torch.int32)
    for place, number in zip(places, times, strict=True):
        counts[place] += number  # a place occurs once in a range
    shares = entry_shares(starts, counts)
    part_shares, row = shares.repeat(PARTS, 1), entry_rows(starts)
    for k in range(PARTS):  # without part k, only the rows that occur in it are different
        left, different = counts.clone(), torch.zeros(R, dtype=torch.bool)
        for r, place, number in zip(ranges, places, times, strict=True):
            if r.part == k:
                left[place] -= number
                different[row[place]] = True
        entries = different[row].nonzero().squeeze(1)
        changed = shares_of_counts(row[entries], left[entries].float(), R)
        part_shares[k, entries] = as_bytes(changed)
    return TextCounts(starts, torch.from_numpy(keys % V), counts, shares, part_shares)


def count_ranges(
    ids: NDArray[np.integer], codes: Tensor, sizes: Sequence[int], rows: Sequence[int]
) -> Iterator[RangeCounts]:
    """The counts of each of `counted_ranges`, with a bar."""
    n, most = len(ids), sizes[-1] - 1
    bar = tqdm(
        desc="counting n-grams",
        total=min(n, MAX_COUNTED),
        unit="character",
        delay=2,
        leave=False,
        disable=None,
    )
    for first, last in counted_ranges(n):
        before = min(first, most)
        text = torch.from_numpy(ids[first - before : last + 1].astype(np.int64))
        padded = F.pad(codes[text[:-1]], (most - before, 0))[None]
        row = rows_of(ngram_hashes(padded, sizes), rows)[0]
        keys = row * len(codes) + text[before + 1 :, None]
        if first < most:  # some n-grams would begin before the text
            keys = keys[torch.arange(1, last - first + 1)[:, None] + first >= torch.tensor(sizes)]
        different, times = np.unique(keys.numpy(), return_counts=True)
        yield RangeCounts(first * PARTS // n, different, times.astype(np.int32))
        bar.update(last - first)
    bar.close()


def counted_ranges(n: int) -> Iterator[tuple[int, int]]:
    """Ranges of the positions 0 to n - 2, each in one of PARTS equal parts of a text of n
    characters, and of at most COUNTED_AT_ONCE. Of a text longer than MAX_COUNTED, they are the
    beginning of each part."""
    edges = [-(-n * k // PARTS) for k in range(PARTS)]  # where position * PARTS // n becomes k
    for first, end in zip(edges, [*edges[1:], n - 1], strict=True):
        last = min(end, first + MAX_COUNTED // PARTS)
        for begin in range(first, min(last, n - 1), COUNTED_AT_ONCE):
            yield begin, min(begin + COUNTED_AT_ONCE, last, n - 1)


def count_in_window(
    idx: Tensor, hashes: Tensor, sizes: Tensor, positions: Tensor, vocab_size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """What followed the n-grams of some positions (B, T) earlier in their windows idx (B, S):
    sources as in `SparseShares`, characters, and counts, (E,) each.

    hashes (B, S, N) are those of the n-grams up to every character, sizes (N,) their n.
    """
    (B, S, N), T, none = hashes.shape, positions.size(1), vocab_size
    # Sorted by hash, and equal ones by position: each n-gram is after its earlier occurrences.
    ordered, order = hashes.transpose(1, 2).flatten(0, 1).sort(dim=1, stable=True)  # (B * N, S)
    begins_group = F.pad(ordered[:, 1:] != ordered[:, :-1], (1, 0), value=True).flatten()
    group = begins_group.cumsum(0) - 1  # of each occurrence: those of the same n-gram
    members = group.bincount()
    firsts = members.cumsum(0) - members
    # What followed each occurrence. An n-gram that ends before n - 1 begins before the window.
    n = sizes.repeat(B)[:, None]
    following = F.pad(idx[:, 1:], (0, 1), value=none).repeat_interleave(N, dim=0).gather(1, order)
    following = following.masked_fill(order < n - 1, none).flatten()
    # For each character that follows a group, a cell for each occurrence in the group: how often
    # the character followed the earlier ones.
    different = (group * (none + 1) + following).unique()
    in_group, character = different // (none + 1), different % (none + 1)
    cells = members[in_group].masked_fill(character == none, 0)
    cells *= cells > 1
    starts = cells.cumsum(0) - cells
    which = torch.arange(len(cells), device=idx.device).repeat_interleave(cells)
    cell = torch.arange(len(which), device=idx.device)
    occurrence = cell + (firsts[in_group] - starts)[which]
    follows = (following[occurrence] == character[which]).int()
    before = follows.cumsum(0, dtype=torch.int32) - follows
    counts = before - before[starts[which]]
    # The place of each position among the T, or T for those that are not.
    among = torch.full((B, S), T, device=idx.device)
    among.scatter_(1, positions.clamp(max=S - 1), torch.arange(T, device=idx.device).expand(B, T))
    row, table = occurrence // S // N, occurrence // S % N
    t = among[row, order.flatten()[occurrence]]
    found = (counts > 0) & (t < T)
    sources = (row * T + t) * 2 * N + N + table
    return sources[found], character[which][found], counts[found].float()
