"""Laws of the compiled engine; the reference is the network itself, uncached."""

from itertools import islice

import numpy as np
import pytest
import torch

from lightning_app.generation import cpu_engine
from lightning_app.generation import generate as generate_module
from lightning_app.generation.cpu_engine import CPUEngine, WeightFormat
from lightning_app.generation.generate import (
    generate_compiled,
    generate_ids,
    generate_text,
    sample_rng,
)
from lightning_app.generation.sampling import sampler_args
from lightning_app.generation.torch_engine import CachedLogits, generate_torch, uncached_logits
from lightning_app.model.gpt import GPT
from tests.helpers import TOKENIZER, UNIGRAM, V, options
from tests.helpers import writing_network as network

KINDS = {
    "plain": {"n_head": 4, "n_kv_head": 4, "n_embd": 32},
    "grouped": {"n_head": 4, "n_kv_head": 2, "n_embd": 32},
    "one_kv_head": {"n_head": 3, "n_kv_head": 1, "n_embd": 24},
    "tied": {"tie_embeddings": True},
    "ngrams": {"ngram_rows": (20, 0, 50, 90)},
    "odd_sizes": {"n_layer": 3, "n_head": 1, "n_kv_head": 1, "n_embd": 10, "mlp_size": 7},
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def compiled_logits(
    gpt: GPT, ids: torch.Tensor, weights: WeightFormat = "float32", threads: int = 1
) -> torch.Tensor:
    """Logits (B, T, V) after each of ids (B, T), computed one character at a time."""
    engine = CPUEngine(gpt, len(ids), weights)
    engine.threads = threads
    rows = np.arange(len(ids))
    steps = [torch.from_numpy(engine.next_logits(rows, tokens)) for tokens in ids.numpy().T]
    return torch.stack(steps, dim=1)


def text(rows: int, n: int) -> torch.Tensor:
    return torch.randint(V, (rows, n), generator=torch.Generator().manual_seed(5))


@every_kind
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("rows", [1, 3])
@torch.no_grad()
def test_logits_are_the_networks_at_every_position(kind, threads, rows):
    gpt = network(block_size=20, **KINDS[kind])
    ids = text(rows, 20)
    actual = compiled_logits(gpt, ids, threads=threads)
    torch.testing.assert_close(actual, gpt(ids), rtol=1e-4, atol=1e-4)


@every_kind
@torch.no_grad()
def test_a_call_for_some_rows_gives_their_logits_and_leaves_the_others_alone(kind):
    gpt = network(block_size=20, **KINDS[kind])
    ids = text(4, 12)
    engine = CPUEngine(gpt, 4)
    for rows in [[2], [2, 0], [3, 1, 2], [1], [0, 1, 2, 3], [3], [2, 3], [1, 0], [0], [3, 0, 1]]:
        at = engine.length[rows]
        logits = engine.next_logits(np.array(rows), ids[rows, at].numpy())
        expected = [
            gpt(ids[row : row + 1, : n + 1])[0, -1] for row, n in zip(rows, at, strict=True)
        ]
        torch.testing.assert_close(
            torch.from_numpy(logits), torch.stack(expected), rtol=1e-4, atol=1e-4
        )
    assert engine.length.tolist() == [5, 5, 5, 5]


@torch.no_grad()
def test_products_have_few_sizes_and_padding_changes_no_logits(monkeypatch):
    gpt, sizes = network(block_size=20), set()
    engine = CPUEngine(gpt, 40)
    head = engine.head
    monkeypatch.setattr(engine, "head", lambda x: (sizes.add(len(x)), head(x))[1])
    ids = text(40, 1)
    for n in range(2, 41):
        engine.length[:] = 0
        logits = engine.next_logits(np.arange(n), ids[:n, 0].numpy())
        torch.testing.assert_close(
            torch.from_numpy(logits), gpt(ids[:n])[:, -1], rtol=1e-4, atol=1e-4
        )
    assert sizes == {2, 3, 4, 6, 8, 12, 16, 24, 32, 40}


def test_each_row_is_drawn_by_its_own_options():
    gpt, tokens = network(), np.array([3, 1, 4, 1])
    given = [
        options(sampling="argmax"),
        options(sampling="prob", temperature=2.0),
        options(top_k=2, repetition_penalty=3.0),
        options(min_p=0.3, temperature=0.5),
    ]
    rngs = np.random.default_rng(3)
    seen = rngs.random((4, V)) < 0.5
    uniform = rngs.random((4, 6))
    samplers = np.array([sampler_args(o) for o in given])
    together = CPUEngine(gpt, 4).decode(
        np.arange(4), tokens, uniform, seen_together := seen.copy(), samplers
    )
    for row in range(4):  # alone, in another row of an engine
        seen_alone = np.roll(seen, 1, axis=0)
        alone = CPUEngine(gpt, 4).decode(
            np.array([(row + 1) % 4]), tokens[[row]], uniform[[row]], seen_alone,
            np.roll(samplers, 1, axis=0),
        )  # fmt: skip
        assert np.array_equal(alone[0], together[row])
        assert np.array_equal(seen_alone[(row + 1) % 4], seen_together[row])


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
@pytest.mark.parametrize("plain_cpu", [False, True])  # without bfloat16 products
@torch.no_grad()
def test_smaller_weights_move_logits_by_rounding_only(weights, rows, plain_cpu, monkeypatch):
    if plain_cpu:
        monkeypatch.setattr(cpu_engine, "multiplies_bf16", lambda accelerator: False)
    gpt = network(block_size=20)
    ids = text(rows, 20)
    expected = gpt(ids)
    error = (compiled_logits(gpt, ids, weights) - expected).norm() / expected.norm()
    assert 1e-4 < error < 0.05


def test_autocast_is_not_ignored(monkeypatch):
    # The compiled engine would compute in float32, whatever the precision.
    monkeypatch.setattr(generate_module, "generate_compiled", None)
    with torch.autocast("cpu", torch.bfloat16):
        steps = generate_ids(network(), [[1, 2]], [sample_rng(0, 0, 0)], options())
        assert len(list(islice(steps, 3))) == 3


@pytest.mark.parametrize("block_size", [1, 2, 3, 5, 8, 40])
@pytest.mark.parametrize(
    "prompts",
    [[[1]], [[3, 1, 4, 1, 5, 9, 2, 6, 5]], [[1], [3, 1, 4, 1, 5, 9, 2, 6, 5], [2, 7], [1]]],
    ids=["short", "long", "several"],
)
def test_greedy_text_is_the_references_over_many_windows(block_size, prompts):
    gpt, o = network(block_size), options(sampling="argmax")
    rngs = [sample_rng(1, i, 0) for i in range(len(prompts))]
    reference = generate_torch(gpt, prompts, rngs, o, None, uncached_logits)
    expected = np.stack(list(islice(reference, 60)))
    steps = generate_compiled(CPUEngine(gpt, len(prompts)), prompts, rngs, o)
    assert np.array_equal(list(islice(steps, 60)), expected)


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
@pytest.mark.parametrize("prompts", [[[]], [[2, 7]], [[], [2, 7], []]], ids=str)
def test_sampled_text_is_the_references_for_every_sampling_method(given, prompts):
    gpt, o = network(block_size=12), options(**given)

    def generated(engine, *args) -> np.ndarray:
        rngs = [sample_rng(4, i, 0) for i in range(len(prompts))]
        return np.stack(list(islice(engine(gpt, prompts, rngs, o, UNIGRAM, *args), 80)))

    reference = generated(generate_torch, uncached_logits)
    assert np.array_equal(generated(generate_ids), reference)
    assert np.array_equal(generated(generate_torch, CachedLogits()), reference)


def test_a_text_does_not_depend_on_the_other_texts_of_its_batch():
    gpt, o = network(block_size=12), options(sampling="prob", max_new_tokens=80)
    alone = list(generate_text(gpt, TOKENIZER, ["ab"], o, seed=3))
    several = list(generate_text(gpt, TOKENIZER, ["ab", "", "cabbage"], o, 3, 5, UNIGRAM))
    assert several[0] == alone[0]
    assert len(set(several)) == 15


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8"])
def test_results_do_not_depend_on_the_number_of_threads_bit_for_bit(rows, weights):
    gpt = network(200, n_head=6, n_kv_head=2, n_embd=96, mlp_size=136, ngram_rows=(20, 50))
    windows = [text(1, n)[0].tolist() for n in (150, 7, 1)[:rows]]
    uniform = np.random.default_rng(1).random((rows, 20))
    samplers = np.array([sampler_args(options(sampling="prob"))] * rows)

    def everything(threads: int) -> list[np.ndarray]:
        engine, seen = CPUEngine(gpt, rows, weights, threads), np.zeros((rows, V), dtype=bool)
        engine.prefill(range(rows), windows)
        which, tokens = np.arange(rows), np.arange(rows)
        ids = engine.decode(which, tokens, uniform, seen, samplers)
        assert engine.threads == threads
        return [ids, *engine.cache, engine.next_logits(which, ids[:, -1])]

    alone = everything(1)
    for threads in (2, 3, 8):
        assert all(map(np.array_equal, everything(threads), alone))


def test_an_engine_that_is_used_again_gives_the_texts_of_a_new_one():
    gpt, o = network(block_size=12), options(sampling="prob")
    used = CPUEngine(gpt, 2)

    def generated(engine: CPUEngine, prompts: list[list[int]]) -> list[list[int]]:
        rngs = [sample_rng(4, i, 0) for i in range(2)]
        return np.stack(list(islice(generate_compiled(engine, prompts, rngs, o), 30))).tolist()

    for prompts in ([[2, 7], [1]], [[1], []], [[3, 1, 4] * 5, [2, 7]]):
        assert generated(used, prompts) == generated(CPUEngine(gpt, 2), prompts)


def test_pytorchs_number_of_threads_stays_as_it_was():
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        engine = CPUEngine(network(), 1)
        list(islice(generate_compiled(engine, [[1, 2]], [sample_rng(0, 0, 0)], options()), 20))
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


def test_the_networks_weights_stay_as_they_were():
    gpt = network()
    before = {name: w.clone() for name, w in gpt.state_dict().items()}
    for rows in (1, 2):
        rngs = [sample_rng(0, 0, i) for i in range(rows)]
        engine = CPUEngine(gpt, rows, "int8")
        steps = generate_compiled(engine, [[1, 2]] * rows, rngs, options())
        list(islice(steps, 20))
    assert all(torch.equal(w, before[name]) for name, w in gpt.state_dict().items())


@every_kind
@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
@torch.no_grad()
def test_rounded_weights_give_the_same_logits_after_a_prefilled_text(kind, weights):
    gpt = network(block_size=20, **KINDS[kind])
    ids = text(1, 20)
    engine = CPUEngine(gpt, 1, weights)
    engine.prefill([0], [ids[0, :-1].tolist()])
    actual = torch.from_numpy(engine.next_logits(np.arange(1), ids[:, -1].numpy()))
    torch.testing.assert_close(
        actual, compiled_logits(gpt, ids, weights)[:, -1], rtol=1e-4, atol=1e-4
    )
