"""Laws of the KV cache, and of the window that the network sees."""

import pytest
import torch

from lightning_app.model.kv_cache import context_length
from tests.helpers import GPT_KINDS, assert_close, filled_network, random_ids

KINDS = GPT_KINDS | {"ngrams": {"ngram_rows": (20, 0, 50, 90)}}
every_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.mark.parametrize("block_size", [1, 2, 3, 4, 5, 8, 13])
def test_the_window_grows_by_one_until_it_is_full_and_then_loses_its_older_half(block_size):
    window: list[int] = []
    for n in range(1, 6 * block_size + 1):
        if len(window) == block_size:
            del window[: block_size - block_size // 2]
        window.append(n)
        assert context_length(n, block_size) == len(window)
        assert len(window) <= block_size
        assert n <= block_size or len(window) >= block_size / 2


@every_kind
@pytest.mark.parametrize("pieces", [[1] * 12, [12], [5, 1, 1, 3, 2]])
@torch.no_grad()
def test_cached_logits_equal_uncached_ones_however_the_text_is_cut(kind, pieces):
    gpt = filled_network(**KINDS[kind])
    idx = random_ids(gpt, 2, sum(pieces))
    cache = gpt.kv_cache(2)
    parts = [gpt(piece, cache) for piece in idx.split(pieces, dim=1)]
    assert_close(torch.cat(parts, dim=1), gpt(idx))
    assert cache.length.tolist() == [12, 12]


@every_kind
@torch.no_grad()
def test_cached_logits_equal_uncached_ones_at_every_step_in_a_batch_of_different_lengths(kind):
    gpt = filled_network(**KINDS[kind])
    lengths, size = torch.tensor([0, 2, 6]), gpt.config.block_size
    idx = random_ids(gpt, 3, size)
    cache = gpt.kv_cache(3)
    padded = idx[:, :6].masked_fill(torch.arange(6) >= lengths[:, None], 0)
    gpt(padded, cache)
    cache.length.copy_(lengths)
    for step in range(size - 6):
        at = lengths + step
        logits = gpt(idx[torch.arange(3), at][:, None], cache)[:, 0]
        for row in range(3):
            assert_close(logits[row], gpt(idx[row : row + 1, : at[row] + 1])[0, -1])
