"""Laws of invented words: what is replaced, by what, how often, and that nothing else is."""

import re
from collections import defaultdict

import numpy as np
import pytest

from lightning_app.new_words import NewWords, kind


def sentence(rng: np.random.Generator, part: int) -> str:
    """Small words that all parts have, one in eight that no other has, a name of the part's own."""
    own = "".join(rng.choice(list("kmpt"), 4)) + "zzzzz"[: part + 1]
    words = [*rng.choice(["this", "that", "then", "or", "there"], 7), own]
    return f"{'ABCDE'[part] * 6}: {' '.join(rng.permutation(words))}; 12 %\n"


@pytest.fixture(scope="module")
def text() -> str:
    """Five parts of exactly one length, in which the names of the speakers differ."""
    rng = np.random.default_rng(0)
    parts = ["".join(sentence(rng, part) for _ in range(300)) for part in range(5)]
    length = min(map(len, parts))
    return "".join(part[: length - 1] + "\n" for part in parts)


@pytest.fixture
def make(text):
    def make(of: str = text, seed: int = 1, unit: str = "char") -> tuple[NewWords, np.ndarray]:
        characters = of.encode().decode("latin-1") if unit == "byte" else of
        alphabet = "".join(sorted(set(characters)))
        ids = np.array([alphabet.index(c) for c in characters])
        return NewWords(ids, alphabet, unit, seed), ids

    return make


def replaced(words: NewWords, window: np.ndarray, start: int = 0) -> str:
    window = window.astype(np.int64)[None]
    words.replace(window, np.array([start]))
    return words.text(window[0])


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("HAMLET", "capitals"),
        ("Hamlet", "capitalised"),
        ("McDuff", "capitalised"),
        ("getName", "small"),
        ("étude", "small"),
        ("Ödipus", "capitalised"),
        ("哈姆雷特", ""),
        ("שלום", ""),
    ],
)
def test_kinds(word, expected):
    assert kind(word) == expected


def test_how_often_is_the_share_of_words_of_a_kind_that_one_fifth_alone_has(make, text):
    words, _ = make()
    n = len(text)
    parts = [re.findall("[A-Za-z]{3,}", text[i * n // 5 : (i + 1) * n // 5]) for i in range(5)]
    of_kind = defaultdict(list)
    for i, part in enumerate(parts):
        others = {word for j, other in enumerate(parts) if j != i for word in other}
        for word in part:
            of_kind[kind(word)].append(word not in others)
    assert words.share == pytest.approx({k: np.mean(new) for k, new in of_kind.items()})
    assert words.share["capitals"] == 1
    assert 0.1 < words.share["small"] < 0.2


def test_as_many_are_replaced_by_words_of_their_kind_and_length(make):
    words, ids = make()
    words.share = {"small": 0.3}
    changed = {}
    for start in range(0, len(ids) - 256, 256):
        window = ids[start : start + 256]
        before, after = words.text(window), replaced(words, window, start)
        assert re.sub("[a-z]{3,}", "", before) == re.sub("[a-z]{3,}", "", after)
        old, new = (re.findall("[a-z]{3,}", x) for x in (before, after))
        for a, b in zip(old, new, strict=True):
            assert changed.setdefault((start, a), b) == b  # the same throughout a window
            alike = words.alike.get(("small", len(a)), [])  # none for some at the edge
            crossed = {x[:i] + y[i:] for x in alike for y in alike for i in range(1, len(b))}
            assert b == a or b in crossed
    long = [(a, b) for (_, a), b in changed.items() if len(a) > 6]  # few invent themselves
    assert 0.2 < np.mean([a != b for a, b in long]) < 0.35


def test_pieces_of_a_window_have_the_words_of_the_whole(make):
    words, ids = make()
    whole = replaced(words, ids[:240], start=9)
    at = whole.index(" ", 100) + 1
    assert whole == replaced(words, ids[:at], 9) + replaced(words, ids[at:240], 9)
    assert whole != replaced(words, ids[:240], start=10)
    assert whole != replaced(make(seed=2)[0], ids[:240], start=9)
    assert whole == replaced(make()[0], ids[:240], start=9)


def test_scripts_without_capitals_stay_as_they_are(make):
    text = "".join(chr(0x4E00 + i % 97) + "，。"[i % 7 :][:1] for i in range(3000))
    words, ids = make(text)
    assert words.share == {}
    assert replaced(words, ids) == text


def test_bytes_stay_utf_8(make):
    rng = np.random.default_rng(0)
    letters = list("abcdéèüß")
    text = " ".join("".join(rng.choice(letters, rng.integers(3, 9))) for _ in range(3000))
    words, ids = make(text, unit="byte")
    assert words.share["small"] > 0.2
    after = replaced(words, ids).encode("latin-1").decode("utf-8")
    assert after != text
    assert re.sub("[a-z]", "", after) == re.sub("[a-z]", "", text)


@pytest.mark.parametrize("text", ["a", "12 34 56", "ABC abc Abc", "ab cd"])
def test_texts_with_hardly_a_word(make, text):
    words, ids = make(text)
    assert len(replaced(words, ids)) == len(text)
