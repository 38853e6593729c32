"""Laws of which characters make a batch, checked by brute force on small texts."""

import numpy as np
import pytest

from lightning_app.data.windows import (
    check_window_schedule,
    count_eval_windows,
    eval_batch,
    mean_window_size,
    permute,
    random_keys,
    read_windows,
    train_starts,
    window_size,
)
from lightning_app.errors import UserError

# (characters, block_size): the smallest text, one that is a window and a bit, whole and broken
# multiples, a block of one character.
TEXTS = [(2, 1), (5, 1), (9, 8), (12, 8), (15, 8), (16, 8), (17, 8), (64, 8), (67, 8), (100, 7)]


def order(n: int, key: int) -> list[int]:
    i = np.arange(n, dtype=np.uint64)
    return permute(i, np.full(n, key, dtype=np.uint64), n).tolist()


def epochs(seed: int, n: int, block_size: int, count: int) -> np.ndarray:
    """Window starts, one row an epoch: as many windows as fit wherever the first may begin."""
    per_epoch = max(1, (n - block_size) // block_size)
    return train_starts(seed, 0, per_epoch, block_size, n, count).reshape(count, per_epoch)


# Keys and permutations.


def test_keys_differ_with_the_seed_with_each_part_and_with_their_order():
    i = np.arange(2000)
    many = [random_keys(seed, i) for seed in (0, 1, -1, 2**63, 2**64 - 2)] + [
        random_keys(0, i, 1),
        random_keys(0, 1, i),
    ]
    distinct = np.unique(np.concatenate(many))
    assert len(distinct) == 7 * 2000 - 1  # keys(0, 1, 1) is there twice


def test_keys_of_an_array_are_those_of_its_elements():
    together = random_keys(7, np.arange(5), 3)
    assert together.tolist() == [random_keys(7, i, 3).item() for i in range(5)]


@pytest.mark.parametrize("n", [*range(1, 34), 63, 64, 65, 255, 256, 257, 1000, 4096, 4097])
def test_permute_is_a_bijection(n):
    for key in (0, 1, 2**64 - 1):
        assert sorted(order(n, key)) == list(range(n))


def test_permutations_differ_with_the_key_and_are_no_rotation():
    found = {tuple(order(100, key)) for key in range(50)}
    assert len(found) == 50
    for permuted in found:
        assert len({(place - i) % 100 for i, place in enumerate(permuted)}) > 40


def test_every_order_of_four_is_some_keys_permutation():
    assert len({tuple(order(4, key)) for key in range(500)}) == 24


def test_permute_sends_a_number_to_every_place_about_equally_often():
    places = permute(
        np.zeros(20_000, dtype=np.uint64), random_keys(3, np.arange(20_000)), 10
    )  # 2,000 each on average, give or take 42
    assert np.abs(np.bincount(places.astype(int), minlength=10) - 2000).max() < 200


def test_permute_needs_no_memory_for_the_numbers_it_is_not_asked_about():
    n = 10**13 + 7
    i = np.arange(n - 1000, n, dtype=np.uint64)
    places = permute(i, np.full(1000, 5, dtype=np.uint64), n)
    assert len(np.unique(places)) == 1000
    assert places.max() < n
    assert places.min() < n // 2


# Training.


@pytest.mark.parametrize(("n", "block_size"), TEXTS)
def test_an_epochs_windows_lie_side_by_side_each_once_and_inside_the_text(n, block_size):
    for starts in epochs(1, n, block_size, 20):
        assert (np.diff(np.sort(starts)) == block_size).all()
        assert starts.min() >= 0
        assert starts.max() + block_size < n  # the last target


@pytest.mark.parametrize(("n", "block_size"), TEXTS)
def test_an_epoch_leaves_out_less_than_two_windows(n, block_size):
    covered = epochs(1, n, block_size, 1).size * block_size
    assert 0 <= n - 1 - covered < 2 * block_size


@pytest.mark.parametrize(("n", "block_size"), TEXTS)
def test_every_offset_occurs_and_every_character_but_the_first_is_a_target(n, block_size):
    starts = epochs(1, n, block_size, 400)
    most = n - starts.shape[1] * block_size
    assert set(starts.min(axis=1).tolist()) == set(range(most))
    targets = starts.reshape(-1, 1) + 1 + np.arange(block_size)
    assert set(np.unique(targets).tolist()) == set(range(1, n))


def test_each_epoch_has_an_order_of_its_own():
    starts = epochs(1, 1000, 8, 30)
    orders = {tuple((row - row.min()) // 8) for row in starts}
    assert len(orders) == 30
    assert not any(list(o) == sorted(o) for o in orders)


def test_a_global_batch_is_the_same_alone_and_in_a_run_of_batches():
    together = train_starts(3, 5, 6, 8, 300, batches=40).reshape(40, 6)
    for j, batch in enumerate(together):
        assert train_starts(3, 5 + j, 6, 8, 300).tolist() == batch.tolist()


def test_the_stream_of_windows_does_not_depend_on_the_batch_size():
    assert (train_starts(3, 0, 4, 8, 300, 30) == train_starts(3, 0, 12, 8, 300, 10)).all()
    assert (train_starts(3, 6, 4, 8, 300, 3) == train_starts(3, 2, 12, 8, 300)).all()


def test_batches_across_the_end_of_an_epoch_are_the_two_epochs_windows():
    rows = epochs(4, 67, 8, 6).reshape(-1)  # 7 windows an epoch, not a multiple of 5
    assert (train_starts(4, 0, 5, 8, 67, 8) == rows[:40]).all()


def test_batches_differ_between_seeds():
    batches = {tuple(train_starts(seed, 0, 8, 8, 1000).tolist()) for seed in range(-5, 45)}
    assert len(batches) == 50


def test_the_smallest_text_is_one_window_always():
    assert train_starts(1, 0, 3, 8, 9, batches=4).tolist() == [0] * 12


def test_a_text_without_room_for_a_window_is_an_error():
    with pytest.raises(AssertionError):
        train_starts(1, 0, 3, 8, 8)


def test_starts_far_into_a_huge_text_are_exact_and_distinct():
    n = 10**13
    starts = train_starts(1, 10**6, 512, 1024, n)
    assert starts.dtype == np.int64
    assert len(np.unique(starts)) == 512
    assert starts.max() + 1024 < n
    assert starts.max() > n // 2


def test_windows_are_the_text_from_their_starts_and_one_character_on():
    ids = np.arange(200, dtype=np.uint8)
    starts = np.array([0, 17, 191])
    rows = read_windows(ids, starts, 8)
    assert rows.dtype == np.int64
    assert rows.tolist() == [list(range(s, s + 9)) for s in starts]


# Evaluation.


@pytest.mark.parametrize("block_size", [1, 2, 5, 8])
@pytest.mark.parametrize("overlap", [0, 0.5])
def test_every_character_of_a_split_is_scored_once_from_the_one_before_it(block_size, overlap):
    stride = max(1, block_size - int(block_size * overlap))
    n = 25
    ids = np.arange(100, 100 + n, dtype=np.uint8)  # an id tells its position
    for first in range(n):
        for last in range(first + 1, n + 1):
            rows = np.arange(count_eval_windows(first, last, stride))
            idx, targets, begins = eval_batch(ids, first, last, block_size, stride, rows)
            assert idx.shape == targets.shape == (len(rows), block_size)
            scored = targets >= 0
            assert targets[scored].tolist() == list(range(100 + max(first, 1), 100 + last))
            assert (idx[scored] == targets[scored] - 1).all()
            assert idx[:, 0].tolist() == (100 + begins).tolist()
            for row, at in zip(idx, targets, strict=True):  # how far a character can look back
                seen = [i for i, t in enumerate(at) if t >= 0]
                if seen:
                    missing = block_size - stride - seen[0]
                    assert missing <= 0 or row[0] == 100


def test_inside_a_window_inputs_are_consecutive_characters():
    ids = np.arange(50, dtype=np.uint8)
    idx, _, _ = eval_batch(ids, 10, 42, 8, 8, np.arange(4))
    assert (np.diff(idx, axis=1) == 1).all()


def test_an_empty_split_and_a_lone_first_character_have_no_windows():
    assert count_eval_windows(0, 0, 8) == 0
    assert count_eval_windows(0, 1, 8) == 0
    assert count_eval_windows(5, 5, 8) == 0
    assert count_eval_windows(5, 6, 8) == 1


def test_the_splits_together_score_the_whole_text_but_its_first_character():
    n, ids = 60, np.arange(60, dtype=np.uint8)
    scored = []
    for first, last in ((0, 41), (41, 53), (53, 60)):
        rows = np.arange(count_eval_windows(first, last, 8))
        targets = eval_batch(ids, first, last, 8, 8, rows)[1]
        scored += targets[targets >= 0].tolist()
    assert scored == list(range(1, n))


def test_padding_is_scored_nowhere_and_its_inputs_are_ids():
    ids = np.full(60, 7, dtype=np.uint16)
    last_window = count_eval_windows(20, 50, 8) - 1
    idx, targets, _ = eval_batch(ids, 20, 50, 8, 8, np.arange(last_window, last_window + 4))
    assert (targets[0] >= 0).tolist() == [True] * 6 + [False] * 2
    assert (targets[1:] == -1).all()
    assert (idx == 7).all()
    assert idx.dtype == targets.dtype == np.int64


# The window schedule.


def test_windows_grow_where_the_schedule_says_and_only_there():
    schedule = [[0, 0.25], [0.35, 0.5], [0.8, 1]]
    sizes = [window_size(step, 100, 64, schedule) for step in range(100)]
    assert sizes == [16] * 35 + [32] * 45 + [64] * 20
    assert {window_size(step, 100, 64, [[0, 1]]) for step in range(100)} == {64}


def test_a_run_of_unknown_length_has_the_schedules_last_windows():
    assert window_size(0, -1, 64, [[0, 0.25], [0.8, 1]]) == 64


def test_the_mean_size_weighs_sizes_by_their_steps():
    assert mean_window_size(64, [[0, 0.25], [0.8, 1]]) == pytest.approx(0.8 * 16 + 0.2 * 64)
    assert mean_window_size(64, [[0.5, 0.5]]) == pytest.approx(0.5 * 64 + 0.5 * 32)


@pytest.mark.parametrize(
    "schedule", [[[0, 0.3]], [[0, 0]], [[0, 2]], [[0]], [[-1, 0.5]], [[0, 0.75]]]
)
def test_windows_that_do_not_divide_the_block_are_refused(schedule):
    with pytest.raises(UserError, match=r"--data\.window_schedule"):
        check_window_schedule(schedule, 64)
