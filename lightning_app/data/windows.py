"""Which characters make a batch: pure functions, so a run can stop anywhere and go on exactly.

Training: global batch k is a function of (seed, k) alone, whatever the number of processes. An
epoch cuts the text, from an offset of its own, into windows side by side and visits each once in
the order of a keyed permutation: shuffling without replacement in constant memory, at any size.
Evaluation: windows side by side over a split, each character scored exactly once.
"""

import numpy as np
from numpy.typing import NDArray

U64 = np.uint64


def mix64(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele et al., OOPSLA 2014): a bijection that looks random."""
    with np.errstate(over="ignore"):
        x = (x ^ (x >> U64(30))) * U64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> U64(27))) * U64(0x94D049BB133111EB)
    return x ^ (x >> U64(31))


def random_keys(seed: int, *parts) -> NDArray[np.uint64]:
    """A 64-bit key for each element of `parts` (integers or arrays, broadcast together)."""
    key = mix64(np.array([seed & (2**64 - 1)], dtype=np.uint64))
    with np.errstate(over="ignore"):
        for part in parts:
            key = mix64(key + mix64(np.asarray(part, dtype=np.uint64) + U64(0x9E3779B97F4A7C15)))
    return key


def permute(i: NDArray[np.uint64], key: NDArray[np.uint64], n: int) -> NDArray[np.uint64]:
    """Where a keyed permutation of range(n) sends i: a Feistel network with cycle walking.

    Four rounds on the smallest square power of two >= n (Luby & Rackoff 1988), walked until back
    below n (Black & Rogaway 2002; under four walks on average).
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


def train_starts(
    seed: int, k: int, batch_size: int, block_size: int, n: int, batches: int = 1
) -> NDArray[np.int64]:
    """Where the windows of global batch k start, (batch_size,), in a text of n characters.

    A window is block_size + 1 characters, the last being only a target; n must exceed block_size.
    With `batches`, those of batch k and the ones after it, (batches * batch_size,), in one go.
    """
    assert n > block_size
    per_epoch = max(1, (n - block_size) // block_size)
    offsets = n - per_epoch * block_size  # at least block_size: every position gets its turn
    i = np.arange(k * batch_size, (k + batches) * batch_size, dtype=np.uint64)
    epoch, place = i // U64(per_epoch), i % U64(per_epoch)
    key = random_keys(seed, epoch)
    offset = random_keys(1, key) % U64(offsets)
    starts = offset + permute(place, key, per_epoch) * U64(block_size)
    return starts.astype(np.int64)


def read_windows(ids, starts: NDArray[np.int64], block_size: int) -> NDArray[np.int64]:
    """Inputs and, shifted by one, their targets: int64 (B, block_size + 1)."""
    return ids[starts[:, None] + np.arange(block_size + 1)].astype(np.int64)


def count_eval_windows(first: int, last: int, stride: int) -> int:
    """How many windows score the characters first..last-1 of a corpus, each once.

    A character is predicted from those before it, the preceding split's last one included, so only
    the corpus's very first character is unscored.
    """
    scored = last - max(first, 1)
    return max(0, -(-scored // stride))


def eval_batch(
    ids, first: int, last: int, block_size: int, stride: int, rows: NDArray[np.int64]
) -> tuple[NDArray, NDArray]:
    """Inputs and targets (B, block_size) of the windows numbered `rows`.

    Each window scores `stride` characters, at its end: with stride block_size windows lie side by
    side; with less, characters see block_size - stride others at least, reaching back into the
    preceding split. Targets are -1 where a window does not score, past the end of the split, and in
    whole rows numbered past the last window (padding).
    """
    scored = max(first, 1) + rows[:, None] * stride  # the first character each window scores
    begins = np.maximum(scored + stride - block_size, 1)  # at the corpus's start there is less
    at = begins + np.arange(block_size)
    inside = (at >= scored) & (at < scored + stride) & (at < last)
    at = np.minimum(at, len(ids) - 1)
    idx = ids[at - 1].astype(np.int64)
    targets = np.where(inside, ids[at].astype(np.int64), -1)
    return idx, targets
