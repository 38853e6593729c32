"""Which characters of a text train a network, and which are held out to score it."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Literal

import numpy as np

from lightning_app.data.corpora import Corpus, find_corpus
from lightning_app.data.encoding import EncodedText, Unit, encode_files
from lightning_app.errors import UserError

SPLIT_NAMES = ("train", "val", "test")
HoldOut = Literal["characters", "files"]


@dataclass(frozen=True)
class SplitText:
    """A corpus, encoded, and where its splits begin and end."""

    found: Corpus
    text: EncodedText
    bounds: dict[str, tuple[int, int]]

    def ids(self, split: str) -> np.ndarray:
        return self.text.ids[slice(*self.bounds[split])]


def split_text(
    corpus: str,
    shares: Sequence[float],
    hold_out: HoldOut = "characters",
    unit: Unit | None = None,
    data_dir: str = "data",
) -> SplitText:
    """Find a corpus, encode it and cut it; the arguments are CharDataModule's. Raises UserError."""
    check_shares(shares)
    found = find_corpus(corpus, Path(data_dir))
    text = encode_files(found.files, Path(data_dir) / "cache", unit or found.unit)
    starts = text.starts if found.snap or hold_out == "files" else None
    return SplitText(found, text, split_bounds(len(text.ids), shares, starts))


def check_shares(shares: Sequence[float]) -> None:
    """Raises UserError for what are no one to three shares that add up to 1."""
    if not 1 <= len(shares) <= 3:
        raise UserError(f"--data.splits is {list(shares)}; give one to three shares")
    if min(shares) < 0:
        raise UserError(f"--data.splits is {list(shares)}; a share cannot be negative")
    if not abs(sum(shares) - 1) <= 1e-6:  # not a number is refused too
        raise UserError(
            f"--data.splits is {list(shares)}, which adds up to {sum(shares):g}; "
            "the shares must add up to 1, like [0.9, 0.05, 0.05]"
        )


def split_bounds(
    n: int, shares: Sequence[float], starts: Sequence[int] | None = None
) -> dict[str, tuple[int, int]]:
    """First and one-past-last character of each split of a text of n characters, side by side.

    With `starts`, where its files begin, boundaries move to the nearest of them (or to the end), so
    that whole files are held out.
    """
    ends = [int(round(n * share, 6)) for share in accumulate(shares)]
    if starts is not None:
        ends = [min((*starts, n), key=lambda start: abs(start - end)) for end in ends]
    ends = [0, *ends, n, n, n][:4]
    ends[len(shares)] = n
    return dict(zip(SPLIT_NAMES, pairwise(ends), strict=True))
