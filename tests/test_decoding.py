"""Laws of the compiled engine; the reference is the network itself, uncached."""

from itertools import islice

import numpy as np
import pytest
import torch
from test_generation import UNIGRAM, V, network, options

from lightning_app.decoding import Packed, next_logits
from lightning_app.generation import compiled_row, generate, stream, uncached_logits
from lightning_app.gpt import GPT, KVCache

KINDS = {
    "plain": {"n_head": 4, "n_kv_head": 4, "n_embd": 32},
    "grouped": {"n_head": 4, "n_kv_head": 2, "n_embd": 32},
    "one_kv_head": {"n_head": 3, "n_kv_head": 1, "n_embd": 24},
    "tied": {"tie_embeddings": True},
    "odd_sizes": {"n_layer": 3, "n_head": 1, "n_kv_head": 1, "n_embd": 10, "mlp_size": 7},
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def read(gpt: GPT, ids: torch.Tensor, weights: str, threads: int = 1) -> torch.Tensor:
    """Logits after each of ids (T,), one character at a time."""
    cache, packed = KVCache(gpt, 1), Packed.of(gpt, weights).arrays
    keys, values = cache.keys[:, 0].numpy(), cache.values[:, 0].numpy()
    rows = []
    for position, token in enumerate(ids.tolist()):
        logits = np.empty(V, dtype=np.float32)
        next_logits(token, position, packed, keys, values, logits, threads)
        rows.append(torch.from_numpy(logits))
    return torch.stack(rows)


def text(n: int) -> torch.Tensor:
    return torch.randint(V, (n,), generator=torch.Generator().manual_seed(5))


@every_kind
@pytest.mark.parametrize("threads", [1, 2])
@torch.no_grad()
def test_logits_are_the_networks_at_every_position(kind, threads):
    gpt = network(block_size=20, **KINDS[kind])
    ids = text(20)
    expected = gpt(ids[None])[0]
    torch.testing.assert_close(read(gpt, ids, "float32", threads), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_int8_weights_move_logits_by_rounding_only():
    gpt = network(block_size=20)
    ids = text(20)
    expected = gpt(ids[None])[0]
    error = (read(gpt, ids, "int8") - expected).norm() / expected.norm()
    assert 1e-4 < error < 0.05


@pytest.mark.parametrize("block_size", [1, 2, 3, 5, 8, 40])
@pytest.mark.parametrize("prompt", [[1], [3, 1, 4, 1, 5, 9, 2, 6, 5]], ids=len)
def test_greedy_text_is_the_references_over_many_windows(block_size, prompt):
    gpt = network(block_size)
    o = options(sampling="argmax")
    reference = generate(gpt, [prompt], [stream(1, 0, 0)], o, next_logits=uncached_logits)
    expected = [int(ids[0]) for ids in islice(reference, 60)]
    assert list(islice(compiled_row(gpt, prompt, stream(1, 0, 0), o), 60)) == expected


@pytest.mark.parametrize(
    "given",
    [
        {"sampling": "prob", "temperature": 1.3},
        {"top_k": 3},
        {"top_p": 0.7, "repetition_penalty": 1.4},
        {"min_p": 0.2, "temperature": 0.6},
    ],
    ids=str,
)
@pytest.mark.parametrize("prompt", [[], [2, 7]], ids=len)
def test_sampled_text_is_the_references_however_characters_are_chosen(given, prompt):
    gpt, o = network(block_size=12), options(**given)

    def written(next_logits) -> list[int]:
        steps = generate(gpt, [prompt], [stream(4, 0, 0)], o, UNIGRAM, next_logits)
        return [int(ids[0]) for ids in islice(steps, 80)]

    assert written(None) == written(uncached_logits)


def test_pytorchs_threads_are_left_alone():
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        list(islice(compiled_row(network(), [1, 2], stream(0, 0, 0), options()), 20))
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


def test_the_weights_themselves_are_left_alone():
    gpt = network()
    before = {name: w.clone() for name, w in gpt.state_dict().items()}
    list(islice(compiled_row(gpt, [1, 2], stream(0, 0, 0), options(), "int8"), 20))
    assert all(torch.equal(w, before[name]) for name, w in gpt.state_dict().items())
