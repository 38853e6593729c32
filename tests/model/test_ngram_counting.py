"""Laws of counting n-grams: the hash, and the parts of a text."""

import math

import numpy as np
import pytest
import torch

from lightning_app.model import ngram_counting
from lightning_app.model.ngram_counting import PARTS, count_text, counted_ranges, ngram_hashes

# For engines in other languages: the hashes of the last 2, 3 and 4 codes at the end of each text.
TEST_VECTOR = {
    (1, 2, 3, 4): [432672342, 2151299066, 1298972373],
    (0, 0, 0, 98): [2458570891, 2556837939, 1485202456],
    (0x10FFFF, 101, 33, 0x5929): [4273396995, 178491501, 2848336528],
}


def hash_of(codes: list[int]) -> int:
    """The hash by its definition, of codes from the oldest to the newest."""
    h = 0
    for code in reversed(codes):
        h = (h ^ code) * 0x735A2D97 % 2**32
        h ^= h >> 15
    return h


@pytest.mark.parametrize(("codes", "hashes"), TEST_VECTOR.items())
def test_the_hash_is_that_of_the_test_vector(codes, hashes):
    assert [hash_of(list(codes[-n:])) for n in (2, 3, 4)] == hashes
    assert ngram_hashes(torch.tensor([codes]), (2, 3, 4)).flatten().tolist() == hashes


def test_every_position_has_the_hash_of_the_codes_up_to_it():
    codes = torch.randint(1, 2**20, (3, 12), generator=torch.Generator().manual_seed(0))
    codes[:, :4] = 0  # before the text
    hashes = ngram_hashes(codes, (2, 3, 5))
    for table, n in enumerate((2, 3, 5)):
        for row in range(3):
            expected = [hash_of(codes[row, t - n + 1 : t + 1].tolist()) for t in range(4, 12)]
            assert hashes[row, :, table].tolist() == expected


def test_ngrams_are_spread_evenly_over_the_rows():
    a, b = torch.meshgrid(torch.arange(1, 129), torch.arange(1, 129), indexing="ij")
    codes = torch.stack((a.flatten(), b.flatten()), dim=1)  # all 16,384 pairs of 128 characters
    hashes = ngram_hashes(codes, (2,))
    counts = torch.bincount((hashes % 2048).flatten(), minlength=2048)
    assert counts.float().var() < 2 * 8  # 8 in the mean; a random function has a variance of 8


SIZES, ROWS = (2, 3, 5), (5, 70, 200)
TEXT, CODES = np.random.default_rng(0).integers(11, size=300), torch.arange(1, 12)


@pytest.mark.parametrize("n", [1, 2, 7, 16, 17, 300])
def test_every_character_but_the_last_is_counted_in_its_part(n):
    ranges = counted_ranges(n)
    assert [i for first, last in ranges for i in range(first, last)] == list(range(n - 1))
    for k, (first, last) in enumerate(ranges):
        assert all(i * PARTS // n == k for i in range(first, last))


def test_of_a_long_text_the_beginning_of_each_part_is_counted(monkeypatch):
    monkeypatch.setattr(ngram_counting, "MAX_COUNTED", 5 * PARTS)
    begins = [math.ceil(len(TEXT) * k / PARTS) for k in range(PARTS)]
    wanted = [begin + i for begin in begins for i in range(5)]
    assert [i for first, last in counted_ranges(len(TEXT)) for i in range(first, last)] == wanted
    tables = count_text(TEXT, CODES, SIZES, ROWS)
    assert int(tables.counts.sum()) == sum(i + 1 >= n for n in SIZES for i in wanted)
