"""Laws of name replacement: what a name is, its replacement, how often, and that nothing else
changes."""

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
        of: str = text, probability: float = 0.7, seed: int = 1, unit: str = "char"
    ) -> tuple[NameReplacer, np.ndarray]:
        characters = of.encode().decode("latin-1") if unit == "byte" else of
        alphabet = "".join(sorted(set(characters)))
        ids = np.array([alphabet.index(c) for c in characters])
        return NameReplacer(ids, alphabet, unit, probability, seed), ids

    return make


def replaced(replacer: NameReplacer, window: np.ndarray, start: int = 0) -> str:
    window = window.astype(np.int64)[None]
    replacer.replace(window, np.array([start]))
    return replacer.tokenizer.decode(window[0])


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("HAMLET", "upper"),
        ("Hamlet", "capitalised"),
        ("McDuff", "capitalised"),
        ("getName", "lower"),
        ("étude", "lower"),
        ("Ödipus", "capitalised"),
        ("哈姆雷特", "lower"),
    ],
)
def test_letter_case(word, expected):
    assert letter_case(word) == expected


def test_names_are_frequent_in_one_fifth_and_absent_from_the_others(make, text):
    replacer, _ = make()
    n = len(text)
    parts = [re.findall("[A-Za-z]{3,}", text[i * n // 5 : (i + 1) * n // 5]) for i in range(5)]
    expected = {w for p in parts for w in p if p.count(w) >= 5 and sum(w in q for q in parts) == 1}
    assert replacer.names == expected
    assert expected >= {"AAAAAA", "EEEEEE", "Placea", "Placee"}
    assert not expected & {*COMMON}


def test_a_replacement_is_the_beginning_and_end_of_two_words_of_the_same_letter_case(make):
    replacer, ids = make(probability=1.0)
    words = set(replacer.words(ids))
    new_names = set()
    for start in range(0, len(ids) - 256, 256):
        window = ids[start : start + 256]
        before, after = replacer.tokenizer.decode(window), replaced(replacer, window, start)
        new = {}
        for old in re.finditer("[A-Za-z]+", before):
            name, now = old[0], after[old.start() : old.end()]
            if name not in replacer.names:
                assert now == name
                continue
            assert new.setdefault(name, now) == now  # the same throughout a window
            alike = [w for w in words if letter_case(w) == letter_case(name)]
            assert any(
                any(w.startswith(now[:i]) for w in alike)
                and any(w.endswith(now[i:]) for w in alike)
                for i in range(1, len(name))
            )
            new_names.add(now)
        assert re.sub("[A-Za-z]", "", before) == re.sub("[A-Za-z]", "", after)
    assert len(new_names - replacer.names) > 10


@pytest.mark.parametrize("probability", [0.2, 0.9])
def test_names_are_replaced_with_the_given_probability(make, probability):
    replacer, _ = make(probability=probability)
    replacer.candidates = {("upper", n): ["BBBBBB"] for n in range(1, 7)}
    name = replacer.tokenizer.encode("AAAAAA")
    hits = [replaced(replacer, name, start) == "BBBBBB" for start in range(2000)]
    assert np.mean(hits) == pytest.approx(probability, abs=0.05)


def test_parts_of_a_window_have_the_replacements_of_the_whole_window(make):
    replacer, ids = make()
    entire = replaced(replacer, ids[:240], start=9)
    at = entire.index(" ", 100) + 1
    assert entire == replaced(replacer, ids[:at], 9) + replaced(replacer, ids[at:240], 9)
    assert entire == replaced(make()[0], ids[:240], start=9)
    starts, seeds = range(10, 20), range(2, 12)
    assert {entire} < {entire, *(replaced(replacer, ids[:240], start=i) for i in starts)}
    assert {entire} < {entire, *(replaced(make(seed=i)[0], ids[:240], start=9) for i in seeds)}


def test_bytes_remain_valid_utf_8(make):
    rng = np.random.default_rng(0)
    words = [["".join(rng.choice(list("abcdéèüß"), 6)) for _ in range(9)] for _ in range(5)]
    text = "".join(" ".join(rng.choice(some, 300)) + " " for some in words)
    replacer, ids = make(text, probability=1.0, unit="byte")
    after = replaced(replacer, ids).encode("latin-1").decode("utf-8")
    assert after != text
    assert re.sub("[a-z]", "", after) == re.sub("[a-z]", "", text)


@pytest.mark.parametrize("text", ["a", "12 34 56", "ABC abc Abc", "ab cd"])
def test_texts_without_names_do_not_change(make, text):
    replacer, ids = make(text, probability=1.0)
    assert replaced(replacer, ids) == text


def test_the_replacements_of_a_seed_never_change(make):
    """A resumed run has to train on the windows of the run that it continues."""
    speakers = ("ROMEO", "HAMLET", "TIMON", "PROSPERO", "PORTIA")
    replacer, ids = make("".join(f"{name}: good night, sweet friend. " * 40 for name in speakers))
    after = [replaced(replacer, ids[:13], start) for start in range(6)]
    assert "".join(text[:5] + " " for text in after) == "PRORO PORRO PRTIA ROMEO PRMEO TIMRO "
