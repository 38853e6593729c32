"""Laws of writing: the distribution, the draw, the two engines, the texts."""

import math
from itertools import islice

import numpy as np
import pytest
import torch

from lightning_app.errors import UserError
from lightning_app.generation import generate as generate_module
from lightning_app.generation.generate import generate_ids, generate_text, sample_rng
from lightning_app.generation.sampling import GenerateOptions
from lightning_app.generation.sampling import draw
from lightning_app.generation.torch_engine import (
    CachedLogits,
    distribution,
    generate_torch,
    uncached_logits,
)
from lightning_app.model.kv_cache import context_length
from tests.helpers import TOKENIZER, UNIGRAM, V, options
from tests.helpers import writing_network as network

# Options.


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"top_k": 3, "top_p": 0.5}, "--top_k and --top_p"),
        ({"top_p": 0.5, "min_p": 0.1}, "--top_p and --min_p"),
        ({"top_k": 3, "top_p": 0.5, "min_p": 0.1}, "--top_k and --top_p and --min_p"),
        ({"sampling": "top_k", "top_p": 0.5}, "--sampling top_k contradicts --top_p"),
        ({"sampling": "min_p", "top_k": 3}, "--sampling min_p contradicts --top_k"),
        ({"sampling": "top_p", "min_p": 0.0}, "--sampling top_p contradicts --min_p"),
        ({"sampling": "prob", "top_k": 3}, "--sampling prob contradicts --top_k"),
        ({"sampling": "argmax", "top_p": 0.5}, "--sampling argmax contradicts --top_p"),
        ({"sampling": "top5", "top_k": 4}, "--sampling top5 contradicts --top_k 4"),
        ({"sampling": "top5", "min_p": 0.1}, "contradicts --min_p"),
        ({"top_p": 0.0}, "--top_p is 0"),
        ({"stop": ""}, "--stop is empty"),
    ],
    ids=str,
)
def test_options_that_contradict_each_other_are_refused_by_name(given, named):
    with pytest.raises(UserError, match=named):
        options(**given)


@pytest.mark.parametrize(
    ("given", "same"),
    [
        ({}, {"sampling": "top_p", "top_p": 0.9}),
        ({"sampling": "top_p"}, {"sampling": "top_p", "top_p": 0.9}),
        ({"sampling": "top_k"}, {"sampling": "top_k", "top_k": 5}),
        ({"sampling": "top5"}, {"sampling": "top_k", "top_k": 5}),
        ({"sampling": "top5", "top_k": 5}, {"sampling": "top_k", "top_k": 5}),
        ({"sampling": "min_p"}, {"sampling": "min_p", "min_p": 0.05}),
        ({"sampling": "min_p", "min_p": 0.0}, {"sampling": "min_p", "min_p": 0.0}),
        ({"top_k": 3}, {"sampling": "top_k", "top_k": 3}),
        ({"top_p": 0.5}, {"sampling": "top_p", "top_p": 0.5}),
        ({"min_p": 0.1}, {"sampling": "min_p", "min_p": 0.1}),
    ],
    ids=str,
)
def test_unset_options_are_filled_in_from_what_is_named(given, same):
    assert options(**given) == GenerateOptions(**same)


@pytest.mark.parametrize(
    "given",
    [
        *({"sampling": s} for s in ("argmax", "prob", "top_k", "top_p", "min_p", "top5")),
        {"temperature": 0.0},
        {"temperature": 0.0, "top_k": 3},
        {"temperature": 0.0, "sampling": "top5"},
        {"min_p": 0.0},
    ],
    ids=str,
)
def test_resolved_options_are_resolved_to_themselves(given):
    # `predict` resolves, and `generate_text` again: --temperature 0 then contradicted its own default
    assert options(**given).resolve() == options(**given)


# The distribution.


def by_hand(logits: list[float], seen: list[bool], o: GenerateOptions) -> list[float]:
    """The distribution of one row, from the definitions."""
    r = o.repetition_penalty
    logits = [(x / r if x > 0 else x * r) if s else x for x, s in zip(logits, seen, strict=True)]
    ranked = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    if o.sampling == "argmax" or o.temperature == 0:
        return [float(i == ranked[0]) for i in range(len(logits))]
    weights = [math.exp(x / o.temperature) for x in logits]
    p = [w / math.fsum(weights) for w in weights]
    if o.sampling == "top_k":
        kept = ranked[: o.top_k]
    elif o.sampling == "top_p":
        kept = []
        while ranked and math.fsum(p[i] for i in kept) < o.top_p:
            kept.append(ranked.pop(0))
    elif o.sampling == "min_p":
        kept = [i for i in ranked if p[i] >= o.min_p * max(p)]
    else:
        kept = ranked
    total = math.fsum(p[i] for i in kept)
    return [p[i] / total if i in kept else 0.0 for i in range(len(p))]


SAMPLINGS = [
    {"sampling": "argmax"},
    {"sampling": "prob"},
    *({"top_k": k} for k in (1, 2, 5, V, V + 7)),
    *({"top_p": p} for p in (1e-6, 0.3, 0.77, 0.95, 1.0)),
    *({"min_p": p} for p in (0.0, 0.013, 0.21, 1.0)),
]


@pytest.mark.parametrize("penalty", [1.0, 1.3, 0.7])
@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0, 1.7])
@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_the_distribution_is_that_of_the_definitions(sampling, temperature, penalty):
    o = options(**sampling, temperature=temperature, repetition_penalty=penalty)
    random = np.random.default_rng(0)
    logits = random.normal(scale=2, size=(20, V)).astype(np.float32)
    logits[::2] = np.round(logits[::2])  # ties
    seen = random.random((20, V)) < 0.3
    p = distribution(logits, seen, o)
    expected = [by_hand(x, s, o) for x, s in zip(logits.tolist(), seen.tolist(), strict=True)]
    np.testing.assert_allclose(p, expected, rtol=1e-12, atol=0)
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-12)


def test_ties_go_to_the_lower_id():
    logits = np.array([[0.0, 2, 1, 2, 2, 1]])
    seen = np.zeros_like(logits, dtype=bool)
    support = [
        np.flatnonzero(distribution(logits, seen, options(**given))[0]).tolist()
        for given in ({"sampling": "argmax"}, {"top_k": 2}, {"top_k": 4}, {"top_p": 0.3})
    ]
    assert support == [[1], [1, 3], [1, 2, 3, 4], [1, 3]]


def test_the_distribution_keeps_its_argument_and_survives_extreme_logits():
    logits = np.array([[1e4, -1e4, 0, 9999]], dtype=np.float32)
    before = logits.copy()
    seen = np.array([[True, True, False, False]])
    for sampling in SAMPLINGS:
        p = distribution(logits, seen, options(**sampling, repetition_penalty=1.1))
        assert np.isfinite(p).all()
        assert p[0, 3] == 1
    assert np.array_equal(logits, before)


# The draw.


def test_a_draw_is_the_inverse_of_the_cdf():
    random = np.random.default_rng(1)
    for _ in range(50):
        counts = random.multinomial(64, random.dirichlet([0.3] * V))
        u = np.arange(64) / 64  # every boundary of the CDF among them, and exact in binary
        p = np.broadcast_to(counts / 64, (64, V))
        assert draw(p, u).tolist() == [i for i, n in enumerate(counts) for _ in range(n)]


def test_a_draw_takes_each_row_for_itself():
    p = np.array([[1.0, 0, 0], [0, 0, 1.0], [0.5, 0.5, 0], [0.5, 0.5, 0]])
    assert draw(p, np.array([0.9, 0.0, 0.4, 0.6])).tolist() == [0, 2, 0, 1]


@pytest.mark.parametrize("u", [0.0, 5e-324, 0.1, 0.7, 0.9999, np.nextafter(1, 0)])
def test_an_impossible_character_is_never_drawn(u):
    random = np.random.default_rng(2)
    p = random.random((500, V)) * (random.random((500, V)) < 0.4)
    p = p[p.any(axis=1)]
    p /= p.sum(axis=1, keepdims=True)  # sums to 1 only up to rounding
    ids = draw(p, np.full(len(p), u))
    assert (p[np.arange(len(p)), ids] > 0).all()
    if u == 0:
        assert ids.tolist() == (p > 0).argmax(axis=1).tolist()
    if u > 0.99999:
        assert ids.tolist() == (V - 1 - (p[:, ::-1] > 0).argmax(axis=1)).tolist()


# The window.


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


# The engines.


def run(gpt, prompts, steps, engine, o, seed=3):
    """Ids (steps, rows) that an engine leads to, and the logits of its calls."""
    logits = []

    def watched(gpt, histories):
        logits.append(engine(gpt, histories))
        return logits[-1].copy()

    streams = [sample_rng(seed, i, 0) for i in range(len(prompts))]
    ids = islice(generate_torch(gpt, prompts, streams, o, UNIGRAM, watched), steps)
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


@pytest.mark.parametrize("kind", [{"n_kv_head": 2}, {"tie_embeddings": True}], ids=str)
def test_the_engines_agree_for_every_kind_of_network(kind):
    gpt, o = network(6, **kind), options(top_k=3)
    ids, _ = run(gpt, PROMPTS, 20, CachedLogits(), o)
    assert np.array_equal(ids, run(gpt, PROMPTS, 20, uncached_logits, o)[0])


@torch.no_grad()
def test_the_reference_shows_the_network_the_end_of_the_text_from_where_the_window_begins():
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


def test_the_cached_engine_reads_each_character_once_between_two_windows():
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
            p = by_hand(logits[step][row].tolist(), [i in text for i in range(V)], o)
            text.append(int(draw(np.array([p]), np.array([numbers.random()]))[0]))
        assert text[len(prompts[row]) :] == ids[:, row].tolist()


def test_no_gradients_are_kept_while_writing():
    gpt, modes = network(), []
    gpt.norm.register_forward_hook(lambda *args: modes.append(args[-1].requires_grad))
    run(gpt, [[1]], 3, CachedLogits(), options())
    assert modes == [False] * 3
    assert torch.is_grad_enabled()


# Texts.


def written(prompts=("cab",), seed=7, num_samples=1, gpt=None, **given) -> list[str]:
    o = GenerateOptions(**({"max_new_tokens": 40, "temperature": 1.0} | given))
    return list(generate_text(gpt or network(), TOKENIZER, prompts, o, seed, num_samples, UNIGRAM))


def test_the_same_seed_gives_the_same_text_and_another_seed_another():
    assert written() == written()
    assert written(seed=8) != written()
    assert len(written()[0]) == 40


def test_a_sample_does_not_depend_on_how_many_there_are():
    five = written(num_samples=5)
    assert len(set(five)) == 5
    for n in (1, 2, 4):
        assert written(num_samples=n) == five[:n]


def test_a_text_does_not_depend_on_the_other_prompts():
    alone = written(["cab"], num_samples=2)
    for others in (["d"], ["", "bagdad" * 5], ["k" * 8] * 3):
        texts = written(["cab", *others], num_samples=2)
        assert texts[:2] == alone
        assert len(texts) == 2 + 2 * len(others)


def test_a_text_does_not_depend_on_how_long_it_is_to_become():
    assert written(max_new_tokens=13)[0] == written(max_new_tokens=40)[0][:13]


def test_equal_prompts_are_continued_differently():
    assert len(set(written(["cab"] * 3))) == 3


def test_greedy_is_temperature_0_is_top_k_1_whatever_the_seed():
    prompts = ["cab", "d", "fade" * 6]
    greedy = written(prompts, sampling="argmax")
    assert len(set(greedy[0])) > 3
    for given in ({"temperature": 0.0}, {"top_k": 1}, {"temperature": 0.0, "top_k": 5}):
        assert written(prompts, seed=99, **given) == greedy
    assert written(prompts, min_p=1.0) == greedy


def test_top5_is_top_k_5():
    assert written(sampling="top5") == written(top_k=5) == written(sampling="top_k")
    assert written(sampling="top5") != written(top_k=4)


def test_an_empty_prompt_starts_from_the_unigram_distribution():
    texts = written([""], num_samples=200, max_new_tokens=1)
    expected = [
        TOKENIZER.decode(draw(UNIGRAM[None], np.array([sample_rng(7, 0, i).random()])))
        for i in range(200)
    ]
    assert texts == expected
    assert "a" not in texts  # impossible here, not for the network


def test_an_empty_prompt_goes_on_as_from_its_first_character():
    gpt, o = network(), options(sampling="prob")
    started, _ = run(gpt, [[]], 30, CachedLogits(), o)
    numbers = sample_rng(3, 0, 0)
    numbers.random()  # spent on the first character
    prompted = islice(generate_ids(gpt, [started[0].tolist()], [numbers], o), 29)
    assert started[1:].tolist() == np.stack(list(prompted)).tolist()


def test_an_empty_prompt_without_a_unigram_distribution_is_refused():
    with pytest.raises(UserError, match="unigram"):
        list(generate_text(network(), TOKENIZER, [""], GenerateOptions(), seed=0))


def test_a_prompt_outside_the_alphabet_is_refused():
    with pytest.raises(UserError, match=r"the prompt has characters .* 'z'"):
        written(["cab", "zab"])


def test_a_stop_text_ends_its_own_row_and_is_included():
    prompts = ["cab", "d", "bad", "fee"]
    whole = written(prompts)
    stop = whole[0][10:12]
    expected = [text[: text.index(stop) + 2] if stop in text else text for text in whole]
    assert len(expected[0]) <= 12
    assert any(len(text) == 40 for text in expected)
    assert written(prompts, stop=stop) == expected


def test_a_stop_text_that_overlaps_itself_or_the_prompt_ends_at_its_first_full_occurrence():
    gpt = network()  # greedy, and made to say d again and again
    torch.nn.init.zeros_(gpt.lm_head.weight)
    torch.nn.init.ones_(gpt.norm.weight)
    for block in gpt.blocks:
        torch.nn.init.zeros_(block.attention.o_proj.weight)
        torch.nn.init.zeros_(block.mlp.down_proj.weight)
    torch.nn.init.ones_(gpt.embedding.weight)
    torch.nn.init.ones_(gpt.lm_head.weight[3])
    assert written(["ddd"], gpt=gpt, temperature=0.0, stop="ddddd") == ["d" * 5]


def test_writing_ends_when_every_row_has_stopped():
    calls = []
    prompts, whole = ["cab", "d"], written(["cab", "d"])
    stop = next(c for c in whole[0] if c in whole[1])
    needed = max(text.index(stop) for text in whole) + 1
    o = GenerateOptions(max_new_tokens=40, temperature=1.0, stop=stop)
    list(generate_text(network(), TOKENIZER, prompts, o, 7, on_characters=calls.append))
    assert len(calls) == needed < 40


def test_characters_are_handed_out_as_they_are_made():
    pieces = []
    o = GenerateOptions(max_new_tokens=40, temperature=1.0, stop="b")
    prompts = ["cab", "d", ""]
    texts = list(generate_text(network(), TOKENIZER, prompts, o, 7, 2, UNIGRAM, pieces.append))
    assert ["".join(row) for row in zip(*pieces, strict=True)] == texts
    assert {len(piece) for row in pieces for piece in row} == {0, 1}


def test_more_texts_than_are_written_at_once_are_the_same_texts(monkeypatch):
    prompts = ["cab", "", "d"]
    whole = written(prompts, num_samples=3)
    monkeypatch.setattr(generate_module, "MAX_BATCH", 2)
    assert written(prompts, num_samples=3) == whole


def test_no_new_characters_are_no_text():
    assert written(["cab", ""], num_samples=2, max_new_tokens=0) == [""] * 4
