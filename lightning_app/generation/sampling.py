"""The distribution of the next character and the draw from it: the one implementation, compiled.

Every engine calls these functions, so the same logits and the same uniform number give the same
character everywhere. Sums run from the lowest id to the highest, in float64; ties go to the lower.
"""

import numpy as np
from numpy.typing import NDArray

from lightning_app.generation.numba_cache import compiled

SAMPLING_METHODS = ("argmax", "prob", "top_k", "top_p", "min_p")
ARGMAX, PROB, TOP_K, TOP_P, MIN_P = range(5)


@compiled()
def fill_distribution(logits, seen, kind, limit, temperature, penalty, p):
    """Probabilities of the next character into p (V,), float64.

    logits (V,) float32; seen (V,) is True for characters already in the text. In order: repetition
    penalty (CTRL, arXiv 1909.05858), temperature, softmax, choice of candidates: `limit` is k, or
    the share of top_p (arXiv 1904.09751) or min_p (2407.01082).
    """
    size = len(p)
    for v in range(size):
        x = np.float64(logits[v])
        if penalty != 1 and seen[v]:
            x = x / penalty if x > 0 else x * penalty
        p[v] = x
    top = 0
    for v in range(size):
        if p[v] > p[top]:
            top = v
    if kind == ARGMAX:
        p[:] = 0
        p[top] = 1
        return
    highest = p[top]
    total = 0.0
    for v in range(size):
        p[v] = np.exp((p[v] - highest) / temperature)
        total += p[v]
    for v in range(size):
        p[v] /= total
    if kind == PROB:
        return
    if kind == MIN_P:
        floor = limit * p[top]
        for v in range(size):
            if p[v] < floor:
                p[v] = 0
    else:
        order = np.argsort(-p, kind="mergesort")
        before = 0.0
        for rank in range(size):
            v = order[rank]
            own = p[v]
            if (rank >= limit) if kind == TOP_K else (before >= limit):
                p[v] = 0  # the candidate that reaches top_p is kept
            before += own
    total = 0.0
    for v in range(size):
        total += p[v]
    for v in range(size):
        p[v] /= total


@compiled()
def draw_one(p, uniform):
    """The id at which the cumulated p (V,) passes `uniform` in [0, 1)."""
    total = 0.0
    for v in range(len(p)):
        total += p[v]
    cumulated, last = 0.0, 0
    for v in range(len(p)):
        if p[v] > 0:
            cumulated += p[v]
            last = v
            if cumulated > uniform * total:
                return v
    return last  # rounding must not reach past the last possible character


@compiled()
def fill_distributions(logits, seen, kind, limit, temperature, penalty, p):
    for row in range(len(p)):
        fill_distribution(logits[row], seen[row], kind, limit, temperature, penalty, p[row])


@compiled()
def draw(probabilities: NDArray[np.float64], uniform: NDArray[np.float64]) -> NDArray[np.int64]:
    """Ids (B,): the inverse CDF of each row of probabilities (B, V) at uniform (B,) in [0, 1)."""
    ids = np.empty(len(probabilities), dtype=np.int64)
    for row in range(len(ids)):
        ids[row] = draw_one(probabilities[row], uniform[row])
    return ids
