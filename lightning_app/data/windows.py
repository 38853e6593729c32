"""Which characters make a batch: pure functions, so that a run resumes exactly.

Training: `train_batch` is a function of (seed, step, micro-batch, process) alone. An epoch cuts the
text, from a random offset, into consecutive windows and reads each once, in the order of a keyed
permutation: shuffling without replacement in constant memory, for texts of any size.
Evaluation: consecutive windows over a split, each character scored exactly once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from lightning_app.errors import UserError

U64 = np.uint64
STARTS_PER_CALL = 4096  # window starts computed at once: one by one took a millisecond a batch


def mix64(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele et al., OOPSLA 2014): a bijection that looks random."""
    with np.errstate(over="ignore"):
        x = (x ^ (x >> U64(30))) * U64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> U64(27))) * U64(0x94D049BB133111EB)
    return x ^ (x >> U64(31))


def random_keys(seed: int, *parts: int | NDArray) -> NDArray[np.uint64]:
    """A 64-bit key for each element of `parts` (integers or arrays, broadcast together)."""
    key = mix64(np.array([seed & (2**64 - 1)], dtype=np.uint64))
    with np.errstate(over="ignore"):
        for part in parts:
            key = mix64(key + mix64(np.asarray(part, dtype=np.uint64) + U64(0x9E3779B97F4A7C15)))
    return key


def permute(i: NDArray[np.uint64], key: NDArray[np.uint64], n: int) -> NDArray[np.uint64]:
    """The image of i under a keyed permutation of range(n): a Feistel network with cycle walking.

    Four rounds on the smallest square power of two >= n (Luby & Rackoff 1988), repeated until the
    result is below n (Black & Rogaway 2002; fewer than four times on average).
    """
    half = U64(max(1, ((n - 1).bit_length() + 1) // 2))
    mask = (U64(1) << half) - U64(1)
    out = i.copy()
    todo = np.arange(len(i))
    while len(todo):
        left, right = out[todo] >> half, out[todo] & mask
        for r in range(4):
            left, right = right, left ^ (random_keys(r, key[todo], right) & mask)
        out[todo] = left << half | right
        todo = todo[out[todo] >= n]
    return out


def windows_per_epoch(n: int, block_size: int) -> int:
    """How many consecutive windows of block_size + 1 characters an epoch reads, of n characters.

    Each begins with the last character of the one before.
    """
    return max(1, (n - block_size) // block_size)


def train_starts(
    seed: int, k: int, batch_size: int, block_size: int, n: int, batches: int = 1
) -> NDArray[np.int64]:
    """Where the windows of global batch k start, (batch_size,), in a text of n characters.

    A window is block_size + 1 characters, the last being only a target; n must exceed block_size.
    With `batches`, the starts of this many consecutive global batches, the first of which is k,
    (batches * batch_size,).
    """
    assert n > block_size
    per_epoch = windows_per_epoch(n, block_size)
    offsets = n - per_epoch * block_size  # at least block_size: any position can be a start
    i = np.arange(k * batch_size, (k + batches) * batch_size, dtype=np.uint64)
    epoch, place = i // U64(per_epoch), i % U64(per_epoch)
    key = random_keys(seed, epoch)
    offset = random_keys(1, key) % U64(offsets)
    starts = offset + permute(place, key, per_epoch) * U64(block_size)
    return starts.astype(np.int64)


WindowSchedule = Sequence[Sequence[float]]


def check_window_schedule(schedule: WindowSchedule, block_size: int) -> None:
    """Raises UserError for a schedule that does not cut block_size into equal windows."""
    for pair in schedule:
        if len(pair) != 2 or not 0 <= pair[0] <= 1 or not 0 < pair[1] <= 1:
            raise UserError(
                f"--data.window_schedule has {list(pair)}; give pairs [from, size] of fractions, "
                "like [[0, 0.5], [0.6, 1]]"
            )
        size = block_size * pair[1]
        if size % 1 or block_size % size:
            raise UserError(
                f"--data.window_schedule cuts --data.block_size {block_size} into windows of "
                f"{size:g}, which do not divide it evenly; change one of the two"
            )


def window_size(step: int, max_steps: int, block_size: int, schedule: WindowSchedule) -> int:
    """How many characters the windows of a step have; the first step is 0.

    If the number of steps is not known (max_steps < 1), it is the last size of the schedule.
    """
    fraction = 1.0
    for since, size in schedule:
        if step >= since * max_steps or max_steps < 1:
            fraction = size
    return int(block_size * fraction)


def mean_window_size(block_size: int, schedule: WindowSchedule) -> float:
    """The mean size of the windows of a run, to a thousandth of its steps."""
    return sum(window_size(step, 1000, block_size, schedule) for step in range(1000)) / 1000


@dataclass(frozen=True)
class TrainStream:
    """The endless stream of training windows: everything that determines the content of a batch."""

    seed: int
    characters: int  # of the training text
    block_size: int
    batch_size: int  # windows of block_size in a micro-batch, of one process
    accumulate: int = 1  # micro-batches in a step
    processes: int = 1


def train_batch(
    ids: NDArray, stream: TrainStream, step: int, micro_batch: int, process: int, size: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """One process's windows of `size` characters in a micro-batch of a step, and their keys.

    Windows are (B, size + 1): inputs and, shifted by one, their targets. A micro-batch has
    batch_size * block_size characters. With size = block_size / p, a group of p steps draws p times
    as many windows of block_size, and its j-th step reads the j-th part of each. So a step reads
    from p times as many places, and an epoch still reads every character once. The keys (B,) are
    the starts of the windows of block_size, which are the same for all their parts.
    """
    parts = stream.block_size // size
    length = parts * stream.accumulate  # micro-batches in a group
    group, place = divmod(step * stream.accumulate + micro_batch, length)
    part, micro_batch = divmod(place, stream.accumulate)
    starts = group_starts(stream, length, group)
    keys = starts.reshape(stream.accumulate, stream.processes, -1)[micro_batch, process]
    return read_windows(ids, keys + part * size, size), keys


def group_starts(stream: TrainStream, length: int, group: int) -> NDArray[np.int64]:
    """Where the windows of block_size start in a group of `length` micro-batches, of all
    processes."""
    windows = length * stream.batch_size * stream.processes
    call, place = divmod(group, max(1, STARTS_PER_CALL // windows))
    return _starts_of_groups(stream, length, call, STARTS_PER_CALL)[place]


@lru_cache(maxsize=2)
def _starts_of_groups(
    stream: TrainStream, length: int, call: int, starts_per_call: int
) -> NDArray[np.int64]:
    """Starts of consecutive groups, (groups, windows of a group)."""
    batch_size = stream.batch_size * stream.processes
    groups = max(1, starts_per_call // (length * batch_size))
    first = call * groups * length
    starts = train_starts(
        stream.seed, first, batch_size, stream.block_size, stream.characters, groups * length
    )
    return starts.reshape(groups, -1)


def read_windows(ids: NDArray, starts: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """The windows of size + 1 characters that begin at `starts` (B,), (B, size + 1)."""
    return ids[starts[:, None] + np.arange(size + 1)].astype(np.int64)


def count_eval_windows(first: int, last: int, stride: int) -> int:
    """How many windows score the characters first..last-1 of a corpus, each once.

    A character is predicted from those before it, which may be in the preceding split, so only the
    first character of the corpus is not scored.
    """
    scored = last - max(first, 1)
    return max(0, -(-scored // stride))


def eval_batch(
    ids: NDArray, first: int, last: int, block_size: int, stride: int, rows: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Inputs and targets (B, block_size) of the windows numbered `rows`, and where they begin (B,).

    Each window scores `stride` characters, at its end. With stride = block_size windows do not
    overlap; with a smaller one, each character is predicted from at least block_size - stride
    others, which may be in the preceding split. Targets are -1 where a window does not score, past
    the end of the split, and in all of a row whose number is past the last window (padding).
    """
    scored = max(first, 1) + rows[:, None] * stride  # the first character each window scores
    begins = np.maximum(scored + stride - block_size, 1)  # the start of the corpus has less context
    at = begins + np.arange(block_size)
    inside = (at >= scored) & (at < scored + stride) & (at < last)
    at = np.minimum(at, len(ids) - 1)
    idx = ids[at - 1].astype(np.int64)
    targets = np.where(inside, ids[at].astype(np.int64), -1)
    return idx, targets, np.minimum(begins[:, 0], len(ids)) - 1
