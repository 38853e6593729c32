"""Which text is used, and which of its characters are for training, validation and test."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lightning_app.data.corpora import Corpus, find_corpus
from lightning_app.data.encoding import EncodedText, Unit, encode_files
from lightning_app.errors import UserError

SPLIT_NAMES = ("train", "val", "test")
HoldOut = Literal["characters", "files"]


@dataclass(frozen=True)
class SplitText:
    """A corpus, encoded, and where its splits begin and end."""

    corpus: Corpus
    text: EncodedText
    bounds: dict[str, tuple[int, int]]  # split: first and one-past-last character

    def ids(self, split: str) -> np.ndarray:
        """The ids of one split, a view of the memory-mapped array."""
        return self.text.ids[slice(*self.bounds[split])]


@dataclass(frozen=True)
class TextSource:
    """Which text, and how it is split.

    Args:
        corpus: The text: a UTF-8 file, a folder, a glob, or a name (shakespeare,
            tiny_shakespeare, text8, enwik8).
        splits: Fractions of the text for training, validation and test, in this order; the last
            may be left out.
        hold_out: characters: splits are cut at a character; files: at the nearest beginning of a
            file, so that complete files of a folder or glob are held out.
        unit: What has an id: char, a character of UTF-8 text, or byte, a byte of any file; null is
            byte for enwik8 and char for all others.
        data_dir: Folder for downloaded corpora and encoded texts.
    """

    corpus: str = "shakespeare"
    splits: list[float] = (0.9, 0.05, 0.05)  # type: ignore[assignment]  # a list on the command line
    hold_out: HoldOut = "characters"
    unit: Unit | None = None
    data_dir: str = "data"

    def __post_init__(self) -> None:
        object.__setattr__(self, "splits", list(self.splits))
        check_splits(self.splits)

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The names of the options."""
        return tuple(f.name for f in fields(cls))

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "TextSource":
        """The source with the values of a mapping, which may have other names too."""
        return cls(**{name: values[name] for name in cls.names() if name in values})

    def read(self) -> SplitText:
        """Find the corpus, encode it and split it.

        Raises UserError if it is missing, unreadable, empty or not UTF-8.
        """
        corpus = find_corpus(self.corpus, Path(self.data_dir))
        text = encode_files(corpus.files, Path(self.data_dir) / "cache", self.unit or corpus.unit)
        return self.split(corpus, text)

    def split(self, corpus: Corpus, text: EncodedText) -> SplitText:
        """A corpus that has been encoded, split."""
        starts = text.starts if corpus.snap or self.hold_out == "files" else None
        return SplitText(corpus, text, split_bounds(len(text.ids), self.splits, starts))


def check_splits(fractions: Sequence[float]) -> None:
    """Raises UserError unless there are one to three non-negative fractions that add up to 1."""
    if not 1 <= len(fractions) <= 3:
        raise UserError(f"--data.splits is {list(fractions)}; give one to three fractions")
    if min(fractions) < 0:
        raise UserError(f"--data.splits is {list(fractions)}; a fraction cannot be negative")
    if not abs(sum(fractions) - 1) <= 1e-6:  # refuses nan too
        raise UserError(
            f"--data.splits is {list(fractions)}, which adds up to {sum(fractions):g}; "
            "the fractions must add up to 1, like [0.9, 0.05, 0.05]"
        )


def split_bounds(
    n: int, fractions: Sequence[float], starts: Sequence[int] | None = None
) -> dict[str, tuple[int, int]]:
    """First and one-past-last character of each split of a text of n characters; consecutive.

    With `starts`, the positions where its files begin, boundaries move to the nearest of them (or
    to the end), so that complete files are held out.
    """
    ends = [int(round(n * fraction, 6)) for fraction in accumulate(fractions)]
    if starts is not None:
        candidates = (*starts, n)
        ends = [min(candidates, key=lambda start: abs(start - end)) for end in ends]
    ends = [0, *ends, n, n, n][:4]
    ends[len(fractions)] = n
    return dict(zip(SPLIT_NAMES, pairwise(ends), strict=True))
