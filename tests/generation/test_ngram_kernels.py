"""Laws of the compiled n-gram counts: they find what the network itself looks up."""

import numpy as np
import pytest
import torch

from lightning_app.generation.cpu_engine import pack_weights
from lightning_app.generation.ngram_kernels import empty_shares, find_shares, remember
from tests.helpers import assert_close, filled_network


@pytest.mark.parametrize("symbols", [1, 2, 7])  # with few, a window repeats itself
def test_every_position_has_the_shares_that_the_network_looks_up(symbols):
    gpt = filled_network(ngram_rows=(20, 50, 0, 90))
    w, size, tables = pack_weights(gpt), gpt.config.block_size, len(gpt.ngrams.rows)
    window = np.random.default_rng(0).integers(symbols, size=size)
    expected = gpt.ngrams.look_up(torch.from_numpy(window)[None])[0]  # (T, 2 N, V)
    ids, hashes = np.zeros(size, dtype=np.int64), np.zeros((tables, size), dtype=np.uint32)
    sources, characters, shares = (array[0] for array in empty_shares(1, w, size))
    for position, token in enumerate(window):
        remember(token, position, w, ids, hashes)
        found = find_shares(position, w, ids, hashes, sources, characters, shares)
        dense = torch.zeros_like(expected[position])
        dense[sources[:found], characters[:found]] = torch.from_numpy(shares[:found])
        assert_close(dense, expected[position])
