"""Generation by PyTorch: with a KV cache, and without one as the reference."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from lightning_app.generation.cpu_kernels import draw_rows
from lightning_app.generation.history import History, characters_seen, first_ids
from lightning_app.generation.sampling import GenerateOptions, distribution, draw
from lightning_app.model.gpt import GPT
from lightning_app.model.kv_cache import KVCache, context_length


def uncached_logits(gpt: GPT, histories: Sequence[History]) -> NDArray[np.float32]:
    """The reference: logits (B, V) computed from the full window of each row, one row at a time."""
    device = gpt.embedding.weight.device
    rows = [gpt.forward(torch.tensor([h.window()], device=device))[0, -1] for h in histories]
    return torch.stack(rows).float().cpu().numpy()


class CachedLogits:
    """The same logits with a KV cache: after the prefill, one character per row and call."""

    def __init__(self) -> None:
        self.cache: KVCache | None = None

    def __call__(self, gpt: GPT, histories: Sequence[History]) -> NDArray[np.float32]:
        if self.cache is None:
            self.cache = gpt.kv_cache(len(histories))
        # The cache lacks only a row's last character, unless the row is new or its window moved.
        expected = [context_length(h.n, h.block_size) - 1 for h in histories]
        lengths = zip(expected, self.cache.length.tolist(), strict=True)
        stale = [row for row, (length, cached) in enumerate(lengths) if length != cached]
        if stale:
            prefill(gpt, self.cache, stale, [histories[row].window()[:-1] for row in stale])
        last = torch.tensor([[h.recent[-1]] for h in histories], device=gpt.embedding.weight.device)
        return gpt.forward(last, self.cache)[:, -1].float().cpu().numpy()


def prefill(gpt: GPT, cache: KVCache, rows: list[int], windows: list[list[int]]) -> None:
    """Replace the contents of the cache's `rows` by the keys and values of `windows`."""
    longest = max(map(len, windows))
    if longest:
        padded = [w + [0] * (longest - len(w)) for w in windows]  # on the right
        prefilled = gpt.kv_cache(len(rows))
        gpt.forward(torch.tensor(padded, device=gpt.embedding.weight.device), prefilled)
        cache.keys[:, rows] = prefilled.keys
        cache.values[:, rows] = prefilled.values
        cache.ids[rows] = prefilled.ids
    cache.length[rows] = torch.tensor([len(w) for w in windows])


class TorchEngine:
    """Writes up to B texts together, as `cpu_engine.CPUEngine` does, on the network's device.

    A call computes all B rows, however few it is for: on a GPU they take about the same time.
    """

    def __init__(self, gpt: GPT, rows: int) -> None:
        self.gpt, self.cache = gpt, gpt.kv_cache(rows)
        self.length = self.cache.length.numpy()  # (B,) characters in the cache; the same memory

    @torch.no_grad()
    def prefill(self, rows: Sequence[int], windows: Sequence[Sequence[int]]) -> None:
        """Replace the cached text of `rows` by `windows`."""
        prefill(self.gpt, self.cache, list(rows), [list(window) for window in windows])

    @torch.no_grad()
    def next_logits(
        self, rows: NDArray[np.int64], tokens: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """Add one character, tokens (n,), to the cache of each of n `rows`; logits (n, V) of the
        next one."""
        after = self.length.copy()
        after[rows] += 1
        # The other rows get id 0 after the end of their text, where the next character replaces it.
        self.length.clip(0, self.gpt.config.block_size - 1, out=self.length)
        last = np.zeros((len(self.length), 1), dtype=np.int64)
        last[rows, 0] = tokens
        logits = self.gpt.forward(
            torch.from_numpy(last).to(self.gpt.embedding.weight.device), self.cache
        )
        self.length[:] = after
        return logits[rows, -1].float().cpu().numpy()

    def decode(
        self,
        rows: NDArray[np.int64],
        tokens: NDArray[np.int64],
        uniform: NDArray[np.float64],
        seen: NDArray[np.bool_],
        samplers: NDArray[np.float64],
    ) -> NDArray[np.int64]:
        """Ids (n, c) for each of n rows; see `CPUEngine.decode`."""
        ids = np.empty(uniform.shape, dtype=np.int64)
        for i in range(uniform.shape[1]):
            logits = self.next_logits(rows, tokens)
            tokens = draw_rows(logits, rows, uniform[:, i].copy(), seen, samplers, 1)
            ids[:, i] = tokens
        return ids


@torch.no_grad()
def generate_torch(
    gpt: GPT,
    prompts: Sequence[Sequence[int]],
    rngs: Sequence[np.random.Generator],
    options: GenerateOptions,
    unigram: NDArray[np.float64] | None,
    compute_logits: Callable[[GPT, Sequence[History]], NDArray[np.float32]],
) -> Iterator[NDArray[np.int64]]:
    """Yield the next id of every row, (B,), without end; see `generate.generate_ids`.

    `compute_logits` gives the logits (B, V) of the next characters: `uncached_logits`, or an
    instance of `CachedLogits`.
    """
    histories = [History(prompt, gpt.config.block_size) for prompt in prompts]
    seen = characters_seen(prompts, gpt.config.vocab_size)
    while True:
        uniform = np.array([rng.random() for rng in rngs])
        empty = [row for row, h in enumerate(histories) if h.n == 0]
        ids = np.zeros(len(prompts), dtype=np.int64)
        if empty:
            ids[empty] = first_ids(unigram, gpt.config.vocab_size, uniform[empty])
        if len(empty) < len(prompts):
            # A row without text is computed with id 0; the character drawn for it is not used.
            contexts = [History([0], h.block_size) if h.n == 0 else h for h in histories]
            drawn = draw(distribution(compute_logits(gpt, contexts), seen, options), uniform)
            others = [row for row in range(len(prompts)) if row not in empty]
            ids[others] = drawn[others]
        for row, token in enumerate(ids):
            histories[row].extend([int(token)])
            seen[row, token] = True
        yield ids
