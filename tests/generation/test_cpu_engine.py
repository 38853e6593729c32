"""Laws of the compiled engine; the reference is the network itself, uncached."""

import shutil
import subprocess
import sys
from itertools import islice
from pathlib import Path

import numba
import numpy as np
import pytest
import torch
from numba.core.event import install_listener

from lightning_app.generation import cpu_engine
from lightning_app.generation import generate as generate_module
from lightning_app.generation.cpu_engine import CPUEngine, as_array
from lightning_app.generation.cpu_kernels import next_logits, store, to_float32
from lightning_app.generation.generate import (
    generate_compiled,
    generate_ids,
    generate_text,
    sample_rng,
)
from lightning_app.generation.numba_cache import CompileNotice, compiled
from lightning_app.generation.torch_engine import CachedLogits, generate_torch, uncached_logits
from lightning_app.model.gpt import GPT
from tests.helpers import TOKENIZER, UNIGRAM, V, options
from tests.helpers import writing_network as network

KINDS = {
    "plain": {"n_head": 4, "n_kv_head": 4, "n_embd": 32},
    "grouped": {"n_head": 4, "n_kv_head": 2, "n_embd": 32},
    "one_kv_head": {"n_head": 3, "n_kv_head": 1, "n_embd": 24},
    "tied": {"tie_embeddings": True},
    "odd_sizes": {"n_layer": 3, "n_head": 1, "n_kv_head": 1, "n_embd": 10, "mlp_size": 7},
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def read(gpt: GPT, ids: torch.Tensor, weights: str = "float32", threads: int = 1) -> torch.Tensor:
    """Logits (B, T, V) after each of ids (B, T), a character at a time."""
    engine = CPUEngine(gpt, len(ids), weights)
    engine.threads = threads
    steps = []
    for position, tokens in enumerate(ids.numpy().T):
        if len(ids) == 1:
            logits = np.empty((1, V), dtype=np.float32)
            next_logits(tokens[0], position, engine.packed, engine.cache, logits[0], threads)
        else:
            logits = engine.logits(tokens)
        steps.append(torch.from_numpy(logits))
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
    actual = read(gpt, ids, threads=threads)
    torch.testing.assert_close(actual, gpt(ids), rtol=1e-4, atol=1e-4)


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
    error = (read(gpt, ids, weights) - expected).norm() / expected.norm()
    assert 1e-4 < error < 0.05


def test_bfloat16_is_read_and_rounded_as_pytorch_does():
    @compiled()
    def both(x, narrow, wide):
        for i in range(len(x)):
            store(narrow, i, x[i])
            wide[i] = to_float32(narrow[i])

    x = torch.randn(10_000, generator=torch.Generator().manual_seed(0)) * 10
    x[:3] = torch.tensor([0.0, 1 + 2**-8, 1 + 3 * 2**-8])  # ties go to the even neighbour
    narrow, wide = np.empty(len(x), dtype=np.uint16), np.empty(len(x), dtype=np.float32)
    both(x.numpy(), narrow, wide)
    assert np.array_equal(narrow, as_array(x.bfloat16()))
    assert np.array_equal(wide, x.bfloat16().float().numpy())


def test_the_trainers_precision_is_not_ignored(monkeypatch):
    monkeypatch.setattr(
        generate_module, "generate_compiled", None
    )  # float32, whatever the precision
    with torch.autocast("cpu", torch.bfloat16):
        steps = generate_ids(network(), [[1, 2]], [sample_rng(0, 0, 0)], options())
        assert len(list(islice(steps, 3))) == 3


def test_compiling_is_said_once_and_loading_or_running_is_not(capsys):
    @numba.njit
    def double(x):
        return 2 * x

    with install_listener("numba:compile", CompileNotice("a moment")):
        double(1)
        double(1.0)  # for another type: compiled again
        assert capsys.readouterr().err == "a moment\n"

    def kept():
        @compiled()
        def triple(x):
            return 3 * x

        return triple

    kept()(1)  # on disk from here on
    with install_listener("numba:compile", CompileNotice("a moment")):
        double(3)
        assert kept()(3) == 9
        assert capsys.readouterr().err == ""


@pytest.mark.parametrize("block_size", [1, 2, 3, 5, 8, 40])
@pytest.mark.parametrize(
    "prompts",
    [[[1]], [[3, 1, 4, 1, 5, 9, 2, 6, 5]], [[1], [3, 1, 4, 1, 5, 9, 2, 6, 5], [2, 7], [1]]],
    ids=["short", "long", "several"],
)
def test_greedy_text_is_the_references_over_many_windows(block_size, prompts):
    gpt, o = network(block_size), options(sampling="argmax")
    streams = [sample_rng(1, i, 0) for i in range(len(prompts))]
    reference = generate_torch(gpt, prompts, streams, o, None, uncached_logits)
    expected = np.stack(list(islice(reference, 60)))
    assert np.array_equal(list(islice(generate_compiled(gpt, prompts, streams, o), 60)), expected)


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
def test_sampled_text_is_the_references_however_characters_are_chosen(given, prompts):
    gpt, o = network(block_size=12), options(**given)

    def written(rows, *engine) -> np.ndarray:
        streams = [sample_rng(4, i, 0) for i in range(len(prompts))]
        return np.stack(list(islice(rows(gpt, prompts, streams, o, UNIGRAM, *engine), 80)))

    reference = written(generate_torch, uncached_logits)
    assert np.array_equal(written(generate_ids), reference)
    assert np.array_equal(written(generate_torch, CachedLogits()), reference)


def test_a_text_does_not_depend_on_what_is_written_beside_it():
    gpt, o = network(block_size=12), options(sampling="prob", max_new_tokens=80)
    alone = list(generate_text(gpt, TOKENIZER, ["ab"], o, seed=3))
    several = list(generate_text(gpt, TOKENIZER, ["ab", "", "cabbage"], o, 3, 5, UNIGRAM))
    assert several[0] == alone[0]
    assert len(set(several)) == 15


def test_pytorchs_threads_are_left_alone():
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        list(islice(generate_compiled(network(), [[1, 2]], [sample_rng(0, 0, 0)], options()), 20))
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


def test_the_weights_themselves_are_left_alone():
    gpt = network()
    before = {name: w.clone() for name, w in gpt.state_dict().items()}
    for rows in (1, 2):
        streams = [sample_rng(0, 0, i) for i in range(rows)]
        steps = generate_compiled(gpt, [[1, 2]] * rows, streams, options(), weights="int8")
        list(islice(steps, 20))
    assert all(torch.equal(w, before[name]) for name, w in gpt.state_dict().items())


CHOOSE = """
import numpy as np
from lightning_app.generation.cpu_kernels import choose_rows
from lightning_app.generation.sampling import ARGMAX

ids, seen = np.zeros(1, dtype=np.int64), np.zeros((1, 3), dtype=bool)
logits = np.array([[0, 1, 2]], dtype=np.float32)
choose_rows(logits, np.zeros(1), seen, (ARGMAX, 0.0, 1.0, 1.0), ids, 1)
print(ids[0])
"""


def test_what_was_compiled_before_is_not_used_for_other_sources(tmp_path):
    package = tmp_path / "lightning_app"
    source = Path(__file__).parents[2] / package.name
    shutil.copytree(source, package, ignore=shutil.ignore_patterns("__pycache__"))

    def chosen() -> str:
        command = [sys.executable, "-c", CHOOSE]
        return subprocess.run(command, cwd=tmp_path, check=True, capture_output=True).stdout

    assert int(chosen()) == 2
    sampling = (
        package / "generation" / "sampling.py"
    )  # not the file of choose_rows, whose code contains it
    before = sampling.read_text()
    assert before.count("p[top] = 1\n") == 1
    sampling.write_text(before.replace("p[top] = 1\n", "p[0] = 1\n"))
    assert int(chosen()) == 0
