"""Invented words in training windows, so that names learned by heart are not all the network knows.

A text has names and words that no other has. To a network they are impossible: it has only ever
seen those of its training text, and by heart. So some words are invented while it trains, each the
same throughout a window, as many as a new text would have new ones.
"""

import re
from collections import Counter, defaultdict
from hashlib import blake2b
from struct import unpack

import numpy as np
from numpy.typing import NDArray

from lightning_app.encoding import Unit

PARTS = 5  # of the training text; a word in one of them only is a new one there
READ = 5_000_000  # characters that words are taken from: more takes seconds a million


def kind(word: str) -> str:
    """Capitals, capitalised, or small; empty for scripts without capitals, which stay as they are:
    in many of them words are not told apart by spaces."""
    if word.lower() == word.upper():
        return ""
    if word.isupper():
        return "capitals"
    return "capitalised" if word[0].isupper() else "small"


class NewWords:
    """Replaces words in windows of a text: each kind's (see `kind`) as often as its words are new.

    How often is measured, on up to the first READ characters of the training text: the share of
    words, by kind, that stand in one fifth of it only. Which are replaced, and by what, is a pure
    function of seed, window and word.
    """

    def __init__(self, ids: NDArray[np.integer], alphabet: str, unit: Unit, seed: int) -> None:
        self.characters = np.array([ord(c) for c in alphabet], dtype="<u4")
        self.ids = {c: i for i, c in enumerate(alphabet)}
        letter = "[A-Za-z]" if unit == "byte" else r"[^\W\d_]"  # no part of a character of UTF-8
        self.word = re.compile(letter + "{3,}")
        self.seed = seed.to_bytes(8, "little", signed=True)
        n = min(len(ids), READ)
        parts = [
            Counter(self.word.findall(self.text(ids[i * n // PARTS : (i + 1) * n // PARTS])))
            for i in range(PARTS)
        ]
        in_parts = Counter(word for part in parts for word in part)
        words, new = Counter(), Counter()
        self.alike = defaultdict(list)  # words of a kind and length
        for word in sorted(in_parts):
            count = sum(part[word] for part in parts)
            words[kind(word)] += count
            new[kind(word)] += count if in_parts[word] == 1 else 0
            self.alike[kind(word), len(word)].append(word)
        self.share = {k: new[k] / words[k] for k in words if k}

    def text(self, ids: NDArray[np.integer]) -> str:
        return self.characters[ids].tobytes().decode("utf-32-le", "surrogatepass")

    def invent(self, word: str, key: bytes) -> str:
        """The word itself, or the beginning of another one and the end of a third, all of its kind
        and length."""
        chance, cut, first, second = unpack(
            "<4I", blake2b(word.encode(), digest_size=16, key=key).digest()
        )
        if chance >= self.share.get(kind(word), 0) * 2**32:
            return word
        alike = self.alike.get((kind(word), len(word)), [word])
        cut = 1 + cut % (len(word) - 1)
        return alike[first % len(alike)][:cut] + alike[second % len(alike)][cut:]

    def replace(self, windows: NDArray[np.int64], starts: NDArray[np.int64]) -> None:
        """Replace words in windows (B, T), in place. Pieces of one window have its start, and so
        the same words."""
        for window, start in zip(windows, starts, strict=True):
            key = self.seed + int(start).to_bytes(8, "little")
            invented: dict[str, str] = {}
            for match in self.word.finditer(self.text(window)):
                word = match[0]
                if word not in invented:
                    invented[word] = self.invent(word, key)
                if invented[word] is not word:
                    window[match.start() : match.end()] = [self.ids[c] for c in invented[word]]
