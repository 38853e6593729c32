"""N-gram counts: which characters have followed the last n ones, for several n.

What followed the last n characters of a position is counted in two places. In the training text:
the n characters select a row of a table, which was counted before training. And in the window,
before the position: this is how the network adapts to a text at once, for example to its names. The
counts are read twice: the blocks see them, added to the character's embedding as a weighted sum of
trained vectors; and they are added to the logits, with factors that depend on the blocks' output.

What follows from the last few characters then needs no computation by the blocks, and the counts
need no training: they are there from the first step on, and cannot be overfitted. A table has fewer
rows than there are n-grams, so that some share a row, as in the hash embeddings of the Byte Latent
Transformer (arXiv 2412.09871); there and in over-encoded transformers (2501.16975) the rows
themselves are trained. The counts of the window do the work of induction heads, as the n-gram heads
of 2401.12973 do.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from lightning_app.model.ngram_counting import (
    PARTS,
    count_in_window,
    count_text,
    entry_shares,
    ngram_hashes,
    rows_of,
    shares_of_counts,
    table_sizes,
)

DENSE_SIZE = 4096  # up to this many vectors, one product with all of them is faster than a gather
TABLES = ("starts", "characters", "counts")  # the buffers whose sizes depend on the text


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

    The shares are `scaled_shares` of 2 N sources: what followed the last n characters in the
    training text, from N tables, as multiples of 1 / 255; then what followed them in the window,
    before the position. An n-gram that begins before the window has none. `rows` are the rows of
    the tables for n = 2, 3, ..., with 0 where there is none.

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
        self.sizes = table_sizes(rows)
        self.rows, self.vocab_size = tuple(number for number in rows if number), vocab_size
        sources = 2 * len(self.rows)
        self.weight = nn.Parameter(torch.empty(sources * vocab_size, size))
        self.gates = nn.Parameter(torch.zeros(sources, size))
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
        """Fill the tables with the counts of a text, its ids (n,); earlier counts are dropped. Of a
        long text, MAX_COUNTED characters are counted."""
        found = count_text(ids, self.codes.cpu(), self.sizes, self.rows)
        self.allocate(len(found.counts))
        self.starts[1:] = found.lengths.cumsum(0)
        self.characters.copy_(found.characters)
        self.counts.copy_(found.counts)
        self.shares = entry_shares(self.starts, self.counts)
        self.part_shares = found.part_shares.to(self.codes.device)
        self.length = len(ids)

    def known(self, positions: Tensor) -> Tensor:
        """Whether each n-gram that ends at a position begins at 0 or later, (..., N)."""
        return positions[..., None] + 1 >= torch.tensor(self.sizes, device=positions.device)

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
        codes = F.pad(self.codes[idx], (self.sizes[-1] - 1, 0))
        hashes = ngram_hashes(codes, self.sizes)  # (B, S, N)
        wanted = hashes.gather(1, positions[..., None].expand(B, T, N))
        size = B * T * 2 * N
        sizes = torch.tensor(self.sizes, device=idx.device)
        in_window, followed, counts = count_in_window(idx, hashes, sizes, positions, V)
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
        rows = rows_of(hashes, self.rows).flatten()  # (B * T * N,)
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
        self.shares = entry_shares(self.starts, self.counts)

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Make room for the tables of a state_dict, whose sizes depend on the text."""
        given = state_dict.get(f"{prefix}counts")
        if isinstance(given, Tensor) and given.shape != self.counts.shape:
            self.allocate(given.numel())
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self.use_tables()
