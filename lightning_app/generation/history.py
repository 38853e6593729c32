"""Each row's text so far: the window that the network sees, and which characters have occurred."""

from collections import deque
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lightning_app.generation.sampling import draw
from lightning_app.model.kv_cache import context_length


class History:
    """The last block_size ids of one row's text, and the length of the complete text."""

    def __init__(self, ids: Sequence[int], block_size: int) -> None:
        self.block_size = block_size
        self.recent = deque(ids, maxlen=block_size)
        self.n = len(ids)

    def extend(self, ids: Sequence[int]) -> None:
        self.recent.extend(ids)
        self.n += len(ids)

    def window(self) -> list[int]:
        """The ids that the network sees: the last `context_length` ones."""
        length = context_length(self.n, self.block_size)
        return list(self.recent)[-length:]


def characters_seen(prompts: Sequence[Sequence[int]], vocab_size: int) -> NDArray[np.bool_]:
    """(B, V), True for the characters that occur in each prompt."""
    seen = np.zeros((len(prompts), vocab_size), dtype=bool)
    for row, prompt in zip(seen, prompts, strict=True):
        row[list(prompt)] = True
    return seen


def unigram_distribution(counts: Sequence[int] | None) -> NDArray[np.float64] | None:
    """Probabilities of the characters, (V,), from their numbers of occurrences; None for None."""
    if counts is None:
        return None
    occurrences = np.array(counts, dtype=np.float64)
    return occurrences / occurrences.sum()


def first_ids(
    unigram: NDArray[np.float64] | None, vocab_size: int, uniform: NDArray[np.float64]
) -> NDArray[np.int64]:
    """The first characters (B,) of texts without a prompt, for random numbers `uniform` (B,).

    They are drawn from `unigram` (V,), the training text's character distribution; if it is None,
    every character of the alphabet is equally likely.
    """
    if unigram is None:
        unigram = np.full(vocab_size, 1 / vocab_size)
    return draw(np.tile(unigram, (len(uniform), 1)), uniform)
