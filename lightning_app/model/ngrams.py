"""N-gram counts: which characters have followed the last 2, 3, ... ones.

For each n, what followed the last n characters of a position is counted in two places. In the
training text: the n characters select a row of a table, which was counted before training. And in
the window, before the position: this is how the network adapts to a text at once, for example to
its names. The counts are read twice: the blocks see them, added to the character's embedding as a
weighted sum of trained vectors; and they are added to the logits, with factors that depend on the
blocks' output.

What follows from the last few characters then needs no computation by the blocks, and the counts
need no training: they are there from the first step on, and cannot be overfitted. A table has fewer
rows than there are n-grams, so that some share a row, as in the hash embeddings of the Byte Latent
Transformer (arXiv 2412.09871); there and in over-encoded transformers (2501.16975) the rows
themselves are trained. The counts of the window do the work of induction heads, as the n-gram heads
of 2401.12973 do.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

MULTIPLIER = 0x735A2D97  # odd and below 2**31, so that int64 holds the product of the hash
MASK = 0xFFFFFFFF
COUNTED_AT_ONCE = 1 << 20  # characters
MAX_COUNTED = 20_000_000  # characters of a text: about ten seconds
DENSE_SIZE = 4096  # up to this many vectors, one product with all of them is faster than a gather

PARTS = 16  # of the training text; see `NgramCounts.count`
TABLES = ("starts", "characters", "counts")  # the buffers whose sizes depend on the text


def ngram_hashes(codes: Tensor, count: int) -> Iterator[Tensor]:
    """Hashes (B, T) of the last n characters of every position, for n = 2 to count + 1.

    `codes` (B, count + T): the code of every character, 0 before the first one of a window; the
    first `count` columns are those before the first position. All arithmetic is that of unsigned
    32-bit integers. From the newest code to the oldest, starting with h = 0:

        h = (h ^ code) * MULTIPLIER
        h = h ^ (h >> 15)
    """
    T = codes.size(1) - count
    h = torch.zeros_like(codes[:, :T])
    for back in range(count + 1):
        h = ((h ^ codes[:, count - back : count - back + T]) * MULTIPLIER) & MASK
        h = h ^ (h >> 15)
        if back:
            yield h


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
    idx: Tensor, hashes: Tensor, positions: Tensor, vocab_size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """What followed the n-grams of some positions (B, T) earlier in their windows idx (B, S):
    sources as in `SparseShares`, characters, and counts, (E,) each.

    hashes (B, S, N) are those of the n-grams up to every character.
    """
    (B, S, N), T, none = hashes.shape, positions.size(1), vocab_size
    # Sorted by hash, and equal ones by position: each n-gram is after its earlier occurrences.
    ordered, order = hashes.transpose(1, 2).flatten(0, 1).sort(dim=1, stable=True)  # (B * N, S)
    begins_group = F.pad(ordered[:, 1:] != ordered[:, :-1], (1, 0), value=True).flatten()
    group = begins_group.cumsum(0) - 1  # of each occurrence: those of the same n-gram
    sizes = group.bincount()
    firsts = sizes.cumsum(0) - sizes
    # What followed each occurrence. An n-gram has n = i + 2 characters: one that ends at i or
    # before begins before the window.
    i = torch.arange(N, device=idx.device).repeat(B)[:, None]
    following = F.pad(idx[:, 1:], (0, 1), value=none).repeat_interleave(N, dim=0).gather(1, order)
    following = following.masked_fill(order <= i, none).flatten()
    # For each character that follows a group, a cell for each occurrence in the group: how often
    # the character followed the earlier ones.
    different = (group * (none + 1) + following).unique()
    in_group, character = different // (none + 1), different % (none + 1)
    cells = sizes[in_group].masked_fill(character == none, 0)
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
    row, i = occurrence // S // N, occurrence // S % N
    t = among[row, order.flatten()[occurrence]]
    found = (counts > 0) & (t < T)
    sources = (row * T + t) * 2 * N + N + i
    return sources[found], character[which][found], counts[found].float()


class SparseShares(NamedTuple):
    """The shares that are not 0, of B * T positions with 2 N sources each."""

    values: Tensor  # (E,)
    sources: Tensor  # (E,), ascending: position * 2 N + source
    characters: Tensor  # (E,)
    shape: tuple[int, int]  # B, T


def sum_rows(weight: Tensor, rows: Tensor, values: Tensor, places: Tensor, size: int) -> Tensor:
    """For each place (size, D): the sum of weight[rows] (E, D) times values (E,), over the elements
    of that place; places (E,) are ascending."""
    firsts = torch.searchsorted(places, torch.arange(size, device=places.device))
    return F.embedding_bag(rows, weight, firsts, mode="sum", per_sample_weights=values)


class SumRows(torch.autograd.Function):
    """`sum_rows`, whose gradient is such a sum too: in a third of the time of PyTorch's."""

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, rows: Tensor, values: Tensor, places: Tensor, size: int
    ) -> Tensor:
        ctx.save_for_backward(rows, values, places)
        ctx.size = len(weight)
        return sum_rows(weight, rows, values, places, size)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        rows, values, places = ctx.saved_tensors
        order = rows.int().argsort(stable=True)
        rows, values, places = (x.index_select(0, order) for x in (rows, values, places))
        return sum_rows(grad, places, values, rows, ctx.size), None, None, None, None


class NgramCounts(nn.Module):
    """What may follow each position: ids (B, T) to shares; shares to vectors and to logits.

    The shares are `scaled_shares` of 2 N sources: what followed the last n = 2, 3, ... characters
    in the training text, from N tables with `rows` rows each, as multiples of 1 / 255; then what
    followed them in the window, before the position. An n-gram that begins before the window has
    none.

    The vectors are the sum of `weight` (2 N * V, D), one vector for each source and character,
    times the shares. The logits are the sum of the sources' shares, each source's times its output
    of the matrix `gates` (2 N, D). Only `weight` and `gates` are trained.

    The rows of all tables follow one another. Row r has the entries starts[r] to starts[r + 1] - 1
    of `characters` and `counts` (P,): the characters that occurred, by id, and how often.
    `codes` (V,) are the codes of the characters: at first id + 1; see `use_code_points`.

    Not saved: `shares` (P,), those of the entries times 255; and `part_shares` (PARTS, P), which
    training needs. In training, a window must see the counts of a text that it is not part of, as
    it will later: row k is without the counts of part k of the text. `count` the text again before
    training is resumed.
    """

    codes: Tensor
    starts: Tensor
    characters: Tensor
    counts: Tensor
    shares: Tensor
    part_shares: Tensor

    def __init__(self, rows: Sequence[int], size: int, vocab_size: int) -> None:
        super().__init__()
        self.rows, self.vocab_size = tuple(rows), vocab_size
        self.weight = nn.Parameter(torch.empty(2 * len(rows) * vocab_size, size))
        self.gates = nn.Parameter(torch.zeros(2 * len(rows), size))
        self.register_buffer("codes", torch.arange(1, vocab_size + 1))
        self.allocate(0)
        nn.init.normal_(self.weight, std=0.35)

    def allocate(self, entries: int) -> None:
        """Tables for a number of entries; what they had is lost."""
        kind = torch.uint8 if self.vocab_size <= 256 else torch.int32
        device = self.codes.device
        tables = {
            "starts": torch.zeros(sum(self.rows) + 1, dtype=torch.int32, device=device),
            "characters": torch.zeros(entries, dtype=kind, device=device),
            "counts": torch.zeros(entries, dtype=torch.int32, device=device),
        }
        for name, table in tables.items():
            self.register_buffer(name, table)
        for name, shape in (("shares", (entries,)), ("part_shares", (PARTS, 0))):
            shares = torch.zeros(shape, dtype=torch.uint8, device=device)
            self.register_buffer(name, shares, persistent=False)
        self.length = 0  # of the text that was counted

    def use_code_points(self, alphabet: str) -> None:
        """Make code point + 1 a character's code, so that the hashes do not depend on the
        alphabet."""
        self.codes.copy_(torch.tensor([ord(c) + 1 for c in alphabet]))

    @torch.no_grad()
    def count(self, ids: NDArray[np.integer]) -> None:
        """Fill the tables with the counts of a text, its ids (n,); earlier counts are dropped.

        Of a long text, MAX_COUNTED characters are counted, which are spread over it. Its parts are
        PARTS equal ones, by the position of the n-gram's last character.
        """
        N, V, n = len(self.rows), self.vocab_size, len(ids)
        found: list[NDArray[np.int64]] = []
        times: list[NDArray[np.int64]] = []
        parts: list[int] = []
        bar = tqdm(
            desc="counting n-grams",
            total=min(n, MAX_COUNTED),
            unit="character",
            delay=2,
            leave=False,
            disable=None,
        )
        for first, last in counted_ranges(n):
            before = min(first, N)
            part = torch.from_numpy(ids[first - before : last + 1].astype(np.int64))
            codes = F.pad(self.codes.cpu()[part[:-1]], (N - before, 0))[None]
            rows = self.table_rows(torch.stack([*ngram_hashes(codes, N)], dim=-1))[0]
            keys = rows * V + part[before + 1 :, None]
            keys = keys[self.known(torch.arange(first, last))]
            different, number = np.unique(keys.numpy(), return_counts=True)
            found.append(different)
            times.append(number)
            parts.append(first * PARTS // n)
            bar.update(last - first)
        bar.close()
        # With counts NumPy sorts; without them it takes ten times as long.
        entries, _ = np.unique(np.concatenate(found), return_counts=True)
        self.allocate(len(entries))
        per_row = np.bincount(entries // V, minlength=sum(self.rows))
        self.starts[1:] = torch.from_numpy(per_row.cumsum())
        self.characters.copy_(torch.from_numpy(entries % V))
        by_part = np.zeros((PARTS, len(entries)), dtype=np.int32)
        for different, number, k in zip(found, times, parts, strict=True):
            by_part[k, np.searchsorted(entries, different)] += number.astype(np.int32)
        self.counts.copy_(torch.from_numpy(by_part.sum(axis=0, dtype=np.int32)))
        self.shares = self.entry_shares(self.counts)
        self.part_shares = torch.stack(
            [
                self.entry_shares(self.counts - torch.from_numpy(part).to(self.counts.device))
                for part in by_part
            ]
        )
        self.length = n

    def known(self, positions: Tensor) -> Tensor:
        """Whether each n-gram that ends at a position begins at 0 or later, (..., N)."""
        return positions[..., None] > torch.arange(len(self.rows), device=positions.device)

    def table_rows(self, hashes: Tensor) -> Tensor:
        """The rows for hashes (..., N), one of each table."""
        sizes = torch.tensor(self.rows, device=hashes.device)
        return hashes % sizes + sizes.cumsum(0) - sizes

    @torch.no_grad()
    def look_up(
        self, idx: Tensor, positions: Tensor | None = None, begins: Tensor | None = None
    ) -> Tensor | SparseShares:
        """The shares of what may follow, (B, T, 2 N, V); sparse for large alphabets.

        `positions` (B, T) are the places in the windows `idx` (B, S) to look at; by default all.
        `begins` (B,) is where each window begins in the text that was counted, if it is part of
        it: then the counts of the part in which it begins are left out.
        """
        N, V, B = len(self.rows), self.vocab_size, len(idx)
        if positions is None:
            positions = torch.arange(idx.size(1), device=idx.device).expand_as(idx)
        T = positions.size(1)
        codes = F.pad(self.codes[idx], (N, 0))
        hashes = torch.stack([*ngram_hashes(codes, N)], dim=-1)  # (B, S, N)
        wanted = hashes.gather(1, positions[..., None].expand(B, T, N))
        size = B * T * 2 * N
        in_window, followed, counts = count_in_window(idx, hashes, positions, V)
        found = (
            self.in_tables(wanted, positions, begins),
            (in_window, followed, shares_of_counts(in_window, counts, size)),
        )
        if self.dense:
            dense = torch.zeros(size * V, device=idx.device)
            for sources, characters, shares in found:
                dense.scatter_(0, sources * V + characters, shares)
            return dense.view(B, T, 2 * N, V)
        sources, characters, shares = map(torch.cat, zip(*found, strict=True))
        order = sources.int().argsort()  # half the time of int64
        shares, sources, characters = (
            x.index_select(0, order) for x in (shares, sources, characters)
        )
        return SparseShares(shares, sources, characters, (B, T))

    def in_tables(
        self, hashes: Tensor, positions: Tensor, begins: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The entries of the tables for hashes (B, T, N): sources as in `SparseShares`, characters,
        and shares, (E,) each."""
        B, T, N = hashes.shape
        rows = self.table_rows(hashes).flatten()  # (B * T * N,)
        first = self.starts.index_select(0, rows)  # half the time of an index, here and below
        lengths = self.starts.index_select(0, rows + 1) - first
        lengths = lengths.masked_fill(~self.known(positions).flatten(), 0)
        ends = lengths.cumsum(0)
        total = int(ends[-1])  # entries of all these rows
        row = torch.arange(len(rows), device=rows.device)
        row = row.repeat_interleave(lengths, output_size=total)
        entries = (first - ends + lengths).index_select(0, row)
        entries += torch.arange(total, device=rows.device)
        characters = self.characters.index_select(0, entries).long()
        if begins is None:
            shares = self.shares.index_select(0, entries)
        else:
            part = (begins * PARTS // self.length).clamp(max=PARTS - 1)
            part_begins = (part * len(self.counts)).repeat_interleave(T * N)
            entries += part_begins.index_select(0, row)
            shares = self.part_shares.flatten().index_select(0, entries)
        sources = torch.arange(B * T * 2 * N, device=rows.device).view(B * T, 2 * N)[:, :N]
        return sources.flatten().index_select(0, row), characters, shares / 255

    @property
    def dense(self) -> bool:
        """Whether shares are stored for all characters, most of them 0."""
        return len(self.weight) <= DENSE_SIZE

    def vectors(self, shares: Tensor | SparseShares) -> Tensor:
        """The vectors (B, T, D) that the shares add to the embedding."""
        if isinstance(shares, Tensor):
            return shares.flatten(2).to(self.weight.dtype) @ self.weight
        (B, T), sources = shares.shape, len(self.gates)
        rows = shares.sources % sources * self.vocab_size + shares.characters
        values = shares.values.to(self.weight.dtype)
        sums = SumRows.apply(self.weight, rows, values, shares.sources // sources, B * T)
        return sums.unflatten(0, shares.shape)

    def logits(self, shares: Tensor | SparseShares, x: Tensor) -> Tensor:
        """The logits (B, T, V) that the shares add to those of the head, whose input is x
        (B, T, D)."""
        gates = F.linear(x, self.gates)  # (B, T, 2 N)
        if isinstance(shares, Tensor):
            with torch.autocast(x.device.type, enabled=False):  # faster than in bf16
                return (gates.to(shares.dtype)[..., None, :] @ shares).squeeze(-2)
        B, T = shares.shape
        added = gates.flatten()[shares.sources] * shares.values
        places = shares.sources // len(self.gates) * self.vocab_size + shares.characters
        flat = added.new_zeros(B * T * self.vocab_size).index_add(0, places, added)
        return flat.view(B, T, self.vocab_size)

    def entry_shares(self, counts: Tensor) -> Tensor:
        """The shares of all entries of the tables for these counts (P,), times 255, uint8."""
        lengths = self.starts.diff()
        row = torch.arange(len(lengths), device=counts.device).repeat_interleave(lengths)
        shares = shares_of_counts(row, counts.float(), len(lengths))
        return (shares * 255).round().byte()

    @property
    def has_counted(self) -> bool:
        """Whether a text has been counted here, which training needs; not only loaded."""
        return self.part_shares.size(1) > 0

    def load_tables(self, starts: Tensor, characters: Tensor, counts: Tensor) -> None:
        """Take the tables of another network with the same rows. Raises ValueError if they cannot
        be read."""
        if len(counts) != len(self.counts):  # otherwise the shares without parts are kept
            self.allocate(len(counts))
        for table, values in zip(
            (self.starts, self.characters, self.counts), (starts, characters, counts), strict=True
        ):
            table.copy_(values)
        self.use_tables()

    def use_tables(self) -> None:
        """Compute the shares of the tables. Raises ValueError for tables that would read outside of
        their entries."""
        starts, entries = self.starts, len(self.counts)
        if int(starts[0]) or int(starts[-1]) != entries or bool((starts.diff() < 0).any()):
            raise ValueError("the rows of the n-gram tables do not cover their entries")
        if entries and not 0 <= int(self.characters.min()) <= int(self.characters.max()) < (
            self.vocab_size
        ):
            raise ValueError("the n-gram tables have characters outside the alphabet")
        if entries and int(self.counts.min()) < 1:
            raise ValueError("the n-gram tables have counts below 1")
        self.shares = self.entry_shares(self.counts)

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Make room for the tables of a state_dict, whose sizes depend on the text."""
        given = state_dict.get(f"{prefix}counts")
        if isinstance(given, Tensor) and given.shape != self.counts.shape:
            self.allocate(given.numel())
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self.use_tables()
