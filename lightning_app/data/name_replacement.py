"""Name replacement: a data augmentation that replaces names in training windows by invented ones.

A play has names that occur in no other play, a program has identifiers that occur in no other
program. A network that trains on the same text for many epochs memorises these names, expects them
in every text, and predicts the names of held-out text badly.
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

PARTS = 5  # equal parts of the training text; a name occurs in only one of them
MIN_COUNT = 5  # occurrences of a name; words that are merely rare are not replaced
MIN_LETTERS, MAX_LETTERS = 3, 30  # of a word
MAX_CHARACTERS = 5_000_000  # of the training text that are searched for names: takes a second


def letter_case(word: str) -> str:
    """upper, capitalised or lower; scripts without capital letters are lower."""
    if word.isupper():
        return "upper"
    return "capitalised" if word[0].isupper() else "lower"


class NameReplacer:
    """Replaces names in windows of a text, each with probability `probability`.

    A name is a word that occurs at least MIN_COUNT times in one fifth of the training text and
    never in the others. Its replacement has the same length and is a pure function of the seed, the
    start of the window and the name, so it is the same at all places of a window. A name of
    which only a part is in the window is not recognised and not replaced.
    """

    def __init__(
        self,
        ids: NDArray[np.integer],
        alphabet: str,
        unit: Unit,
        probability: float,
        seed: int,
    ) -> None:
        self.tokenizer = Tokenizer(alphabet)  # with unit "byte" too: one character for each byte
        letter = "[A-Za-z]" if unit == "byte" else r"[^\W\d_]"  # no byte of a longer character
        self.word = re.compile(f"{letter}+")
        self.probability = probability
        self.seed = (seed & (2**64 - 1)).to_bytes(8, "little")
        n = min(len(ids), MAX_CHARACTERS)
        bounds = [i * n // PARTS for i in range(PARTS + 1)]
        counts = [Counter(self.words(ids[first:last])) for first, last in pairwise(bounds)]
        parts_with = Counter(word for part in counts for word in part)
        self.names = {
            word
            for part in counts
            for word, count in part.items()
            if count >= MIN_COUNT and parts_with[word] == 1
        }
        # (letter case, n): the words with this case and at least n letters
        self.candidates: dict[tuple[str, int], list[str]] = defaultdict(list)
        for word in sorted(parts_with):
            for n_letters in range(1, len(word) + 1):
                self.candidates[letter_case(word), n_letters].append(word)

    def words(self, ids: NDArray[np.integer]) -> Iterator[str]:
        """The words of a text that may be names or parts of invented ones."""
        found = (match[0] for match in self.word.finditer(self.tokenizer.decode(ids.tolist())))
        return (word for word in found if MIN_LETTERS <= len(word) <= MAX_LETTERS)

    def replacement(self, name: str, key: bytes) -> str:
        """The name itself, or a name of the same length: the beginning of a word of the same letter
        case and the end of another."""
        digest = blake2b(name.encode(), digest_size=16, key=key).digest()
        chance, cut, i, j = unpack("<4I", digest)  # four uniform 32-bit numbers
        if chance >= self.probability * 2**32:
            return name
        head = 1 + cut % (len(name) - 1)  # letters of the first word
        tail = len(name) - head
        first, second = (self.candidates[letter_case(name), n] for n in (head, tail))
        return first[i % len(first)][:head] + second[j % len(second)][-tail:]

    def replace(self, windows: NDArray[np.int64], starts: NDArray[np.int64]) -> None:
        """Replace names in windows (B, T) of ids, in place.

        `starts` (B,) are their positions in the text. If parts of one window are given with the
        start of that window, a name gets the same replacement in all of them.
        """
        for window, start in zip(windows, starts, strict=True):
            key = self.seed + int(start).to_bytes(8, "little")
            for match in self.word.finditer(self.tokenizer.decode(window.tolist())):
                if match[0] in self.names:
                    new = self.replacement(match[0], key)
                    window[match.start() : match.end()] = self.tokenizer.encode(new)
