"""Laws of generation by PyTorch: with a KV cache it equals the reference without one."""

from itertools import islice

import numpy as np
import pytest
import torch

from lightning_app.generation.generate import generate_ids, sample_rng
from lightning_app.generation.sampling import draw
from lightning_app.generation.torch_engine import CachedLogits, generate_torch, uncached_logits
from tests.helpers import UNIGRAM, V, distribution_by_definition, options
from tests.helpers import writing_network as network


def run(gpt, prompts, steps, engine, o, seed=3):
    """Ids (steps, rows) that an engine leads to, and the logits of its calls."""
    logits = []

    def watched(gpt, histories):
        logits.append(engine(gpt, histories))
        return logits[-1].copy()

    rngs = [sample_rng(seed, i, 0) for i in range(len(prompts))]
    ids = islice(generate_torch(gpt, prompts, rngs, o, UNIGRAM, watched), steps)
    return np.stack(list(ids)), logits


PROMPTS = [[1], [2, 7, 1], [], [8, 2, 8, 1, 8], [4] * 9 + [10] * 14, list(range(8)), [3] * 7]


@pytest.mark.parametrize("prompts", [PROMPTS, PROMPTS[::-1], PROMPTS[:1], [[]]], ids=len)
@pytest.mark.parametrize("block_size", [1, 2, 3, 5, 8])
def test_cached_logits_and_choices_equal_the_references_at_every_step(block_size, prompts):
    gpt, o = network(block_size), options(sampling="prob", temperature=1.0)
    steps = 4 * block_size + 5
    ids, logits = run(gpt, prompts, steps, CachedLogits(), o)
    expected_ids, expected = run(gpt, prompts, steps, uncached_logits, o)
    assert len(np.unique(ids)) > 3
    assert len(logits) == len(expected) == steps - (prompts == [[]])
    for step, (a, b) in enumerate(zip(logits, expected, strict=True)):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4, err_msg=f"step {step}")
    assert np.array_equal(ids, expected_ids)


@pytest.mark.parametrize(
    "kind", [{"n_kv_head": 2}, {"tie_embeddings": True}, {"ngram_rows": (20, 50)}], ids=str
)
def test_the_engines_agree_for_every_kind_of_network(kind):
    gpt, o = network(6, **kind), options(top_k=3)
    ids, _ = run(gpt, PROMPTS, 20, CachedLogits(), o)
    assert np.array_equal(ids, run(gpt, PROMPTS, 20, uncached_logits, o)[0])


@torch.no_grad()
def test_the_reference_shows_the_network_exactly_the_window():
    block_size = 5
    gpt, text, window = network(block_size), [9, 4], []
    o = options(sampling="argmax")
    ids, logits = run(gpt, [text], 20, uncached_logits, o)
    text = text + ids[:, 0].tolist()
    for n, token in enumerate(text[:-1], start=1):
        window = [*window[3 if len(window) == block_size else 0 :], token]
        if n >= 2:
            expected = gpt(torch.tensor([window]))[0, -1].numpy()
            np.testing.assert_allclose(logits[n - 2][0], expected, rtol=1e-5, atol=1e-5)
            assert expected.argmax() == text[n]


def test_the_cached_engine_computes_each_character_once_while_the_window_grows():
    gpt, read = network(16), []
    gpt.embedding.register_forward_pre_hook(lambda _, args: read.append(args[0].numel()))
    run(gpt, [[1], [2]], 16, CachedLogits(), options())
    assert read == [2] * 16  # one character a row, sixteen times
    read.clear()
    run(gpt, [[1] * 10, [2] * 4], 5, CachedLogits(), options())
    assert read == [18, 2, 2, 2, 2, 2]  # both prompts but for their last characters, padded


def test_each_character_is_drawn_from_its_rows_logits_and_all_the_text_before_it():
    gpt = network(4)
    prompts, o = [[2, 2], [1, 5, 3, 0, 4, 9]], options(repetition_penalty=1.5, top_k=6)
    ids, logits = run(gpt, prompts, 25, CachedLogits(), o)
    for row, text in enumerate(prompts):
        numbers, text = sample_rng(3, row, 0), list(text)
        for step in range(25):  # beyond the window, too, the whole text counts as seen
            p = distribution_by_definition(
                logits[step][row].tolist(), [i in text for i in range(V)], o
            )
            text.append(int(draw(np.array([p]), np.array([numbers.random()]))[0]))
        assert text[len(prompts[row]) :] == ids[:, row].tolist()


def test_generation_keeps_no_gradients():
    gpt, modes = network(), []
    gpt.norm.register_forward_hook(lambda *args: modes.append(args[-1].requires_grad))
    run(gpt, [[1]], 3, CachedLogits(), options())
    assert modes == [False] * 3
    assert torch.is_grad_enabled()


def test_an_empty_prompt_continues_as_if_prompted_with_its_first_character():
    gpt, o = network(), options(sampling="prob")
    started, _ = run(gpt, [[]], 30, CachedLogits(), o)
    numbers = sample_rng(3, 0, 0)
    numbers.random()  # spent on the first character
    prompted = islice(generate_ids(gpt, [started[0].tolist()], [numbers], o), 29)
    assert started[1:].tolist() == np.stack(list(prompted)).tolist()
