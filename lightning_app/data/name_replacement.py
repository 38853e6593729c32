"""Names in training windows replaced by invented ones, so that there are others than those learned.

A play has names that no other play has, a program identifiers that no other has. A network that has
read them a hundred times expects them everywhere, and is at a loss where others stand.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from hashlib import blake2b
from itertools import pairwise
from struct import unpack

import numpy as np
from numpy.typing import NDArray

from lightning_app.data.encoding import Unit
from lightning_app.data.tokenizer import Tokenizer

PARTS = 5  # of the training text
OFTEN = 5  # times a name stands in its part; words that are merely rare stay
SHORTEST, LONGEST = 3, 30  # letters of a word
READ = 5_000_000  # characters of the training text that names are looked for in: a second


def letter_case(word: str) -> str:
    """How a word is written: in capitals, capitalised, or small (and what has no capitals)."""
    if word.isupper():
        return "capitals"
    return "capitalised" if word[0].isupper() else "small"


class NameReplacer:
    """Replaces names in windows of a text, each with probability `rename`.

    A name is a word that stands in one fifth of the training text only, and there often. What it is
    replaced by is a pure function of seed, window and name: the same throughout a window and all
    its pieces. A name cut in two at an edge is none, and stays.
    """

    def __init__(
        self, ids: NDArray[np.integer], alphabet: str, unit: Unit, rename: float, seed: int
    ) -> None:
        self.tokenizer = Tokenizer(alphabet)  # of bytes too: a character stands for each
        letter = "[A-Za-z]" if unit == "byte" else r"[^\W\d_]"  # no part of a character of UTF-8
        self.word = re.compile(f"{letter}+")
        self.rename, self.seed = rename, (seed & (2**64 - 1)).to_bytes(8, "little")
        n = min(len(ids), READ)
        bounds = [i * n // PARTS for i in range(PARTS + 1)]
        parts = [Counter(self.words(ids[first:last])) for first, last in pairwise(bounds)]
        of_parts = Counter(word for part in parts for word in part)
        self.names = {
            word
            for part in parts
            for word, count in part.items()
            if count >= OFTEN and of_parts[word] == 1
        }
        self.at_least: dict[tuple[str, int], list[str]] = defaultdict(list)  # of a kind, n letters
        for word in sorted(of_parts):
            for n in range(1, len(word) + 1):
                self.at_least[letter_case(word), n].append(word)

    def words(self, ids: NDArray[np.integer]) -> Iterator[str]:
        found = (match[0] for match in self.word.finditer(self.tokenizer.decode(ids.tolist())))
        return (word for word in found if SHORTEST <= len(word) <= LONGEST)

    def invent(self, name: str, key: bytes) -> str:
        """The name itself, or as many letters: the first of one word of its kind, the last of
        another."""
        chance, cut, i, j = unpack("<4I", blake2b(name.encode(), digest_size=16, key=key).digest())
        if chance >= self.rename * 2**32:
            return name
        cut = 1 + cut % (len(name) - 1)
        rest = len(name) - cut
        firsts, lasts = (self.at_least[letter_case(name), n] for n in (cut, rest))
        return firsts[i % len(firsts)][:cut] + lasts[j % len(lasts)][-rest:]

    def replace(self, windows: NDArray[np.int64], starts: NDArray[np.int64]) -> None:
        """Replace names in windows (B, T), in place. Pieces of a window have its start."""
        for window, start in zip(windows, starts, strict=True):
            key = self.seed + int(start).to_bytes(8, "little")
            for match in self.word.finditer(self.tokenizer.decode(window.tolist())):
                if match[0] in self.names:
                    invented = self.invent(match[0], key)
                    window[match.start() : match.end()] = self.tokenizer.encode(invented)
