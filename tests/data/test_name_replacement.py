"""Laws of renaming: what a name is, what it is replaced by, how often, and that nothing else is."""

import re

import numpy as np
import pytest

from lightning_app.data.name_replacement import NameReplacer, letter_case

COMMON = ["this", "that", "Then", "or", "there", "THE", "shall", "Shall"]


def part(i: int, rng: np.random.Generator) -> str:
    """A fifth of a text: common words, a speaker and a place of its own, words that are rare."""
    lines = []
    for _ in range(300):
        rare = "".join(rng.choice(list("kmpt"), 5)) + "z"
        words = [*rng.choice(COMMON, 6), rare, f"Place{'abcde'[i]}"]
        lines.append(f"{'ABCDE'[i] * 6}: {' '.join(rng.permutation(words))}; 12 %")
    return "\n".join(lines)[:9999] + "\n"


@pytest.fixture(scope="module")
def text() -> str:
    rng = np.random.default_rng(0)
    return "".join(part(i, rng) for i in range(5))


@pytest.fixture
def make(text):
    def make(
        of: str = text, rename: float = 0.7, seed: int = 1, unit: str = "char"
    ) -> tuple[NameReplacer, np.ndarray]:
        characters = of.encode().decode("latin-1") if unit == "byte" else of
        alphabet = "".join(sorted(set(characters)))
        ids = np.array([alphabet.index(c) for c in characters])
        return NameReplacer(ids, alphabet, unit, rename, seed), ids

    return make


def replaced(renamer: NameReplacer, window: np.ndarray, start: int = 0) -> str:
    window = window.astype(np.int64)[None]
    renamer.replace(window, np.array([start]))
    return renamer.tokenizer.decode(window[0])


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("HAMLET", "capitals"),
        ("Hamlet", "capitalised"),
        ("McDuff", "capitalised"),
        ("getName", "small"),
        ("étude", "small"),
        ("Ödipus", "capitalised"),
        ("哈姆雷特", "small"),
    ],
)
def test_kinds(word, expected):
    assert letter_case(word) == expected


def test_names_stand_often_in_one_fifth_and_in_no_other(make, text):
    renamer, _ = make()
    n = len(text)
    parts = [re.findall("[A-Za-z]{3,}", text[i * n // 5 : (i + 1) * n // 5]) for i in range(5)]
    expected = {w for p in parts for w in p if p.count(w) >= 5 and sum(w in q for q in parts) == 1}
    assert renamer.names == expected
    assert expected >= {"AAAAAA", "EEEEEE", "Placea", "Placee"}
    assert not expected & {*COMMON}


def test_a_name_is_replaced_by_the_beginning_and_end_of_two_words_of_its_kind(make):
    renamer, ids = make(rename=1.0)
    words = set(renamer.words(ids))
    invented = set()
    for start in range(0, len(ids) - 256, 256):
        window = ids[start : start + 256]
        before, after = renamer.tokenizer.decode(window), replaced(renamer, window, start)
        new = {}
        for old in re.finditer("[A-Za-z]+", before):
            name, now = old[0], after[old.start() : old.end()]
            if name not in renamer.names:
                assert now == name
                continue
            assert new.setdefault(name, now) == now  # the same throughout a window
            alike = [w for w in words if letter_case(w) == letter_case(name)]
            assert any(
                any(w.startswith(now[:i]) for w in alike)
                and any(w.endswith(now[i:]) for w in alike)
                for i in range(1, len(name))
            )
            invented.add(now)
        assert re.sub("[A-Za-z]", "", before) == re.sub("[A-Za-z]", "", after)
    assert len(invented - renamer.names) > 10


@pytest.mark.parametrize("rename", [0.2, 0.9])
def test_names_are_replaced_as_often_as_asked(make, rename):
    renamer, _ = make(rename=rename)
    renamer.at_least = {("capitals", n): ["BBBBBB"] for n in range(1, 7)}
    name = renamer.tokenizer.encode("AAAAAA")
    hits = [replaced(renamer, name, start) == "BBBBBB" for start in range(2000)]
    assert np.mean(hits) == pytest.approx(rename, abs=0.05)


def test_pieces_of_a_window_have_the_names_of_the_whole(make):
    renamer, ids = make()
    whole = replaced(renamer, ids[:240], start=9)
    at = whole.index(" ", 100) + 1
    assert whole == replaced(renamer, ids[:at], 9) + replaced(renamer, ids[at:240], 9)
    assert whole == replaced(make()[0], ids[:240], start=9)
    starts, seeds = range(10, 20), range(2, 12)
    assert {whole} < {whole, *(replaced(renamer, ids[:240], start=i) for i in starts)}
    assert {whole} < {whole, *(replaced(make(seed=i)[0], ids[:240], start=9) for i in seeds)}


def test_bytes_stay_utf_8(make):
    rng = np.random.default_rng(0)
    words = [["".join(rng.choice(list("abcdéèüß"), 6)) for _ in range(9)] for _ in range(5)]
    text = "".join(" ".join(rng.choice(some, 300)) + " " for some in words)
    renamer, ids = make(text, rename=1.0, unit="byte")
    after = replaced(renamer, ids).encode("latin-1").decode("utf-8")
    assert after != text
    assert re.sub("[a-z]", "", after) == re.sub("[a-z]", "", text)


@pytest.mark.parametrize("text", ["a", "12 34 56", "ABC abc Abc", "ab cd"])
def test_texts_with_hardly_a_word_stay_as_they_are(make, text):
    renamer, ids = make(text, rename=1.0)
    assert replaced(renamer, ids) == text
