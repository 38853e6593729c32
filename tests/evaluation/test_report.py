"""Laws of the report: its numbers by their definitions, and a page without external files."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lightning_app.data.tokenizer import Tokenizer
from lightning_app.evaluation import report
from lightning_app.evaluation.report import (
    PASSAGE_LENGTH,
    Scores,
    calibration,
    character_class,
    collect_scores,
    displayed_alphabet,
    highest_loss_passages,
    loss_by_class,
    loss_by_context,
    report_page,
)
from lightning_app.model.gpt import GPT, GPTConfig

ALPHABET = "".join(sorted("\n Ab1&<.é"))


def network() -> GPT:
    torch.manual_seed(0)
    sizes = {"block_size": 12, "n_layer": 1, "n_head": 2, "n_embd": 16}
    gpt = GPT(GPTConfig(vocab_size=len(ALPHABET), **sizes)).eval()
    for p in gpt.parameters():
        torch.nn.init.normal_(p, mean=float(p.ndim == 1), std=0.5)
    return gpt


def batches(n: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    torch.manual_seed(1)
    found = []
    for _ in range(n):
        idx, targets = torch.randint(len(ALPHABET), (2, 3, 12))
        targets[:, :4] = -1  # as with sliding windows
        found.append((idx, targets))
    return found


def scores(losses: list[float], targets: list[int] | None = None) -> Scores:
    n = len(losses)
    targets = np.array(targets if targets is not None else [0] * n)
    zeros = np.zeros(n)
    return Scores(targets, np.array(losses), zeros.astype(int), zeros, zeros.astype(bool))


@pytest.mark.parametrize(("first", "size"), [(0, 1), (0, 2), (0, 256), (40, 100)])
def test_loss_by_context_is_the_mean_of_each_range(first, size):
    positions = np.random.default_rng(0).integers(first, size, 5000)
    losses = np.random.default_rng(1).random(5000)
    found = loss_by_context(Scores(positions, losses, positions, losses, losses > 0))
    ends = [*found[0][1:], size + 1]
    for begin, end, mean in zip(found[0], ends, found[1], strict=True):
        assert mean == pytest.approx(
            losses[(positions + 1 >= begin) & (positions + 1 < end)].mean()
        )
    assert found[0][0] <= first + 1
    assert len(found[0]) <= 2 * np.log2(size) + 1


@torch.no_grad()
def test_every_scored_character_is_collected_in_reading_order():
    gpt, some = network(), batches(4)
    found = collect_scores(gpt, some)
    p = torch.cat([gpt(idx).softmax(-1) for idx, _ in some])  # (12, 12, V)
    targets = torch.cat([t for _, t in some])
    i = 0
    for row in range(12):
        for position in range(4, 12):
            expected = p[row, position]
            assert found.targets[i] == targets[row, position]
            assert found.positions[i] == position
            assert found.losses[i] == pytest.approx(
                -float(expected[targets[row, position]].log()), abs=1e-5
            )
            assert found.confidence[i] == pytest.approx(float(expected.max()), abs=1e-6)
            assert found.correct[i] == (expected.argmax() == targets[row, position])
            i += 1
    assert i == len(found.losses)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a", "letter, inside a word"),
        (" a", "letter, first of a word"),
        (" A", "capital, first of a word"),
        ("xA", "capital, inside a word"),
        ("é天", "letter, inside a word"),
        ("a\n", "line end"),
        ("\na", "letter, first of a word"),
        (".\t", "space"),
        ("a7", "digit"),
        ("a.", "punctuation and symbols"),
        ("\ufffda", "letter, inside a word"),
    ],
)
def test_classes_of_characters(text, expected):
    previous = text[0] if len(text) > 1 else "x"
    assert character_class(previous, text[-1]) == expected


def test_bytes_of_non_ascii_characters_are_not_displayed_as_latin_1():
    assert displayed_alphabet(Tokenizer("a©Ã", "byte")) == "a\ufffd\ufffd"
    assert (
        character_class("a", displayed_alphabet(Tokenizer("a©Ã", "byte"))[1])
        == "byte of a non-ASCII character"
    )
    assert displayed_alphabet(Tokenizer("aé", "char")) == "aé"


def test_loss_by_class_adds_up_and_the_largest_is_first():
    at = {c: i for i, c in enumerate(ALPHABET)}
    found = loss_by_class(scores([1.0, 2.0, 5.0, 0.5], [at[c] for c in "bb1 "]), ALPHABET)
    assert found[:2] == [("digit", 1, 5.0), ("letter, inside a word", 1, 2.0)]
    assert sum(n for _, n, _ in found) == 4
    assert sum(n * loss for _, n, loss in found) == pytest.approx(8.5)


def test_passages_with_the_highest_loss_do_not_overlap():
    losses = np.ones(2000)
    losses[300:380] = 3.0
    losses[900:980] = 5.0
    found = highest_loss_passages(scores(losses.tolist()))
    assert found[:2] == [(900, 5.0), (300, 3.0)]
    positions = sorted(at for at, _ in found)
    assert (np.diff(positions) >= PASSAGE_LENGTH).all()
    assert highest_loss_passages(scores([1.0] * 79)) == []


def test_calibration_agrees_with_its_definition():
    rng = np.random.default_rng(0)
    n = 500
    confidence, right = rng.uniform(0, 1, n), rng.uniform(0, 1, n) < 0.4
    zeros = np.zeros(n, dtype=int)
    _, _, count, error = calibration(Scores(zeros, zeros, zeros, confidence, right))
    expected = 0.0
    for b in range(10):
        inside = (confidence >= b / 10) & (confidence < (b + 1) / 10)
        gap = abs(confidence[inside].mean() - right[inside].mean())
        expected += inside.mean() * gap
        assert count[b] == inside.sum()
    assert error == pytest.approx(expected)


def test_the_page_needs_no_other_files_and_escapes_the_text(monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(report, "SAMPLE_LENGTH", 200)
    unigram = np.ones(len(ALPHABET)) / len(ALPHABET)
    trained = SimpleNamespace(gpt=network(), tokenizer=Tokenizer(ALPHABET), unigram=unigram)
    train = np.random.default_rng(0).integers(len(ALPHABET), size=500)
    made = report_page("a <run>", trained, collect_scores(trained.gpt, batches(10)), train)
    assert "<h1>a &lt;run&gt;</h1>" in made
    assert made.count("<svg") == 2
    addresses = re.findall(r"(?:src|href)=[\"'](?!#)([^\"']*)", made)
    assert addresses == []
    assert "<script" not in made
    for name in ("Does more context help", "calibration error", "occur in the training text"):
        assert name in made
    assert "&lt;</span>" in made or "&amp;</span>" in made  # characters of the text, escaped
