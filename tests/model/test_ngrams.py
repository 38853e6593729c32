"""Laws of the n-gram counts: the shares of each position, what they add to embedding and logits."""

import math
from collections import Counter

import numpy as np
import pytest
import torch

from lightning_app.errors import UserError
from lightning_app.model import ngrams
from lightning_app.model.gpt import GPTConfig
from lightning_app.model.ngram_counting import PARTS
from lightning_app.model.ngrams import NgramCounts
from tests.helpers import GPT_SIZES, assert_close, filled_network, random_ids
from tests.model.test_ngram_counting import hash_of

ROWS = (5, 70, 0, 200)  # of 2, 3 and 5 characters
SIZES = (2, 3, 5)
TEXT = np.random.default_rng(0).integers(11, size=300)


def counted(rows=ROWS, text=TEXT, size=4, vocab_size=11) -> NgramCounts:
    torch.manual_seed(0)
    tables = NgramCounts(rows, size, vocab_size)
    tables.count(text)
    return tables


def vectors(tables: NgramCounts, *arguments: torch.Tensor) -> torch.Tensor:
    return tables.vectors(tables.look_up(*arguments))


def share(count: int, total: int) -> float:
    return math.log(1 + 100 * count / (total + 2)) / math.log(101)


def expected_shares(
    tables: NgramCounts,
    text,
    window: list[int],
    left_out_part: int | None = None,
) -> torch.Tensor:
    """The shares (2 N, V) at the end of a window of ids, by the definition: for each n the counts
    of what followed in `text`, where n-grams share a row, without those that end in a part of it.
    Then those of what followed before in the window."""
    N = len(tables.rows)
    shares = torch.zeros(2 * N, tables.vocab_size)
    for i, (n, rows) in enumerate(zip(SIZES, tables.rows, strict=True)):
        if len(window) < n:
            break
        row = hash_of([c + 1 for c in window[-n:]]) % rows
        followed = Counter(
            int(text[t + n])
            for t in range(len(text) - n)
            if hash_of((text[t : t + n] + 1).tolist()) % rows == row
            and (t + n - 1) * PARTS // len(text) != left_out_part
        )
        for character, count in followed.items():
            shares[i, character] = round(share(count, sum(followed.values())) * 255) / 255
        so_far = Counter(
            window[t + n] for t in range(len(window) - n) if window[t : t + n] == window[-n:]
        )
        for character, count in so_far.items():
            shares[N + i, character] = share(count, sum(so_far.values()))
    return shares


def expected_vector(tables: NgramCounts, *arguments) -> torch.Tensor:
    """The sum of the vectors, each times its share."""
    return expected_shares(tables, *arguments).flatten() @ tables.weight


@torch.no_grad()
@pytest.mark.parametrize("dense", [True, False])
def test_the_output_is_the_weighted_sum_of_the_vectors_of_what_followed(dense, monkeypatch):
    monkeypatch.setattr(ngrams, "DENSE_SIZE", 10**6 if dense else 0)
    tables = counted()
    idx = torch.randint(3, (2, 12), generator=torch.Generator().manual_seed(0))
    output = vectors(tables, idx)
    for row in range(2):
        for t in range(12):
            assert_close(output[row, t], expected_vector(tables, TEXT, idx[row, : t + 1].tolist()))


@torch.no_grad()
@pytest.mark.parametrize("dense", [True, False])
def test_the_logits_are_the_shares_times_the_gates(dense, monkeypatch):
    monkeypatch.setattr(ngrams, "DENSE_SIZE", 10**6 if dense else 0)
    tables = counted()
    torch.nn.init.normal_(tables.gates)
    idx = torch.randint(3, (2, 12), generator=torch.Generator().manual_seed(0))
    x = torch.randn(2, 12, 4, generator=torch.Generator().manual_seed(1))
    output = tables.logits(tables.look_up(idx), x)
    for row in range(2):
        for t in range(12):
            shares = expected_shares(tables, TEXT, idx[row, : t + 1].tolist())
            assert_close(output[row, t], tables.gates @ x[row, t] @ shares)


@torch.no_grad()
def test_with_the_place_of_a_window_its_part_of_the_text_is_not_counted():
    tables = counted()
    begins = torch.tensor([0, 18, 19, 150, 281])  # a part is 18.75 characters
    windows = torch.stack([torch.from_numpy(TEXT[b : b + 19]) for b in begins])
    output = vectors(tables, windows, None, begins)
    for row, begin in enumerate(begins.tolist()):
        part = begin * PARTS // len(TEXT)
        for t in range(19):
            known = windows[row, : t + 1].tolist()
            assert_close(output[row, t], expected_vector(tables, TEXT, known, part))


def test_both_ways_to_add_up_have_the_same_gradients(monkeypatch):
    gradients = []
    for limit in (10**6, 0):
        monkeypatch.setattr(ngrams, "DENSE_SIZE", limit)
        tables = counted()
        idx = torch.from_numpy(TEXT[:40])[None]
        x = torch.ones(1, 39, 4, requires_grad=True)
        torch.nn.init.normal_(tables.gates, generator=torch.Generator().manual_seed(2))
        shares = tables.look_up(idx[:, :-1])
        loss = tables.vectors(shares).square().sum() + tables.logits(shares, x).square().sum()
        gradients.append(torch.autograd.grad(loss, (tables.weight, tables.gates, x)))
    for a, b in zip(*gradients, strict=True):
        assert a.abs().sum() > 0
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_tables_that_have_counted_nothing_have_no_effect():
    gpt = filled_network(ngram_rows=(50, 1000))
    gpt.ngrams.allocate(0)
    plain = filled_network()
    plain.load_state_dict(gpt.state_dict(), strict=False)
    idx = random_ids(gpt, 2, 6)
    assert not gpt.ngrams.has_counted
    assert torch.equal(gpt(idx), plain(idx))


@torch.no_grad()
def test_with_code_points_the_rows_do_not_depend_on_the_alphabet():
    text, found = "abcabbacab" * 5, []
    for alphabet in ("abc", " abxc"):
        tables = NgramCounts((30, 60), 4, len(alphabet))
        tables.use_code_points(alphabet)
        tables.count(np.array([alphabet.index(c) for c in text]))
        characters = "".join(alphabet[i] for i in tables.characters)
        found.append((tables.starts.tolist(), tables.counts.tolist(), characters))
    assert found[0] == found[1]


def test_a_state_dict_brings_tables_of_any_size():
    source, target = counted(), counted(text=TEXT[:50])
    target.load_state_dict(source.state_dict())
    idx = torch.randint(11, (2, 9))
    assert torch.equal(vectors(source, idx), vectors(target, idx))


@pytest.mark.parametrize(
    ("name", "place", "value", "named"),
    [
        ("starts", 0, 1, "cover"),
        ("starts", -1, 10**6, "cover"),
        ("starts", 3, 10**6, "cover"),
        ("characters", 5, 11, "alphabet"),
        ("counts", 5, 0, "below 1"),
    ],
)
def test_a_state_dict_with_tables_that_cannot_be_read_is_refused(name, place, value, named):
    state = counted().state_dict()
    state[name][place] = value
    with pytest.raises(ValueError, match=named):
        NgramCounts(ROWS, 4, 11).load_state_dict(state)


@pytest.mark.parametrize(
    ("rows", "named"), [((-1,), "-1 rows"), ((2**24 + 1,), "16777217 rows"), ((8,) * 17, "17 tab")]
)
def test_tables_that_cannot_be_built_are_refused(rows, named):
    with pytest.raises(UserError, match=named):
        GPTConfig(**GPT_SIZES, ngram_rows=rows)


def test_without_rows_there_are_no_counts():
    assert GPTConfig(**GPT_SIZES, ngram_rows=[0, 0]) == GPTConfig(**GPT_SIZES, ngram_rows=None)
