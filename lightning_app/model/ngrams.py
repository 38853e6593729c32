"""N-gram counts: which characters followed the last 2, 3, ... ones in the training text.

For each n, the last n characters of a position select a row of a table, and the row's counts are
added to the character's embedding, as a weighted sum of trained vectors. What follows from the last
few characters then needs no computation by the blocks, and the counts need no training: they are
there from the first step on, and cannot be overfitted. A table has fewer rows than there are
n-grams, so that some share a row, as in the hash embeddings of the Byte Latent Transformer (arXiv
2412.09871); there and in over-encoded transformers (2501.16975) the rows themselves are trained.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

MULTIPLIER = 0x735A2D97  # odd and below 2**31, so that int64 holds the product of the hash
MASK = 0xFFFFFFFF
COUNTED_AT_ONCE = 1 << 20  # characters
MAX_PART_COUNT = 2**15 - 1
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
    """The weight of a vector, for its count and the sum of its row's counts.

    It is ln(1 + 100 p) / ln(101) with p = count / (total + 2): unlike p itself, it distinguishes
    1 from 5 %; and a row that was seen once has less weight than one that was seen often. Rounded
    to a multiple of 1 / 255, so that a byte can hold it.
    """
    return (torch.log1p(100 * counts / (totals + 2)) * (255 / math.log(101))).round() / 255


def counted_ranges(n: int) -> Iterator[tuple[int, int]]:
    """Ranges of the positions 0 to n - 2, each in one of PARTS equal parts of a text of n
    characters, and of at most COUNTED_AT_ONCE."""
    edges = [-(-n * k // PARTS) for k in range(PARTS)]  # where position * PARTS // n becomes k
    for first, last in zip(edges, [*edges[1:], n - 1], strict=True):
        for begin in range(first, min(last, n - 1), COUNTED_AT_ONCE):
            yield begin, min(begin + COUNTED_AT_ONCE, last, n - 1)


class NgramCounts(nn.Module):
    """A vector for what may follow each position: codes (B, N + T) to (B, T, D).

    N tables, for the last n = 2, 3, ... characters, have `rows` rows each. A row's counts are those
    of the characters that followed in the training text. The output is the sum of `weight` (N * V,
    D), one vector for each table and character, times `scaled_shares` of the counts; only `weight`
    is trained. An n-gram that begins before the window has no row.

    The rows of all tables follow one another. Row r has the entries starts[r] to starts[r + 1] - 1
    of `characters` and `counts` (P,): the characters that occurred, by id, and how often.
    `codes` (V,) are the codes of the characters: at first id + 1; see `use_code_points`.

    In training, a window must see the counts of a text that it is not part of, as it will later.
    `part_counts` (P, PARTS) are therefore the counts of each part of the text by itself. They are
    not saved: `count` the text again before training is resumed.
    """

    codes: Tensor
    starts: Tensor
    characters: Tensor
    counts: Tensor
    part_counts: Tensor

    def __init__(self, rows: Sequence[int], size: int, vocab_size: int) -> None:
        super().__init__()
        self.rows, self.vocab_size = tuple(rows), vocab_size
        self.weight = nn.Parameter(torch.empty(len(rows) * vocab_size, size))
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
        parts = torch.zeros(0, PARTS, dtype=torch.int16, device=device)
        self.register_buffer("part_counts", parts, persistent=False)
        self.length = 0  # of the text that was counted

    def use_code_points(self, alphabet: str) -> None:
        """Make code point + 1 a character's code, so that the hashes do not depend on the
        alphabet."""
        self.codes.copy_(torch.tensor([ord(c) + 1 for c in alphabet]))

    @torch.no_grad()
    def count(self, ids: NDArray[np.integer]) -> None:
        """Fill the tables with the counts of a text, its ids (n,); earlier counts are dropped.

        Its parts are PARTS equal ones, by the position of the n-gram's last character.
        """
        N, V, n = len(self.rows), self.vocab_size, len(ids)
        found: list[NDArray[np.int64]] = []
        times: list[NDArray[np.int64]] = []
        parts: list[int] = []
        bar = tqdm(
            total=n, desc="counting n-grams", unit="character", delay=2, leave=False, disable=None
        )
        for first, last in counted_ranges(n):
            before = min(first, N)
            part = torch.from_numpy(ids[first - before : last + 1].astype(np.int64))
            codes = F.pad(self.codes.cpu()[part[:-1]], (N - before, 0))[None]
            rows, absent = self.table_rows(codes)
            keys = (rows[0] * V + part[before + 1 :, None])[~absent[0]]
            different, number = np.unique(keys.numpy(), return_counts=True)
            found.append(different)
            times.append(number)
            parts.append(first * PARTS // n)
            bar.update(last - first)
        bar.close()
        entries = np.unique(np.concatenate(found))
        self.allocate(len(entries))
        per_row = np.bincount(entries // V, minlength=sum(self.rows))
        self.starts[1:] = torch.from_numpy(per_row.cumsum())
        self.characters.copy_(torch.from_numpy(entries % V))
        by_part = np.zeros((len(entries), PARTS), dtype=np.int32)
        for different, number, k in zip(found, times, parts, strict=True):
            by_part[np.searchsorted(entries, different), k] += number.astype(np.int32)
        self.counts.copy_(torch.from_numpy(by_part.sum(axis=1, dtype=np.int32)))
        self.part_counts = torch.from_numpy(by_part.clip(max=MAX_PART_COUNT).astype(np.int16)).to(
            self.codes.device
        )
        self.length = n

    def table_rows(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """The rows of each position, (B, T, N), and where there is none: the n-gram begins before
        the window."""
        N, first = len(self.rows), 0
        T = codes.size(1) - N
        found, absent = [], []
        for n, h in enumerate(ngram_hashes(codes, N)):
            found.append(first + h % self.rows[n])
            absent.append(codes[:, N - n - 1 : N - n - 1 + T] == 0)
            first += self.rows[n]
        return torch.stack(found, dim=-1), torch.stack(absent, dim=-1)

    def forward(
        self, codes: Tensor, targets: Tensor | None = None, begins: Tensor | None = None
    ) -> Tensor:
        """For windows of the training text, `targets` (B, T) are the characters that follow, and
        `begins` (B,) where each window begins in the text.

        With `begins`, the counts of the part of the text in which a window begins are left out;
        with `targets` alone, what follows in the window itself.
        """
        N, V = len(self.rows), self.vocab_size
        shape = (codes.size(0), codes.size(1) - N)
        with torch.no_grad():
            rows, absent = self.table_rows(codes)
            first = self.starts[rows].flatten()  # (B * T * N,)
            lengths = (self.starts[rows + 1].flatten() - first).masked_fill(absent.flatten(), 0)
            ends = lengths.cumsum(0)
            total = int(ends[-1])  # entries of all these rows
            row = torch.arange(len(lengths), device=codes.device)
            row = row.repeat_interleave(lengths, output_size=total)
            entries = (first - ends + lengths)[row] + torch.arange(total, device=codes.device)
            characters, counts = self.characters[entries].long(), self.counts[entries].float()
            if begins is not None and len(self.part_counts):
                parts = (begins * PARTS // self.length).clamp(max=PARTS - 1)
                parts = parts.repeat_interleave(shape[1])
                own = self.part_counts[entries, parts[row // N]]
                counts = (counts - own).clamp(min=0)  # a replaced name may be no occurrence
            elif targets is not None:
                counts -= (characters == targets.flatten()[row // N]).float()
            totals = counts.new_zeros(len(lengths)).index_add_(0, row, counts)
            shares = scaled_shares(counts, totals[row])
            if N * V <= DENSE_SIZE:
                dense = shares.new_zeros(len(lengths) * V)
                dense[row * V + characters] = shares
        if N * V <= DENSE_SIZE:
            return dense.view(*shape, N * V).to(self.weight.dtype) @ self.weight
        places = row % N * V + characters
        offsets = (ends - lengths)[::N]
        bags = F.embedding_bag(
            places,
            self.weight,
            offsets,
            mode="sum",
            per_sample_weights=shares.to(self.weight.dtype),
        )
        return bags.unflatten(0, shape)

    def exclude_from_compilation(self) -> None:
        """Keep torch.compile from the look-up, whose sizes differ from batch to batch."""
        self.forward = torch.compiler.disable(self.forward)  # type: ignore[method-assign]

    def entry_shares(self) -> Tensor:
        """`scaled_shares` of all entries, (P,) float32."""
        counts, lengths = self.counts.float(), self.starts.diff()
        row = torch.arange(len(lengths), device=counts.device).repeat_interleave(lengths)
        totals = counts.new_zeros(len(lengths)).index_add_(0, row, counts)
        return scaled_shares(counts, totals[row])

    @property
    def is_empty(self) -> bool:
        """Whether no text has been counted."""
        return len(self.counts) == 0

    def load_tables(self, starts: Tensor, characters: Tensor, counts: Tensor) -> None:
        """Take the tables of another network with the same rows. Raises ValueError if they cannot
        be read."""
        if len(counts) != len(self.counts):  # otherwise the counts of the parts are kept
            self.allocate(len(counts))
        for table, values in zip(
            (self.starts, self.characters, self.counts), (starts, characters, counts), strict=True
        ):
            table.copy_(values)
        self.check_tables()

    def check_tables(self) -> None:
        """Raises ValueError for tables that would read outside of their entries."""
        starts, entries = self.starts, len(self.counts)
        if int(starts[0]) or int(starts[-1]) != entries or bool((starts.diff() < 0).any()):
            raise ValueError("the rows of the n-gram tables do not cover their entries")
        if entries and not 0 <= int(self.characters.min()) <= int(self.characters.max()) < (
            self.vocab_size
        ):
            raise ValueError("the n-gram tables have characters outside the alphabet")
        if entries and int(self.counts.min()) < 1:
            raise ValueError("the n-gram tables have counts below 1")

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Make room for the tables of a state_dict, whose sizes depend on the text."""
        given = state_dict.get(f"{prefix}counts")
        if isinstance(given, Tensor) and given.shape != self.counts.shape:
            self.allocate(given.numel())
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self.check_tables()
