"""Laws of the n-gram tables: the hash, and the rows that are read and learned."""

import pytest
import torch

from lightning_app.errors import UserError
from lightning_app.model.gpt import GPTConfig
from lightning_app.model.ngrams import NgramTables, ngram_hashes
from tests.helpers import GPT_SIZES, assert_close, filled_network, random_ids

# For engines in other languages: the hashes of the last 2, 3 and 4 codes at the end of each text.
TEST_VECTOR = {
    (1, 2, 3, 4): [432672342, 2151299066, 1298972373],
    (0, 0, 0, 98): [2458570891, 2556837939, 1485202456],
    (0x10FFFF, 101, 33, 0x5929): [4273396995, 178491501, 2848336528],
}


def hash_of(codes: list[int]) -> int:
    """The hash by its definition, of codes from the oldest to the newest."""
    h = 0
    for code in reversed(codes):
        h = (h ^ code) * 0x735A2D97 % 2**32
        h ^= h >> 15
    return h


@pytest.mark.parametrize(("codes", "hashes"), TEST_VECTOR.items())
def test_the_hash_is_that_of_the_test_vector(codes, hashes):
    assert [hash_of(list(codes[-n:])) for n in (2, 3, 4)] == hashes
    assert [int(h) for h in ngram_hashes(torch.tensor([codes]), 3)] == hashes


def test_every_position_has_the_hash_of_the_codes_up_to_it():
    codes = torch.randint(1, 2**20, (3, 12), generator=torch.Generator().manual_seed(0))
    codes[:, :4] = 0  # before the text
    for n, hashes in enumerate(ngram_hashes(codes, 4), 2):
        for row in range(3):
            expected = [hash_of(codes[row, t - n + 1 : t + 1].tolist()) for t in range(4, 12)]
            assert hashes[row].tolist() == expected


def test_ngrams_are_spread_evenly_over_the_rows():
    a, b = torch.meshgrid(torch.arange(1, 129), torch.arange(1, 129), indexing="ij")
    codes = torch.stack((a.flatten(), b.flatten()), dim=1)  # all 16,384 pairs of 128 characters
    (hashes,) = ngram_hashes(codes, 1)
    counts = torch.bincount((hashes % 2048).flatten(), minlength=2048)
    assert counts.float().var() < 2 * 8  # 8 in the mean; a random function has a variance of 8


@torch.no_grad()
def test_the_output_is_the_sum_of_one_row_of_each_table():
    tables = NgramTables((5, 70, 200), 4, vocab_size=11)
    torch.nn.init.normal_(tables.weight)
    codes = torch.cat((torch.zeros(2, 3, dtype=torch.long), torch.randint(1, 12, (2, 9))), dim=1)
    first = {2: 0, 3: 5, 4: 75}
    for row in range(2):
        for t in range(9):
            total = torch.zeros(4)
            for n, rows in zip((2, 3, 4), (5, 70, 200), strict=True):
                h = hash_of(codes[row, t + 3 - n + 1 : t + 3 + 1].tolist())
                total += tables.weight[first[n] + h % rows]
            assert_close(tables(codes)[row, t], total)


def test_the_tables_start_without_an_effect_and_their_gradient_has_the_rows_of_the_batch():
    gpt = filled_network(ngram_rows=(50, 1000))
    torch.nn.init.zeros_(gpt.ngrams.weight)
    plain = filled_network()
    plain.load_state_dict(gpt.state_dict(), strict=False)
    idx = random_ids(gpt, 2, 6)
    assert torch.equal(gpt(idx), plain(idx))
    gpt(idx).square().sum().backward()
    gradient = gpt.ngrams.weight.grad
    codes = torch.nn.functional.pad(idx + 1, (2, 0))
    assert gradient.is_sparse
    found = gradient.coalesce().indices()[0].tolist()
    assert found == sorted(set(gpt.ngrams.table_rows(codes).flatten().tolist()))


@torch.no_grad()
def test_with_code_points_the_tables_are_valid_for_another_alphabet():
    weight = torch.randn(90, 4)
    outputs = []
    for alphabet in ("abc", " abxc"):
        tables = NgramTables((30, 60), 4, len(alphabet))
        tables.use_code_points(alphabet)
        tables.weight.copy_(weight)
        ids = torch.tensor([[alphabet.index(c) for c in "abcabba"]])
        codes = torch.nn.functional.pad(tables.codes[ids], (2, 0))
        outputs.append(tables(codes))
    assert torch.equal(*outputs)


@pytest.mark.parametrize(
    ("rows", "named"), [((0,), "0 rows"), ((8, 2**24 + 1), "16777217 rows"), ((8,) * 17, "17 tab")]
)
def test_tables_that_cannot_be_built_are_refused(rows, named):
    with pytest.raises(UserError, match=named):
        GPTConfig(**GPT_SIZES, ngram_rows=rows)
