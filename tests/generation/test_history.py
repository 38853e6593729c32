"""Laws of the rows' texts so far."""

import numpy as np
import pytest

from lightning_app.generation.history import History, characters_seen, first_ids
from lightning_app.model.kv_cache import context_length
from tests.helpers import UNIGRAM, V


@pytest.mark.parametrize("block_size", [1, 2, 3, 8])
@pytest.mark.parametrize("step", [1, 3])
def test_the_window_is_the_end_of_the_text_as_long_as_the_rule_says(block_size, step):
    text = list(range(40))
    history = History(text[:2], block_size)
    for n in range(2, len(text) - step, step):
        assert history.window() == text[:n][-context_length(n, block_size) :]
        history.extend(text[n : n + step])
    assert History([], block_size).window() == []


def test_a_character_counts_as_seen_in_its_own_row_only():
    seen = characters_seen([[1, 1, 3], [], [0]], 5)
    assert [np.flatnonzero(row).tolist() for row in seen] == [[1, 3], [], [0]]


def test_first_characters_follow_the_unigram_distribution_or_else_are_even():
    uniform = (np.arange(1000) + 0.5) / 1000
    counts = np.bincount(first_ids(UNIGRAM, V, uniform), minlength=V)
    np.testing.assert_allclose(counts / 1000, UNIGRAM, atol=0.001)
    counts = np.bincount(first_ids(None, V, uniform), minlength=V)
    np.testing.assert_allclose(counts / 1000, 1 / V, atol=0.001)
