"""Laws of passages that occur in two texts; the reference is a plain search."""

import random

import numpy as np
import pytest

from lightning_app.evaluation import overlap
from lightning_app.evaluation.overlap import (
    Passage,
    WindowIndex,
    covered_characters,
    find_windows,
    passages,
    window_hashes,
)


def ids(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)


def noise(n: int, seed: int, letters: str = "ab") -> str:
    return "".join(random.Random(seed).choices(letters, k=n))


@pytest.mark.parametrize("length", [1, 2, 3, 5, 8, 13, 100])
def test_hashes_are_equal_exactly_if_windows_are(length):
    text = noise(600, 1) + "a" * 150 + noise(300, 1) + "ab" * 90
    hashes = window_hashes(ids(text), length)
    windows = [text[i : i + length] for i in range(len(text) - length + 1)]
    assert len(hashes) == len(windows)
    assert len(set(hashes.tolist())) == len(set(windows))
    assert len(set(zip(hashes.tolist(), windows, strict=True))) == len(set(windows))


def test_hashes_do_not_depend_on_found_a_chunk_begins():
    text = ids(noise(500, 3, "abcdefgh"))
    assert (window_hashes(text, 20)[100:] == window_hashes(text[100:], 20)).all()


@pytest.mark.parametrize("chunk", [7, 64, 1 << 20])
@pytest.mark.parametrize("length", [1, 4, 9])
def test_every_window_is_found_at_its_first_position_in_the_other_text(monkeypatch, chunk, length):
    monkeypatch.setattr(overlap, "CHUNK_SIZE", chunk)
    text, other = noise(200, 1), noise(300, 2)
    found = WindowIndex(ids(text), length).find_in(ids(other))
    assert found.tolist() == [
        other.find(text[i : i + length]) for i in range(len(text) - length + 1)
    ]


def test_several_texts_are_found_as_each_one_alone(monkeypatch):
    monkeypatch.setattr(overlap, "CHUNK_SIZE", 50)
    texts, other = [noise(200, 1), "a", noise(90, 4), noise(200, 1)], ids(noise(300, 2))
    indexes = [WindowIndex(ids(text), 5) for text in texts]
    for index, found in zip(indexes, find_windows(indexes, other), strict=True):
        assert found.tolist() == index.find_in(other).tolist()


@pytest.mark.parametrize(("text", "other"), [("", "abc"), ("abc", ""), ("ab", "abcabc")])
def test_texts_shorter_than_a_window_have_nothing_in_common(text, other):
    found = WindowIndex(ids(text), 3).find_in(ids(other))
    assert (found < 0).all()
    assert passages(found, 3) == []


def test_planted_passages_are_found_with_their_position_and_length():
    letters = "abcdefghijklmnopqrstuvwxyz"
    other = noise(5000, 1, letters)
    text = noise(300, 2, letters) + other[1000:1250] + noise(200, 3, letters) + other[40:140]
    found = WindowIndex(ids(text), 100).find_in(ids(other))
    assert passages(found, 100) == [Passage(300, 550, 1000), Passage(750, 850, 40)]
    assert covered_characters(found, 100, len(text)) == 350
    shorter = WindowIndex(ids(text[:399]), 100).find_in(ids(other))  # 99 characters are too few
    assert covered_characters(shorter, 100, 399) == 0
