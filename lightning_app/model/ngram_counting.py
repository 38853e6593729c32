"""Counting what follows n-grams: in a text, for the tables of `model.ngrams`, and in a window.

There are N tables, one for each of N sizes n. The hash of an n-gram selects a row of its table; the
rows of all tables follow one another. A row has an entry for each character that occurred, P in
all.
"""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

MULTIPLIER = 0x735A2D97  # odd and below 2**31, so that int64 holds the product of the hash
MASK = 0xFFFFFFFF
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
        h = mixed(h, codes[:, longest - n : longest - n + T])
        if n in sizes:
            hashes.append(h)
    return torch.stack(hashes, dim=-1)


def mixed(h: Tensor, codes: Tensor) -> Tensor:
    """Hashes h, extended by codes."""
    h = ((h ^ codes) * MULTIPLIER) & MASK
    return h ^ (h >> 15)


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


def entry_shares(starts: Tensor, counts: Tensor) -> Tensor:
    """The shares of all entries for their counts (P,), times 255, uint8."""
    lengths = starts.diff()
    row = torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths)
    return as_bytes(shares_of_counts(row, counts.float(), len(lengths)))


class TextCounts(NamedTuple):
    """What followed the n-grams of a text.

    lengths: (R,) how many entries each row has.
    characters: (P,) ids.
    counts: (P,) int32.
    part_shares: (PARTS, P) uint8; row k are the shares, times 255, without the counts of part k of
        the text.
    """

    lengths: Tensor
    characters: Tensor
    counts: Tensor
    part_shares: Tensor


def count_text(
    ids: NDArray[np.integer], codes: Tensor, sizes: Sequence[int], rows: Sequence[int]
) -> TextCounts:
    """Count a text, its ids (n,), for tables of these sizes n, ascending, with so many `rows`.

    `codes` (V,) are those of the characters. Of a long text, MAX_COUNTED characters are counted,
    which are spread over it. Its parts are PARTS equal ones, by the position of an n-gram's last
    character.
    """
    ranges = counted_ranges(len(ids))
    bar = tqdm(
        desc="counting n-grams",
        total=sum(last - first for first, last in ranges) * len(sizes),
        unit="n-gram",
        unit_scale=True,
        delay=2,
        leave=False,
        disable=None,
    )
    hashes = [torch.zeros(last - first, dtype=torch.int64) for first, last in ranges]
    tables, known = [], 0  # how many characters are in the hashes
    for n, number in zip(sizes, rows, strict=True):
        keys = []
        for i, (first, last) in enumerate(ranges):
            for back in range(known, n):
                hashes[i] = mixed(hashes[i], codes_before(ids, codes, first, last, back))
            following = torch.from_numpy(ids[first + 1 : last + 1].astype(np.int64))
            begins = max(0, n - 1 - first)  # the first n-gram that begins in the text
            keys.append((hashes[i] % number * len(codes) + following)[begins:].numpy())
            bar.update(last - first)
        tables.append(count_table(keys, number, len(codes)))
        known = n
    bar.close()
    lengths, characters, counts, part_shares = zip(*tables, strict=True)
    return TextCounts(
        torch.cat(lengths), torch.cat(characters), torch.cat(counts), torch.cat(part_shares, dim=1)
    )


def codes_before(
    ids: NDArray[np.integer], codes: Tensor, first: int, last: int, back: int
) -> Tensor:
    """The codes (last - first,) of the characters `back` before positions first to last - 1, with 0
    before the text."""
    known = ids[max(0, first - back) : max(0, last - back)].astype(np.int64)
    return F.pad(codes[torch.from_numpy(known)], (last - first - len(known), 0))


def count_table(keys: list[NDArray[np.int64]], rows: int, vocab_size: int) -> TextCounts:
    """One table with so many rows. `keys` are row * V + the following id for each n-gram of a part
    of the text, for all parts."""
    found = [np.unique(k, return_counts=True) for k in keys]
    together = np.concatenate([different for different, _ in found])
    # With counts NumPy sorts; without them it takes ten times as long.
    entries, _ = np.unique(together, return_counts=True)
    places = [torch.from_numpy(np.searchsorted(entries, different)) for different, _ in found]
    times = [torch.from_numpy(number.astype(np.int32)) for _, number in found]
    counts = torch.zeros(len(entries), dtype=torch.int32)
    for place, number in zip(places, times, strict=True):
        counts[place] += number  # a place occurs once in a part
    row = torch.from_numpy(entries // vocab_size)
    part_shares = as_bytes(shares_of_counts(row, counts.float(), rows)).repeat(PARTS, 1)
    for k, (place, number) in enumerate(zip(places, times, strict=True)):
        left, in_part = counts.clone(), torch.zeros(rows, dtype=torch.bool)
        left[place] -= number
        in_part[row[place]] = True
        changed = in_part[row].nonzero().squeeze(1)  # the shares of other rows are the same
        shares = shares_of_counts(row[changed], left[changed].float(), rows)
        part_shares[k, changed] = as_bytes(shares)
    lengths = torch.bincount(row, minlength=rows)
    return TextCounts(lengths, torch.from_numpy(entries % vocab_size), counts, part_shares)


def counted_ranges(n: int) -> list[tuple[int, int]]:
    """The positions that are counted in each of PARTS equal parts of a text of n characters: the
    first one, and the one after the last. Position p is in part p * PARTS // n. Nothing follows the
    last character. Of a text longer than MAX_COUNTED, the beginning of each part is counted."""
    edges = [min(-(-n * k // PARTS), n - 1) for k in range(PARTS + 1)]
    return [
        (first, min(end, first + MAX_COUNTED // PARTS)) for first, end in itertools.pairwise(edges)
    ]


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
