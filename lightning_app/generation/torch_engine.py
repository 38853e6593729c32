"""Generation by PyTorch: with a KV cache, and without one as the reference."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from lightning_app.generation.history import History, characters_seen, first_ids
from lightning_app.generation.options import GenerateOptions, sampler_args
from lightning_app.generation.sampling import draw, fill_distributions
from lightning_app.model.gpt import GPT
from lightning_app.model.kv_cache import KVCache, context_length


def distribution(logits: np.ndarray, seen: np.ndarray, options: GenerateOptions) -> np.ndarray:
    """Probabilities (B, V) of the next character, float64; see `sampling.fill_distribution`.

    logits (B, V); seen (B, V) is True for characters already in the row's text. `options` must be
    resolved.
    """
    p = np.empty(logits.shape, dtype=np.float64)
    fill_distributions(
        np.ascontiguousarray(logits, dtype=np.float32), seen, *sampler_args(options), p
    )
    return p


def uncached_logits(gpt: GPT, histories: Sequence[History]) -> np.ndarray:
    """The reference: logits (B, V) from each row's whole window, one row at a time."""
    device = gpt.embedding.weight.device
    rows = [gpt.forward(torch.tensor([h.window()], device=device))[0, -1] for h in histories]
    return torch.stack(rows).float().cpu().numpy()


class CachedLogits:
    """The same logits with a KV cache: one character a row and call, once rows are prefilled."""

    def __init__(self) -> None:
        self.cache: KVCache | None = None

    def __call__(self, gpt: GPT, histories: Sequence[History]) -> np.ndarray:
        if self.cache is None:
            self.cache = gpt.kv_cache(len(histories))
        # A row is one character behind its window, unless it is new or its window has moved.
        behind = [context_length(h.n, h.block_size) - 1 for h in histories]
        rows = zip(behind, self.cache.length.tolist(), strict=True)
        stale = [i for i, (length, read) in enumerate(rows) if length != read]
        if stale:
            self.prefill(gpt, stale, [histories[i].window()[:-1] for i in stale])
        last = torch.tensor([[h.recent[-1]] for h in histories], device=gpt.embedding.weight.device)
        return gpt.forward(last, self.cache)[:, -1].float().cpu().numpy()

    def prefill(self, gpt: GPT, rows: list[int], windows: list[list[int]]) -> None:
        """Read `windows` into the cache's `rows`; shorter ones are padded on the right."""
        longest = max(map(len, windows))
        if longest:
            padded = [w + [0] * (longest - len(w)) for w in windows]
            part = gpt.kv_cache(len(rows))
            gpt.forward(torch.tensor(padded, device=gpt.embedding.weight.device), part)
            self.cache.keys[:, rows] = part.keys
            self.cache.values[:, rows] = part.values
        self.cache.length[rows] = torch.tensor([len(w) for w in windows])


@torch.no_grad()
def generate_torch(
    gpt: GPT,
    prompts: Sequence[Sequence[int]],
    streams: Sequence[np.random.Generator],
    options: GenerateOptions,
    unigram: np.ndarray | None,
    next_logits: Callable[[GPT, Sequence[History]], np.ndarray],
) -> Iterator[np.ndarray]:
    """The next id of every row, (B,), again and again, from logits (B, V) by `next_logits`."""
    histories = [History(p, gpt.config.block_size) for p in prompts]
    seen = characters_seen(prompts, gpt.config.vocab_size)
    while True:
        uniform = np.array([s.random() for s in streams])
        empty = [i for i, h in enumerate(histories) if h.n == 0]
        ids = np.zeros(len(prompts), dtype=np.int64)
        if empty:
            ids[empty] = first_ids(unigram, uniform[empty])
        if len(empty) < len(prompts):
            # a row without any text yet is shown id 0 and its answer not used
            shown = [History([0], h.block_size) if h.n == 0 else h for h in histories]
            chosen = draw(distribution(next_logits(gpt, shown), seen, options), uniform)
            others = [i for i in range(len(prompts)) if i not in empty]
            ids[others] = chosen[others]
        for i, token in enumerate(ids):
            histories[i].extend([int(token)])
            seen[i, token] = True
        yield ids
