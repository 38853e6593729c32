"""Laws of the yardsticks. The references: Kneser-Ney by its definition, compressors by hand."""

import builtins
import bz2
import json
import math
import random
from collections import Counter, defaultdict

import numpy as np
import pytest

from lightning_app.data.encoding import encode_files
from lightning_app.evaluation import baselines
from lightning_app.evaluation.baselines import (
    baseline_table,
    cached_baselines,
    ids_to_bytes,
    kneser_ney,
    measure_baselines,
)


def words(count: int, seed: int = 1) -> str:
    rng = random.Random(seed)
    lexicon = ["".join(rng.choices("abcdeé天", k=rng.randint(1, 4))) for _ in range(12)]
    return " ".join(rng.choice(lexicon) for _ in range(count))


def as_ids(text: str) -> tuple[np.ndarray, str]:
    alphabet = "".join(sorted(set(text)))
    return np.array([alphabet.index(c) for c in text], dtype=np.uint8), alphabet


def kneser_ney_by_definition(train: str, held: str, vocab_size: int, n: int) -> float:
    """With dictionaries, one character at a time; before the text stand symbols of its own."""
    padded = ["^"] * n + list(train)
    counts = [Counter() for _ in range(n + 1)]  # by the length of the gram
    for i in range(n, len(padded)):
        for k in range(1, n + 1):
            gram = tuple(padded[i - k + 1 : i + 1])
            counts[k][gram] += 1
    for k in range(1, n):  # shorter ones count their different predecessors
        before = defaultdict(set)
        for gram in counts[k + 1]:
            before[gram[1:]].add(gram[0])
        counts[k] = Counter({gram: len(kinds) for gram, kinds in before.items()})

    def p(context: tuple, c: str) -> float:
        k = len(context) + 1
        lower = p(context[1:], c) if context else 1 / vocab_size
        successors = {g: v for g, v in counts[k].items() if g[:-1] == context}
        if not successors:
            return lower
        once = sum(v == 1 for v in counts[k].values())
        twice = sum(v == 2 for v in counts[k].values())
        d = once / (once + 2 * twice) if once and twice else 0.5
        total = sum(successors.values())
        own = max(counts[k][(*context, c)] - d, 0)
        return (own + d * len(successors) * lower) / total

    text = padded + list(held)
    begin = len(padded)
    losses = [-math.log(p(tuple(text[i - n + 1 : i]), text[i])) for i in range(begin, len(text))]
    return sum(losses) / len(losses)


@pytest.mark.parametrize("text", [words(60), words(60, seed=2), "ab" * 80, "aaaaaaaaab"])
def test_kneser_ney_is_its_definition(text):
    ids, alphabet = as_ids(text)
    split = len(ids) * 4 // 5
    losses = kneser_ney(ids, split, len(alphabet), max_order=4)
    for n, loss in enumerate(losses, 1):
        expected = kneser_ney_by_definition(text[:split], text[split:], len(alphabet), n)
        assert loss == pytest.approx(expected, abs=1e-9)


def test_kneser_ney_probabilities_add_up_to_one_whatever_comes_next():
    ids, alphabet = as_ids(words(80))
    split = len(ids) - 1
    for order in range(1, 6):
        total = 0.0
        for c in range(len(alphabet)):
            losses = kneser_ney(np.append(ids[:split], c), split, len(alphabet), order)
            total += math.exp(-losses[-1]) if len(losses) == order else math.nan
        if not math.isnan(total):
            assert total == pytest.approx(1)


def test_characters_never_seen_in_training_cost_something_finite():
    ids, alphabet = as_ids("ab" * 50 + "xyz")
    losses = kneser_ney(ids, 100, len(alphabet))
    assert all(math.log(2) < loss < 20 for loss in losses)


def test_compressors_pay_for_what_the_held_out_text_adds():
    text = words(3000)
    ids, alphabet = as_ids(text)
    split = len(ids) * 9 // 10
    found = measure_baselines(ids, alphabet, (0, split), (split, len(ids)))
    nats = {y.name: y.nats for y in found.figures}
    before, whole = text[:split].encode(), text.encode()
    by_hand = (len(bz2.compress(whole)) - len(bz2.compress(before))) * 8 * math.log(2)
    assert nats["bzip2"] == pytest.approx(by_hand / (len(text) - split))
    assert (found.train, found.held) == (split, len(text) - split)
    assert nats["uniform"] == pytest.approx(math.log(len(alphabet)))
    assert [y.nats for y in found.figures] == sorted(y.nats for y in found.figures)
    # a lexicon of twelve words: whoever learns from the text is far below the unigram
    assert max(v for k, v in nats.items() if k not in ("uniform", "unigram")) < nats["unigram"]


def test_a_text_that_repeats_the_training_text_costs_a_compressor_next_to_nothing():
    rng = random.Random(0)
    text = "".join(rng.choices("abcdefgh", k=60_000))
    ids, alphabet = as_ids(text + text[:5000])
    nats = {
        y.name: y.nats
        for y in measure_baselines(ids, alphabet, (0, len(text)), (len(text), len(ids))).figures
    }
    assert nats["xz"] < 0.05 < 1 < nats["bzip2"] + 1
    assert nats["unigram"] == pytest.approx(math.log(8), abs=0.01)


def test_only_the_end_of_a_long_training_text_and_the_start_of_a_long_held_out_one_count(
    monkeypatch,
):
    monkeypatch.setattr(baselines, "TRAIN_BYTES", 1000)
    monkeypatch.setattr(baselines, "HELD_BYTES", 300)
    ids, alphabet = as_ids("天" * 4000 + words(1000))
    found = measure_baselines(ids, alphabet, (0, 6000), (6000, len(ids)))
    assert 400 < found.train < 900  # of two to three bytes each
    assert 100 < found.held < 300
    n = found.held
    again = measure_baselines(ids, alphabet, (6000 - found.train, 6000), (6000, 6000 + n))
    assert [(y.name, y.nats) for y in again.figures] == [(y.name, y.nats) for y in found.figures]


def test_the_text_as_bytes_is_the_text():
    text = "añ天🙂\n"
    ids, alphabet = as_ids(text)
    assert ids_to_bytes(ids, alphabet) == text.encode()


@pytest.fixture
def encoded(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text(words(2000), encoding="utf-8")
    return encode_files([file], tmp_path / "cache")


def test_figures_are_kept_beside_the_encoded_text_for_each_pair_of_splits(encoded, monkeypatch):
    first = cached_baselines(encoded, (0, 4000), (4000, 5000))
    other = cached_baselines(encoded, (0, 3000), (3000, 4000))
    monkeypatch.setattr(baselines, "measure_baselines", None)  # no need to measure again
    assert cached_baselines(encoded, (0, 4000), (4000, 5000)) == first != other
    assert cached_baselines(encoded, (0, 3000), (3000, 4000)) == other


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"1: 0-4000, 4000-5000": 7}'])
def test_a_damaged_cache_is_measured_anew(encoded, tmp_path, damage):
    bounds = (0, 4000), (4000, 5000)
    first = cached_baselines(encoded, *bounds)
    (file,) = tmp_path.glob("cache/*/yardsticks.json")
    file.write_text(damage)
    again = cached_baselines(encoded, *bounds)
    assert [(y.name, y.nats) for y in again.figures] == [(y.name, y.nats) for y in first.figures]
    assert len(json.loads(file.read_text())) == 1
    assert not list(tmp_path.glob("cache/*/*.part"))


def test_without_pyppmd_its_line_says_what_to_install_and_a_later_run_measures_it(
    encoded, monkeypatch
):
    bounds = (0, 4000), (4000, 5000)
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name == "pyppmd":
            raise ModuleNotFoundError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    lines = baseline_table(cached_baselines(encoded, *bounds))
    assert "pip install" in lines[-1]
    assert "PPMd" in lines[-1]
    monkeypatch.setattr(builtins, "__import__", real)
    assert all(y.nats for y in cached_baselines(encoded, *bounds).figures)


def test_the_network_stands_in_the_table_where_its_figure_puts_it(encoded):
    found = cached_baselines(encoded, (0, 4000), (4000, 5000))
    nats = sorted(y.nats for y in found.figures)
    middle = (nats[1] + nats[2]) / 2
    lines = baseline_table(found, ("this network", middle))
    assert lines[3].startswith("this network")
    assert f"{middle:.4f}" in lines[3]
    assert lines[3].endswith("<-")
