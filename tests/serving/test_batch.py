"""Laws of continuous batching; the reference is one text alone, by the network without a cache."""

from itertools import islice

import numpy as np
import pytest
import torch

from lightning_app.data.tokenizer import Tokenizer
from lightning_app.generation.cpu_engine import CPUEngine
from lightning_app.generation.generate import sample_rng
from lightning_app.generation.sampling import GenerateOptions
from lightning_app.generation.torch_engine import TorchEngine, generate_torch, uncached_logits
from lightning_app.model.gpt import GPT
from lightning_app.model.kv_cache import context_length
from lightning_app.serving import batch as batch_module
from lightning_app.serving.batch import ContinuousBatch, Text, Written, make_batch
from tests.helpers import TOKENIZER, UNIGRAM, V, options, writing_network

ENGINES = {"compiled": CPUEngine, "torch": TorchEngine}
every_engine = pytest.mark.parametrize("engine", ENGINES.values(), ids=list(ENGINES))
GIVEN = [
    options(sampling="argmax", max_new_tokens=18),
    options(sampling="prob", temperature=1.2, max_new_tokens=11),
    options(top_k=3, repetition_penalty=1.5, max_new_tokens=1),
    options(top_p=0.7, max_new_tokens=25),
    options(min_p=0.1, max_new_tokens=8),
]
PROMPTS = [[1], [], [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5], [2, 7], [8] * 5, [0, 1, 2, 3, 4, 5, 6, 7]]


def alone(gpt: GPT, prompt: list[int], o: GenerateOptions, seed: int) -> str:
    steps = generate_torch(gpt, [prompt], [sample_rng(seed, 0, 0)], o, UNIGRAM, uncached_logits)
    return TOKENIZER.decode(ids[0] for ids in islice(steps, o.max_new_tokens))


class Client:
    """A text, and what has been delivered of it."""

    def __init__(self, prompt: list[int], o: GenerateOptions, seed: int, **given) -> None:
        tokenizer = given.pop("tokenizer", TOKENIZER)
        self.parts: list[Written] = []
        self.asked = (prompt, o, seed)
        self.writes = Text(tokenizer, prompt, sample_rng(seed, 0, 0), o, **given)

    def text(self) -> str:
        return "".join(part.characters for part in self.parts)

    def ended(self) -> bool:
        return bool(self.parts) and self.parts[-1].finish_reason is not None


def step(batch: ContinuousBatch, clients: list[Client]) -> None:
    written = batch.step()
    for text, new in written:
        (client,) = [c for c in clients if c.writes is text]
        assert not client.ended()
        client.parts.append(new)


def run(batch: ContinuousBatch, clients: list[Client]) -> None:
    for client in clients:
        batch.add(client.writes)
    while not batch.idle:
        step(batch, clients)


@every_engine
@pytest.mark.parametrize("block_size", [1, 2, 5, 8])
def test_texts_that_arrive_at_different_times_are_those_written_alone(engine, block_size):
    gpt = writing_network(block_size)
    batch = ContinuousBatch(engine(gpt, 3), UNIGRAM)
    arrivals = np.random.default_rng(block_size)
    coming = [Client(p, o, seed=i) for i, o in enumerate(GIVEN) for p in PROMPTS[i % 2 :: 2]]
    clients: list[Client] = []
    while coming or not batch.idle:
        if coming and arrivals.random() < 0.2:
            clients.append(coming.pop())
            batch.add(clients[-1].writes)
        step(batch, clients)
    for client in clients:
        prompt, o, seed = client.asked
        assert client.text() == alone(gpt, prompt, o, seed), client.asked
        assert client.parts[-1].finish_reason == "length"
        assert client.parts[-1].ids == o.max_new_tokens


@every_engine
def test_kinds_of_networks_with_state_besides_keys_and_values(engine):
    gpt = writing_network(6, ngram_rows=(20, 50))
    clients = [Client(p, GIVEN[3], seed=i) for i, p in enumerate(PROMPTS)]
    run(ContinuousBatch(engine(gpt, 4), UNIGRAM), clients)
    assert [c.text() for c in clients] == [alone(gpt, *c.asked) for c in clients]


@pytest.mark.parametrize("stops", [["a"], ["ab", "b"], None, ["bc", "cab", "hij", "k"]])
def test_a_text_ends_before_its_first_stop_text_and_no_part_of_that_is_sent(stops):
    gpt, o = writing_network(), options(sampling="prob", temperature=2.0, max_new_tokens=40)
    stops = stops or [alone(gpt, [0], o, 0)[20:24]]
    clients = [Client([i], o, seed=i, stops=stops) for i in range(V)]
    run(ContinuousBatch(CPUEngine(gpt, 4), UNIGRAM), clients)
    reasons = set()
    for client in clients:
        complete = alone(gpt, *client.asked)
        found = [(complete.find(stop), stop) for stop in stops if stop in complete]
        first = min((begin + len(stop) for begin, stop in found), default=None)
        begin = min((begin for begin, stop in found if begin + len(stop) == first), default=None)
        assert client.text() == complete[:begin]
        assert client.parts[-1].ids == (first or 40)
        reasons.add(client.parts[-1].finish_reason)
        assert client.parts[-1].finish_reason == ("length" if first is None else "stop")
    assert "stop" in reasons


def test_a_text_that_is_removed_leaves_its_row_and_changes_no_other():
    gpt = writing_network()
    batch = ContinuousBatch(CPUEngine(gpt, 2), UNIGRAM)
    clients = [Client(p, GIVEN[3], seed=i) for i, p in enumerate(PROMPTS)]
    for client in clients:
        batch.add(client.writes)
    for _ in range(5):
        step(batch, clients)
    removed = [clients[0], clients[3]]  # one has a row, one waits
    for client in removed:
        batch.remove(client.writes)
    before = [len(client.parts) for client in removed]
    while not batch.idle:
        step(batch, clients)
    assert [len(client.parts) for client in removed] == before
    for client in clients:
        if client not in removed:
            assert client.text() == alone(gpt, *client.asked)


def test_a_text_of_no_characters_ends_at_once():
    gpt = writing_network()
    client = Client([1, 2], options(max_new_tokens=0), seed=1)
    run(ContinuousBatch(CPUEngine(gpt, 1)), [client])
    assert (client.text(), client.parts[-1].finish_reason) == ("", "length")


@every_engine
def test_logprobs_are_the_networks_own_whatever_the_options(engine):
    gpt = writing_network(5)
    given = options(top_k=2, temperature=0.5, repetition_penalty=2.0, max_new_tokens=12)
    prompt = [3, 1, 4, 1, 5, 9, 2]
    clients = [
        Client(prompt, given, seed=1, logprobs=3, scored=True),
        Client([2], GIVEN[3], seed=2),  # without lists
        Client([5], given, seed=3, logprobs=0),
    ]
    run(ContinuousBatch(engine(gpt, 3), UNIGRAM), clients)
    for client in clients:
        assert client.text() == alone(gpt, *client.asked)
    parts = clients[0].parts
    tokens = [t for part in parts for t in part.prompt_tokens]
    assert len(tokens) == len(prompt)
    tokens += [t for part in parts for t in part.tokens]
    ids = prompt + TOKENIZER.encode(clients[0].text()).tolist()
    assert [t.token for t in tokens] == list(TOKENIZER.decode(ids))
    assert [t.offset for t in tokens] == [*range(7), *range(12)]
    assert (tokens[0].logprob, tokens[0].top) == (None, None)
    for n in range(1, len(ids)):
        window = torch.tensor([ids[n - context_length(n, 5) : n]])
        with torch.no_grad():
            expected = gpt(window)[0, -1].log_softmax(0)
        assert tokens[n].logprob == pytest.approx(float(expected[ids[n]]), abs=1e-4)
        likeliest = expected.topk(3).indices.tolist()
        assert [*tokens[n].top][:3] == [TOKENIZER.alphabet[i] for i in likeliest]
        assert tokens[n].top[tokens[n].token] == tokens[n].logprob
    last = clients[2].parts[-1].tokens[-1]
    assert last.top is None
    assert last.logprob < 0


def test_the_first_character_without_a_prompt_has_the_logprob_of_its_frequency():
    gpt = writing_network()
    client = Client([], options(sampling="prob", max_new_tokens=1), seed=4, logprobs=2)
    run(ContinuousBatch(CPUEngine(gpt, 1), UNIGRAM), [client])
    (token,) = client.parts[0].tokens
    assert token.logprob == pytest.approx(np.log(UNIGRAM[TOKENIZER.ids[token.token]]))


def test_bytes_have_names_and_the_offset_of_their_character():
    alphabet = "".join(map(chr, sorted({*"aé天".encode()})))
    tokenizer = Tokenizer(alphabet, "byte")
    text = Text(tokenizer, [], sample_rng(0, 0, 0), options(max_new_tokens=7), logprobs=0)
    ids = tokenizer.encode("aé天a").tolist()
    parts = [text.add([i], np.zeros(len(alphabet))) for i in ids]
    assert [p.characters for p in parts] == ["a", "", "é", "", "", "天", "a"]
    tokens = [t for p in parts for t in p.tokens]
    assert [t.offset for t in tokens] == [0, 1, 1, 2, 2, 2, 3]
    assert [t.token for t in tokens][:3] == ["a", "bytes:\\xc3", "bytes:\\xa9"]
    assert parts[-1].finish_reason == "length"


def test_a_step_computes_a_bounded_part_of_the_prompts_and_no_row_waits_for_ever(monkeypatch):
    monkeypatch.setattr(batch_module, "PREFILL_CHARACTERS", 4)
    gpt = writing_network(8)
    engine = CPUEngine(gpt, 6)
    batch, sizes, prefill = ContinuousBatch(engine), [], engine.prefill

    def watched(rows, windows):
        sizes.append(sum(map(len, {*map(tuple, windows)})))
        prefill(rows, windows)

    monkeypatch.setattr(engine, "prefill", watched)
    clients = [Client([i, *range(8)], GIVEN[3], seed=i) for i in range(6)]
    for client in clients:
        batch.add(client.writes)
    for _ in range(40):
        before = [client.writes.ids for client in clients]
        for _ in range(6):
            step(batch, clients)
        progress = [c.writes.ids > n or c.ended() for c, n in zip(clients, before, strict=True)]
        assert all(progress)
    assert max(sizes) <= 8
    assert batch.idle


def test_samples_of_one_prompt_share_its_computation(monkeypatch):
    gpt = writing_network(40)
    engine = CPUEngine(gpt, 5)
    calls, prefill = [], engine.prefill
    monkeypatch.setattr(engine, "prefill", lambda r, w: (calls.append(len(r)), prefill(r, w)))
    monkeypatch.setattr(batch_module, "PREFILL_CHARACTERS", 30)
    clients = [Client([*range(9)] * 3, GIVEN[4], seed=i) for i in range(5)]
    run(ContinuousBatch(engine), clients)
    assert calls == [5]


def test_a_batch_is_made_ready_with_nothing_in_it():
    gpt = writing_network()
    for rows in (1, 3):
        batch = make_batch(gpt, rows, unigram=UNIGRAM)
        assert batch.idle
        clients = [Client(p, GIVEN[1], seed=i) for i, p in enumerate(PROMPTS)]
        run(batch, clients)
        assert [c.text() for c in clients] == [alone(gpt, *c.asked) for c in clients]
