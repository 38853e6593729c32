"""Laws of the page's engine, run by Node: its texts and figures are those of this program."""

import base64
import json
import shutil
import subprocess
from typing import Any

import numpy as np
import pytest
import torch

from lightning_app.data.tokenizer import Tokenizer
from lightning_app.export.page.page import (
    FOLDER,
    engine_source,
    model_description,
    pack_tensors,
    zipped,
)
from lightning_app.generation.cpu_engine import CPUEngine
from lightning_app.generation.generate import generate_text
from lightning_app.generation.history import unigram_distribution
from lightning_app.generation.sampling import GenerateOptions, distribution, draw
from lightning_app.model.gpt import GPT
from lightning_app.model.kv_cache import context_length
from lightning_app.runs.checkpoint import TrainedModel
from tests.generation.test_cpu_engine import KINDS
from tests.helpers import TOKENIZER, V, distribution_by_definition, options, writing_network
from tests.model.test_ngram_counting import TEST_VECTOR

NODE = shutil.which("node")
pytestmark = pytest.mark.skipif(NODE is None, reason="needs node")
KERNEL = base64.b64encode((FOLDER / "engine" / "kernel.wasm").read_bytes()).decode()
COUNTS = [0, 5, 1, 1, 2, 4, 9, 2, 1, 1, 3]
READ_INPUT = "const input = JSON.parse(require('fs').readFileSync(0));\n"
LOGITS_BOUND = 1e-4  # of the page and the compiled engine, which add in another order


def node(script: str, given: Any = None) -> Any:
    """What `script` passes to `print`; it can use the page's engine, and `input`, which is
    `given`."""
    source = (
        f"{engine_source()}\n{READ_INPUT}"
        "const print = (x) => process.stdout.write(JSON.stringify(x), () => process.exit());\n"
        f"{script}"
    )
    done = subprocess.run(
        [str(NODE), "-e", source],
        input=json.dumps(given),
        capture_output=True,
        encoding="utf-8",
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def trained_model(gpt: GPT, tokenizer: Tokenizer = TOKENIZER, **generation) -> TrainedModel:
    counts = COUNTS if len(tokenizer) == V else None
    return TrainedModel(gpt, tokenizer, {"counts": counts}, {}, {}, generation)


def page_source(trained: TrainedModel, kernel: str = KERNEL) -> dict[str, Any]:
    tensors, weights = pack_tensors(trained.gpt)
    model = model_description(trained, tensors)
    return {"model": model, "weights": zipped(weights), "kernel": kernel}


SESSION = """
const tasks = input.tasks, answers = tasks.map(() => ({ids: [], bits: []}));
let last = 0;
const opened = makeSession(input.source, (answer) => {
  if (answer.type === 'failed') throw new Error(answer.error);
  if (answer.type === 'characters') {
    answers[answer.task].ids.push(...answer.ids);
    answers[answer.task].bits.push(...answer.bits);
  }
  if (answer.type === 'inspected') {
    const attention = answer.attention.map((layer) => layer.map((w) => Array.from(w)));
    answers[answer.task] = {...answer, logits: Array.from(answer.logits), attention};
  }
});
(async () => {
  const session = await opened;
  for (const [i, task] of tasks.entries()) await session({...task, task: i});
  print(answers);
})();
"""


def session(trained: TrainedModel, tasks: list[dict[str, Any]], kernel: str = KERNEL) -> list[dict]:
    """The answers of one session to tasks, one after the other."""
    return node(SESSION, {"source": page_source(trained, kernel), "tasks": tasks})


def generate_task(prompt: list[int], length: int, seed: int, **given) -> dict[str, Any]:
    o = options(**given)
    names = ("sampling", "temperature", "top_k", "top_p", "min_p", "repetition_penalty")
    chosen = {name: getattr(o, name) for name in names}
    return {
        "type": "generate",
        "ids": prompt,
        "length": length,
        "seed": str(seed),
        "options": chosen,
    }


def predicted(trained: TrainedModel, prompt: str, length: int, seed: int, **given) -> str:
    """The text of `predict --weights int8`, without its prompt."""
    o = GenerateOptions(**given, max_new_tokens=length)
    unigram = unigram_distribution(trained.info["counts"])
    (text,) = generate_text(
        trained.gpt, trained.tokenizer, [prompt], o, seed, unigram=unigram, weights="int8"
    )
    return text


def compiled_logits(gpt: GPT, ids: list[int]) -> np.ndarray:
    """Logits (n, V) of the compiled engine with int8 weights after each of n ids."""
    engine = CPUEngine(gpt, 1, "int8")
    return np.concatenate([engine.next_logits(np.arange(1), np.array([i])) for i in ids])


@pytest.mark.parametrize("seed", [0, 7, 2**32 - 1, 2**32, 10**40])
def test_random_numbers_are_numpys(seed):
    found = node("const f = sampleNumbers(input); print(Array.from({length: 50}, f))", str(seed))
    assert found == np.random.default_rng([seed, 0, 0]).random(50).tolist()


def test_the_context_is_that_of_the_rule_for_long_texts():
    cases = [(n, block_size) for block_size in (1, 2, 3, 5, 8, 256) for n in range(1, 600, 7)]
    found = node("print(input.map(([n, b]) => contextLength(n, b)))", cases)
    assert found == [context_length(*case) for case in cases]


def test_the_hash_of_n_grams_is_that_of_the_test_vector():
    found = node("print(input.map((codes) => ngramHashes(codes, [2, 3, 4])))", list(TEST_VECTOR))
    assert found == list(TEST_VECTOR.values())
    found = node("print(input.map((codes) => ngramHashes(codes, [2, 4, 5])))", list(TEST_VECTOR))
    assert found == [hashes[::2] for hashes in TEST_VECTOR.values()]


@pytest.mark.parametrize(
    "given",
    [
        {"sampling": "argmax"},
        {"sampling": "prob", "temperature": 1.3},
        {"temperature": 0.0},
        {"top_k": 4},
        {"top_p": 0.8, "temperature": 0.7},
        {"min_p": 0.2, "repetition_penalty": 1.5},
    ],
    ids=str,
)
def test_the_distribution_is_predicts(given):
    rng = np.random.default_rng(3)
    logits = rng.normal(0, 3, (20, 9)).astype(np.float32)
    logits[:, 3] = logits[:, 5]  # equally likely
    seen, uniform, o = rng.random((20, 9)) < 0.4, rng.random(20), options(**given)
    found = node(
        "print(input.rows.map(([logits, seen, u]) => {"
        "  const p = distribution(logits, (v) => seen[v], input.options);"
        "  return [Array.from(p), draw(p, u)];"
        "}))",
        {
            "rows": list(zip(logits.tolist(), seen.tolist(), uniform.tolist(), strict=True)),
            "options": generate_task([], 0, 0, **given)["options"],
        },
    )
    expected = distribution(logits, seen, o)
    np.testing.assert_allclose([p for p, _ in found], expected, rtol=1e-12)
    assert [i for _, i in found] == draw(expected, uniform).tolist()
    by_definition = distribution_by_definition(logits[0].tolist(), seen[0].tolist(), o)
    np.testing.assert_allclose(found[0][0], by_definition, rtol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_the_compiled_engine_with_both_kernels(kind):
    gpt = writing_network(block_size=20, **KINDS[kind])
    ids = torch.randint(V, (20,), generator=torch.Generator().manual_seed(5)).tolist()
    found = node(
        "const {model, weights, kernel} = input.source;"
        "unzip(fromBase64(weights)).then((unzipped) => {"
        "  const networks = [kernel, null].map((k) =>"
        "    new Network(model, unzipped, k && fromBase64(k)));"
        "  print(networks.map((n) => [n.kernelName, input.ids.map((_, i) =>"
        "    Array.from(n.logitsAfter(input.ids.slice(0, i + 1))))]));"
        "});",
        {"source": page_source(trained_model(gpt)), "ids": ids},
    )
    assert [name for name, _ in found] == ["WebAssembly", "JavaScript"]
    for _, logits in found:
        np.testing.assert_allclose(logits, compiled_logits(gpt, ids), atol=LOGITS_BOUND)


def test_ten_greedy_texts_are_predicts_over_many_windows():
    trained = trained_model(writing_network(block_size=12))
    prompts = [TOKENIZER.alphabet[i:] + TOKENIZER.alphabet[:i] * 2 for i in range(10)]
    tasks = [generate_task(TOKENIZER.encode(p).tolist(), 60, 0, sampling="argmax") for p in prompts]
    texts = [TOKENIZER.decode(answer["ids"]) for answer in session(trained, tasks)]
    assert texts == [predicted(trained, p, 60, 0, sampling="argmax") for p in prompts]
    assert len(set(texts)) == 10


@pytest.mark.parametrize("kernel", [KERNEL, ""], ids=["WebAssembly", "JavaScript"])
@pytest.mark.parametrize("sizes", [{}, {"ngram_rows": (20, 0, 50)}], ids=["plain", "tables"])
def test_a_seed_gives_predicts_text(sizes, kernel):
    trained = trained_model(writing_network(block_size=12, **sizes))
    cases: list[tuple[str, int, dict]] = [
        ("", 3, {"sampling": "prob", "temperature": 1.3}),
        ("badge", 3, {"top_k": 3}),
        ("badge", 4, {"top_p": 0.7, "repetition_penalty": 1.4}),
        ("a" * 40, 2**33, {"min_p": 0.2}),
    ]
    tasks = [
        generate_task(TOKENIZER.encode(p).tolist(), 80, seed, **given) for p, seed, given in cases
    ]
    for answer, (prompt, seed, given) in zip(session(trained, tasks, kernel), cases, strict=True):
        expected = predicted(trained, prompt, 80, seed, **given)
        assert TOKENIZER.decode(answer["ids"]) == expected


def test_bytes_are_generated_and_decoded_as_predict_does():
    tokenizer = Tokenizer("".join(map(chr, range(256))), "byte")
    trained = trained_model(writing_network(block_size=16, vocab_size=256), tokenizer)
    prompt = "é天\ufeffa"
    found = node(
        "const t = new CharTokenizer(input.source.model), d = t.decoder();"
        "print([t.encode(input.prompt), input.ids.map(d).join('')])",
        {
            "source": page_source(trained),
            "prompt": prompt,
            "ids": (ids := list(range(256)) + tokenizer.encode("\ufeffé天😀\ufeff").tolist()),
        },
    )
    assert found[0] == tokenizer.encode(prompt).tolist()
    decode = tokenizer.decoder()
    assert found[1] == "".join(map(decode, ids))
    (answer,) = session(trained, [generate_task(found[0], 100, 5, sampling="prob")])
    decode = tokenizer.decoder()
    assert "".join(map(decode, answer["ids"])) == predicted(
        trained, prompt, 100, 5, sampling="prob"
    )


@torch.no_grad()
def test_scores_are_the_losses_given_the_context_that_generation_has():
    trained = trained_model(writing_network(block_size=10))
    ids = torch.randint(V, (60,), generator=torch.Generator().manual_seed(1)).tolist()
    ids[0] = 4
    score = {"type": "score", "ids": ids, "length": 60}
    inspect = {"type": "inspect", "ids": ids[:33], "index": 33}
    answers = session(trained, [score, inspect, score | {"length": 31}])
    expected = [-np.log2(COUNTS[ids[0]] / sum(COUNTS))]
    for n in range(1, 60):
        window = ids[n - context_length(n, 10) : n]
        logits = torch.from_numpy(compiled_logits(trained.gpt, window)[-1]).double()
        expected.append(-logits.log_softmax(-1)[ids[n]].item() / np.log(2))
    np.testing.assert_allclose(answers[0]["bits"], expected, atol=1e-4)
    np.testing.assert_allclose(answers[2]["bits"], expected[:31], atol=1e-4)


@torch.no_grad()
def test_attention_and_candidates_are_those_of_the_last_position():
    gpt = writing_network(block_size=10, n_head=4, n_embd=32, n_kv_head=2)
    ids = torch.randint(V, (17,), generator=torch.Generator().manual_seed(1)).tolist()
    (answer,) = session(trained_model(gpt), [{"type": "inspect", "ids": ids, "index": 17}])
    window = ids[17 - context_length(17, 10) :]
    logits = compiled_logits(gpt, window)[-1]
    np.testing.assert_allclose(answer["logits"], logits, atol=LOGITS_BOUND)
    queries: list[torch.Tensor] = []  # of the first layer, by the network itself
    attention = gpt.blocks[0].attention
    hook = attention.register_forward_pre_hook(lambda module, args: queries.append(args[0]))
    gpt(torch.tensor([window]))
    hook.remove()
    T = len(window)
    q = attention.q_norm(attention.q_proj(queries[0])[0].unflatten(-1, (4, 8)))  # (T, heads, dim)
    k = attention.k_norm(attention.k_proj(queries[0])[0].unflatten(-1, (2, 8)))

    def rotated(x: torch.Tensor) -> torch.Tensor:
        a, b = x.chunk(2, dim=-1)
        cos, sin = gpt.cos[:T, None], gpt.sin[:T, None]
        return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)

    q, k = rotated(q)[-1], rotated(k).repeat_interleave(2, dim=1)  # (heads, dim), (T, heads, dim)
    expected = (torch.einsum("hd,thd->ht", q, k) * 8**-0.5).softmax(-1)
    assert answer["length"] == T
    np.testing.assert_allclose(answer["attention"][0], expected, atol=0.02)  # int8 rounds
    np.testing.assert_allclose(np.array(answer["attention"]).sum(-1), 1, atol=1e-5)


def test_unknown_characters_are_named_and_have_predicts_substitutes():
    text = "abcé“x”—B"
    found = node(
        "const t = new CharTokenizer(input.model);"
        "print([t.unknown(input.text), t.unknown(input.text).map((c) => t.substitute(c))])",
        {"model": page_source(trained_model(writing_network()))["model"], "text": text},
    )
    unknown = [c for c in text if c not in TOKENIZER.alphabet]
    assert found == [unknown, [TOKENIZER.substitute(c) for c in unknown]]
