"""Laws of the baselines. References: Kneser-Ney by its definition, compressors called directly."""

import builtins
import bz2
import json
import math
import random
from collections import Counter, defaultdict

import numpy as np
import pytest

from lightning_app.data.encoding import cache_folder, encode_files
from lightning_app.evaluation import baselines
from lightning_app.evaluation.baselines import (
    baseline_table,
    best_compressor,
    cached_baselines,
    ids_to_bytes,
    kneser_ney,
    measure_baselines,
    stored_baselines,
)


def words(count: int, seed: int = 1) -> str:
    rng = random.Random(seed)
    lexicon = ["".join(rng.choices("abcdeé天", k=rng.randint(1, 4))) for _ in range(12)]
    return " ".join(rng.choice(lexicon) for _ in range(count))


def as_ids(text: str) -> tuple[np.ndarray, str]:
    alphabet = "".join(sorted(set(text)))
    return np.array([alphabet.index(c) for c in text], dtype=np.uint8), alphabet


def kneser_ney_by_definition(train: str, held: str, vocab_size: int, n: int) -> float:
    """With dictionaries, one character at a time; the text is preceded by padding symbols."""
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
        counts[k] = Counter({gram: len(distinct) for gram, distinct in before.items()})

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
def test_kneser_ney_agrees_with_its_definition(text):
    ids, alphabet = as_ids(text)
    split = len(ids) * 4 // 5
    losses = kneser_ney(ids, split, len(alphabet), max_order=4)
    for n, loss in enumerate(losses, 1):
        expected = kneser_ney_by_definition(text[:split], text[split:], len(alphabet), n)
        assert loss == pytest.approx(expected, abs=1e-9)


def test_kneser_ney_probabilities_of_all_next_characters_add_up_to_one():
    ids, alphabet = as_ids(words(80))
    split = len(ids) - 1
    for order in range(1, 6):
        total = 0.0
        for c in range(len(alphabet)):
            losses = kneser_ney(np.append(ids[:split], c), split, len(alphabet), order)
            total += math.exp(-losses[-1]) if len(losses) == order else math.nan
        if not math.isnan(total):
            assert total == pytest.approx(1)


def test_characters_that_training_text_lacks_have_a_finite_loss():
    ids, alphabet = as_ids("ab" * 50 + "xyz")
    losses = kneser_ney(ids, 100, len(alphabet))
    assert all(math.log(2) < loss < 20 for loss in losses)


def test_a_compressors_loss_is_the_size_that_the_held_out_text_adds():
    text = words(3000)
    ids, alphabet = as_ids(text)
    split = len(ids) * 9 // 10
    found = measure_baselines(ids, alphabet, (0, split), (split, len(ids)))
    nats = {b.name: b.nats for b in found.results}
    before, both = text[:split].encode(), text.encode()
    by_hand = (len(bz2.compress(both)) - len(bz2.compress(before))) * 8 * math.log(2)
    assert nats["bzip2"] == pytest.approx(by_hand / (len(text) - split))
    assert (found.train, found.held) == (split, len(text) - split)
    assert nats["uniform"] == pytest.approx(math.log(len(alphabet)))
    assert [b.nats for b in found.results] == sorted(b.nats for b in found.results)
    # with a lexicon of twelve words, all others are far below the unigram model
    assert max(v for k, v in nats.items() if k not in ("uniform", "unigram")) < nats["unigram"]


def test_a_repetition_of_the_training_text_costs_a_compressor_almost_nothing():
    rng = random.Random(0)
    text = "".join(rng.choices("abcdefgh", k=60_000))
    ids, alphabet = as_ids(text + text[:5000])
    nats = {
        b.name: b.nats
        for b in measure_baselines(ids, alphabet, (0, len(text)), (len(text), len(ids))).results
    }
    assert nats["xz"] < 0.05 < 1 < nats["bzip2"] + 1
    assert nats["unigram"] == pytest.approx(math.log(8), abs=0.01)


def test_of_long_texts_the_end_of_the_training_text_and_the_start_of_the_held_out_one_are_used(
    monkeypatch,
):
    monkeypatch.setattr(baselines, "MAX_TRAIN_BYTES", 1000)
    monkeypatch.setattr(baselines, "MAX_HELD_OUT_BYTES", 300)
    ids, alphabet = as_ids("天" * 4000 + words(1000))
    found = measure_baselines(ids, alphabet, (0, 6000), (6000, len(ids)))
    assert 400 < found.train < 900  # of two to three bytes each
    assert 100 < found.held < 300
    n = found.held
    again = measure_baselines(ids, alphabet, (6000 - found.train, 6000), (6000, 6000 + n))
    assert [(b.name, b.nats) for b in again.results] == [(b.name, b.nats) for b in found.results]


@pytest.mark.parametrize("text", ["ab", "the quick brown fox jumps over the l\n", "a" * 300])
def test_of_a_short_text_no_compressor_is_measured_and_no_loss_is_below_0(text):
    ids, alphabet = as_ids(text)
    found = measure_baselines(ids, alphabet, (0, len(ids) - 1), (len(ids) - 1, len(ids)))
    assert not any("-" in str(b.nats) for b in found.results if b.nats is not None)
    unmeasured = [b for b in found.results if b.nats is None]
    assert [b.note for b in unmeasured] == ["not measured on fewer than 500 characters"] * 3


def test_ids_become_the_bytes_of_the_text():
    text = "añ天🙂\n"
    ids, alphabet = as_ids(text)
    assert ids_to_bytes(ids, alphabet) == text.encode()
    ids, alphabet = as_ids(text.encode().decode("latin-1"))
    assert ids_to_bytes(ids, alphabet, "byte") == text.encode()


@pytest.fixture
def encoded(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text(words(2000), encoding="utf-8")
    return encode_files([file], tmp_path / "cache")


def test_results_are_stored_for_each_pair_of_splits(encoded, monkeypatch):
    first = cached_baselines(encoded, (0, 4000), (4000, 5000))
    other = cached_baselines(encoded, (0, 3000), (3000, 4000))
    monkeypatch.setattr(baselines, "measure_baselines", None)  # a call would raise
    assert cached_baselines(encoded, (0, 4000), (4000, 5000)) == first != other
    assert cached_baselines(encoded, (0, 3000), (3000, 4000)) == other


def test_the_best_compressor_is_the_best_of_all_baselines_that_compress(encoded):
    everything = cached_baselines(encoded, (0, 4000), (4000, 5000)).results
    names = ("bzip2", "xz", "PPMd, order 6")
    best = best_compressor(encoded, (0, 4000), (4000, 5000))
    assert (best.name, best.nats) == next((b.name, b.nats) for b in everything if b.name in names)
    assert best_compressor(encoded, (0, 4000), (4000, 4020)) is None  # too short to measure


def test_stored_results_are_read_without_the_text(encoded, tmp_path):
    folder, bounds = cache_folder(tmp_path / "cache", encoded.fingerprint), ((0, 40), (40, 90))
    assert stored_baselines(folder, *bounds) is None
    measured = cached_baselines(encoded, *bounds)
    assert stored_baselines(folder, *bounds) == measured
    assert stored_baselines(folder, (0, 40), (40, 80)) is None


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"2: 0-4000, 4000-5000": 7}'])
def test_a_damaged_cache_is_measured_again(encoded, tmp_path, damage):
    bounds = (0, 4000), (4000, 5000)
    first = cached_baselines(encoded, *bounds)
    (file,) = tmp_path.glob("cache/*/baselines.json")
    file.write_text(damage)
    again = cached_baselines(encoded, *bounds)
    assert [(b.name, b.nats) for b in again.results] == [(b.name, b.nats) for b in first.results]
    assert len(json.loads(file.read_text())) == 1
    assert not list(tmp_path.glob("cache/*/*.part"))


def test_without_pyppmd_its_row_says_what_to_install_and_a_later_run_measures_it(
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
    assert "pip install -e '.[baselines]'" in lines[-1]
    assert "PPMd" in lines[-1]
    monkeypatch.setattr(builtins, "__import__", real)
    assert all(b.nats for b in cached_baselines(encoded, *bounds).results)


def test_the_network_is_in_the_table_at_the_place_of_its_loss(encoded):
    found = cached_baselines(encoded, (0, 4000), (4000, 5000))
    nats = sorted(b.nats for b in found.results)
    middle = (nats[1] + nats[2]) / 2
    lines = baseline_table(found, ("this network", middle))
    assert lines[3].startswith("this network")
    assert f"{middle:.4f}" in lines[3]
    assert lines[3].endswith("<-")
