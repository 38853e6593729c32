"""The end of each row's text, as much of it as the network can see."""

from collections import deque
from collections.abc import Sequence

import numpy as np

from lightning_app.errors import UserError
from lightning_app.generation.sampling import draw
from lightning_app.model.kv_cache import context_length


class History:
    """The end of one row's text: as many ids as the network can see, and how many there were."""

    def __init__(self, ids: Sequence[int], block_size: int) -> None:
        self.block_size = block_size
        self.recent = deque(ids, maxlen=block_size)
        self.n = len(ids)

    def extend(self, ids: Sequence[int]) -> None:
        self.recent.extend(ids)
        self.n += len(ids)

    def window(self) -> list[int]:
        length = context_length(self.n, self.block_size)
        return list(self.recent)[-length:]


def characters_seen(prompts: Sequence[Sequence[int]], vocab_size: int) -> np.ndarray:
    """(B, V), True for the characters in each prompt."""
    seen = np.zeros((len(prompts), vocab_size), dtype=bool)
    for row, prompt in zip(seen, prompts, strict=True):
        row[list(prompt)] = True
    return seen


def first_ids(unigram: np.ndarray | None, uniform: np.ndarray) -> np.ndarray:
    """What texts without a prompt begin with, (B,), from the training text's distribution (V,)."""
    if unigram is None:
        raise UserError("an empty prompt needs the unigram distribution; give a prompt")
    return draw(np.tile(unigram, (len(uniform), 1)), uniform)
