"""Hashed n-gram tables: vectors for the last 2, 3, ... characters, looked up instead of computed.

For each n, the last n characters of a position select a row of a table, and the rows are added to
the character's embedding. What follows from the last few characters then needs no computation by
the blocks. A table has fewer rows than there are n-grams, so that several share a row: the hash
embeddings of the Byte Latent Transformer (arXiv 2412.09871), the n-gram tables of over-encoded
transformers (2501.16975).
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MULTIPLIER = 0x735A2D97  # odd and below 2**31, so that int64 holds the product of the hash
MASK = 0xFFFFFFFF


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


class NgramTables(nn.EmbeddingBag):
    """The sum of the table rows of every position: codes (B, N + T) to (B, T, D).

    The N tables, of n = 2, 3, ... characters with `rows` rows each, are one matrix, one after the
    other. It starts at zero. Its gradient is sparse: it has only the rows that occur in a batch.

    `codes` (V,) are the codes of the characters, by id: at first id + 1; see `use_code_points`.
    """

    codes: Tensor

    def __init__(self, rows: Sequence[int], size: int, vocab_size: int) -> None:
        super().__init__(sum(rows), size, mode="sum", sparse=True)
        self.rows, self.add_up = tuple(rows), add_up
        self.register_buffer("codes", torch.arange(1, vocab_size + 1))
        nn.init.zeros_(self.weight)

    def use_code_points(self, alphabet: str) -> None:
        """Make code point + 1 a character's code, so that the tables are also valid for a text with
        another alphabet."""
        self.codes.copy_(torch.tensor([ord(c) + 1 for c in alphabet]))

    def table_rows(self, codes: Tensor) -> Tensor:
        """The rows of the matrix for each position, (B, T, N)."""
        found, first = [], 0
        for h, rows in zip(ngram_hashes(codes, len(self.rows)), self.rows, strict=True):
            found.append(first + h % rows)
            first += rows
        return torch.stack(found, dim=-1)

    def forward(self, codes: Tensor) -> Tensor:  # type: ignore[override]
        return self.add_up(self.table_rows(codes), self.weight)

    def exclude_from_compilation(self) -> None:
        """Keep torch.compile from the look-up: it has no sparse gradients."""
        self.add_up = torch.compiler.disable(
            add_up
        )  # not as a decorator: that imports the compiler


def add_up(rows: Tensor, weight: Tensor) -> Tensor:
    """Sums of `weight`'s rows, rows (B, T, N) to (B, T, D), with a sparse gradient."""
    sums = F.embedding_bag(rows.flatten(0, 1), weight, mode="sum", sparse=True)
    return sums.unflatten(0, rows.shape[:2])


def dense_parameters(module: nn.Module) -> Iterator[nn.Parameter]:
    """A module's parameters except those of n-gram tables, whose gradients are sparse."""
    tables = {id(m.weight) for m in module.modules() if isinstance(m, NgramTables)}
    return (p for p in module.parameters() if id(p) not in tables)
