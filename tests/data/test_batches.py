"""Laws of the batches: the stream of training windows, and windows that score a text."""

from dataclasses import replace
from itertools import islice, pairwise

import numpy as np
import pytest
import torch

from lightning_app.data import windows
from lightning_app.data.batches import EvalBatches, TrainBatches, batches_per_pass
from lightning_app.data.name_replacement import NameReplacer
from lightning_app.data.windows import TrainStream, count_eval_windows, train_starts

IDS = np.arange(540, dtype=np.uint16)  # each occurs once, so a window tells where it lies
WHOLE = [[0.0, 1.0]]


def train_batches(
    k: int = 0,
    process: int = 0,
    schedule=WHOLE,
    max_steps: int = 100,
    length: int | None = None,
    ids: np.ndarray = IDS,
    cycle: int | None = None,
    replacer: NameReplacer | None = None,
    **of_stream,
) -> TrainBatches:
    """Batches of 4 windows of 8 characters, from micro-batch k on."""
    sizes = {"seed": 1, "characters": len(ids), "block_size": 8, "batch_size": 4} | of_stream
    stream = TrainStream(**sizes)
    return TrainBatches(
        ids, stream, process, schedule, max_steps, length, lambda: k, cycle, replacer
    )


def take(batches: TrainBatches, count: int) -> torch.Tensor:
    """The next batches, (count, B, 2, T)."""
    return torch.stack([torch.stack(batch, 1) for batch in islice(batches, count)])


# Training.


@pytest.mark.parametrize("k", [1, 7, 100])
def test_a_stream_entered_at_batch_k_reads_on_from_there(k):
    unbroken = take(train_batches(), k + 5)
    assert torch.equal(take(train_batches(k), 5), unbroken[k:])


@pytest.mark.parametrize("schedule", [WHOLE, [[0, 0.5]]])
def test_with_begins_a_batch_says_where_the_windows_of_block_size_begin(schedule):
    batches = replace(train_batches(schedule=schedule), with_begins=True)
    for step, (idx, _, begins) in enumerate(islice(batches, 6)):
        shift = step % 2 * 4 if idx.size(1) == 4 else 0  # in turns, the halves of each window
        assert IDS[begins + shift].tolist() == idx[:, 0].tolist()


def test_the_stream_does_not_depend_on_how_many_starts_are_computed_at_once(monkeypatch):
    many = take(train_batches(3), 30)
    for starts_per_call in (1, 4, 12):
        monkeypatch.setattr(windows, "STARTS_PER_CALL", starts_per_call)
        assert torch.equal(take(train_batches(3), 30), many)


def test_names_are_replaced_alike_wherever_the_stream_is_entered_and_in_whichever_process():
    text = "\n".join(f"{'ABCDE'[i // 80] * 3} and {'KLMNO'[i // 80] * 3}" for i in range(400))
    alphabet = "".join(sorted(set(text)))
    ids = np.array([alphabet.index(c) for c in text], dtype=np.uint8)
    replacer = NameReplacer(ids, alphabet, "char", 0.7, 1)
    unbroken = take(train_batches(ids=ids, replacer=replacer, batch_size=8), 40)
    x, y = unbroken.unbind(2)
    assert torch.equal(x[..., 1:], y[..., :-1])
    assert not torch.equal(unbroken, take(train_batches(ids=ids, batch_size=8), 40))
    later = take(train_batches(35, ids=ids, replacer=replacer, batch_size=8), 5)
    assert torch.equal(later, unbroken[35:])
    two = [
        take(train_batches(process=i, ids=ids, replacer=replacer, processes=2), 40)
        for i in range(2)
    ]
    assert torch.equal(torch.cat(two, 1), unbroken)


SIZES = [2] * 5 + [4] * 4 + [8] * 100  # of the windows of batch k, in a block of 8
SCHEDULE = [[0, 0.25], [0.05, 0.5], [0.09, 1]]  # the same, of 100 steps


@pytest.mark.parametrize("starts_per_call", [1, 24, 4096])
@pytest.mark.parametrize("first", [0, 2, 7])
def test_the_windows_of_batch_k_have_the_size_its_schedule_gives(
    monkeypatch, starts_per_call, first
):
    monkeypatch.setattr(windows, "STARTS_PER_CALL", starts_per_call)
    for process in range(2):
        batches = train_batches(first, process, SCHEDULE, processes=2)
        for k, (idx, targets) in enumerate(islice(batches, 12), first):
            parts = 8 // SIZES[k]
            group, part = k // parts * parts, k % parts
            starts = train_starts(1, group, 8, 8, 540, parts) + part * SIZES[k]
            mine = starts[process * 4 * parts : (process + 1) * 4 * parts]  # as many characters
            expected = mine[:, None] + np.arange(SIZES[k] + 1)
            assert idx.tolist() == expected[:, :-1].tolist()
            assert targets.tolist() == expected[:, 1:].tolist()


def test_where_the_length_of_the_run_is_not_known_windows_have_their_last_size():
    idx, _ = next(iter(train_batches(schedule=SCHEDULE, max_steps=-1)))
    assert idx.shape == (4, 8)


@pytest.mark.parametrize("size", [1, 2, 8])
@pytest.mark.parametrize(("processes", "accumulate"), [(1, 2), (2, 1), (2, 2), (1, 4)])
def test_a_step_reads_the_same_windows_however_they_are_shared(size, processes, accumulate):
    def steps(processes: int, accumulate: int, first: int = 0) -> list[list[list[int]]]:
        """The windows of steps, sorted, from step `first` on."""
        share = {"processes": processes, "accumulate": accumulate}
        share["batch_size"] = 8 // processes // accumulate
        streams = []
        for process in range(processes):
            batches = train_batches(first * accumulate, process, [[0, size / 8]], **share)
            streams.append([x.tolist() for x, _ in islice(batches, (12 - first) * accumulate)])
        micro = [[w for part in parts for w in part] for parts in zip(*streams, strict=True)]
        return [
            sorted(w for part in micro[i : i + accumulate] for w in part)
            for i in range(0, len(micro), accumulate)
        ]

    whole = steps(1, 1)
    assert steps(processes, accumulate) == whole
    assert steps(processes, accumulate, first=5) == whole[5:]


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_a_pass_of_short_windows_has_the_same_characters_as_one_of_long_ones(size):
    counts = []
    for window in (size, 8):
        batches = train_batches(schedule=[[0, window / 8]], batch_size=1)
        read = [x for x, _ in islice(batches, (540 - 8) // 8 // 8 * 8)]
        counts.append(np.bincount(torch.cat([x.flatten() for x in read]), minlength=540))
        assert all(len(x) == 8 // window for x in read)  # from so many places
    assert (counts[0] == counts[1]).all()


@pytest.mark.parametrize("k", [0, 4])
def test_a_cycle_repeats_the_first_batches(monkeypatch, k):
    monkeypatch.setattr(windows, "STARTS_PER_CALL", 16)  # 4 batches: no multiple of 3
    first = take(train_batches(), 3)
    for j, batch in enumerate(take(train_batches(k, cycle=3), 11), k):
        assert torch.equal(batch, first[j % 3])
    assert not torch.equal(first[0], first[1])


def test_a_pass_is_whole_steps_and_at_least_one():
    def length(**sizes) -> int:
        return batches_per_pass(train_batches(**sizes).stream)

    assert length() == 66 // 4  # there are (540 - 8) // 8 windows
    assert length(processes=2) == 66 // 8
    assert length(accumulate=3) == 66 // 12 * 3
    assert length(batch_size=1000, accumulate=2) == 2


def without_position(length: int) -> TrainBatches:
    batches = train_batches(length=length)
    batches.position = None
    return batches


def test_each_pass_without_a_position_begins_where_the_last_one_ended():
    loader = without_position(16)
    assert len(loader) == 16
    both = torch.cat([take(loader, 99), take(loader, 99)])
    assert torch.equal(both, take(train_batches(), 32))


def test_the_place_in_the_stream_can_be_kept_and_restored():
    loader, again = without_position(16), without_position(16)
    take(loader, 5)
    again.load_state_dict(loader.state_dict())
    assert torch.equal(take(again, 3), take(train_batches(5), 3))


def test_an_endless_stream_has_no_length():
    with pytest.raises(TypeError, match="endless"):
        len(train_batches())


# Evaluation.


def eval_batches(first: int, last: int, process: int = 0, processes: int = 1) -> EvalBatches:
    ids = np.arange(600, dtype=np.uint16)
    return EvalBatches(ids, first, last, 8, 8, 4, process, processes)


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("part", [(0, 600), (0, 9), (540, 600), (540, 541), (300, 433)])
def test_processes_together_score_each_character_once_in_equally_many_batches(processes, part):
    first, last = part
    lengths, predicted = set(), []
    for process in range(processes):
        batches = eval_batches(first, last, process, processes)
        made = list(batches)
        assert len(made) == len(batches)
        lengths.add(len(made))
        for idx, targets in made:
            assert idx.shape == targets.shape == (4, 8)
            scored = targets >= 0
            predicted += zip(idx[scored].tolist(), targets[scored].tolist(), strict=True)
    assert len(lengths) == 1
    assert sorted(predicted) == list(pairwise(range(max(first, 1) - 1, last)))


def test_no_process_makes_a_batch_of_padding_only_unless_another_has_windows():
    for processes in (1, 2, 3):
        for last in range(2, 200):
            batches = len(eval_batches(0, last, processes=processes))
            assert (batches - 1) * processes * 4 < count_eval_windows(0, last, 8)


def test_batches_are_a_sequence():
    batches = eval_batches(0, 600)
    one, two = batches[1:3]
    assert torch.equal(one[0], batches[1][0])
    assert torch.equal(two[1], batches[2][1])
    with pytest.raises(IndexError, match=f"of {len(batches)}"):
        batches[len(batches)]


def test_ids_of_another_alphabet_are_given_and_padding_stays():
    plain = eval_batches(590, 600)
    mapped = eval_batches(590, 600)
    mapped.id_map = np.arange(600)[::-1].copy()
    for (idx, targets), (other_idx, other_targets) in zip(plain, mapped, strict=True):
        assert torch.equal(other_idx, 599 - idx)
        assert torch.equal(other_targets, torch.where(targets < 0, -1, 599 - targets))
        assert (targets < 0).any()
