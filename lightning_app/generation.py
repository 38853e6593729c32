"""Writing: how to choose, and three ways to the next character.

On a CPU the compiled engine writes (`decoding`), on a GPU PyTorch with a KV cache; the uncached
path is the reference, and tests hold the others equal to it. Sampling takes one uniform number per
character from a stream of the sample's own and inverts the distribution's CDF, so the text depends
on (seed, prompt, sample), not on the batch or the engine.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from jsonargparse.typing import (
    ClosedUnitInterval,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)
from numba.core.event import install_listener

from lightning_app.compiling import Notice
from lightning_app.decoding import Engine, Weights
from lightning_app.errors import UserError
from lightning_app.gpt import GPT, KVCache
from lightning_app.sampling import KINDS, draw, fill_distributions
from lightning_app.tokenizer import Tokenizer

AT_ONCE = 16  # characters the compiled engine writes before it shows them
TOGETHER = 64  # texts written at once
PREPARING = "preparing to write {}: compiled once on this machine, in about ten seconds"


@dataclass(frozen=True)
class GenerateOptions:
    """How characters are chosen.

    Args:
        sampling: argmax (the likeliest), prob (by probability), top_k, top_p or min_p (by
            probability among the likeliest); top5 is top_k with 5. Unset: what the options below
            say, else top_p.
        temperature: Below 1 is more careful, above 1 bolder; 0 is argmax.
        top_k: Choose among the k likeliest characters (5 when only the sampling is named).
        top_p: Choose among the likeliest characters that together have this probability (0.9).
        min_p: Choose among characters at least this likely, relative to the likeliest (0.05).
        repetition_penalty: Above 1 makes characters already in the text less likely; 1 is off.
        max_new_tokens: How many characters to write.
        stop: End after this text, which is included.
    """

    sampling: Literal["argmax", "prob", "top_k", "top_p", "min_p", "top5"] | None = None
    temperature: NonNegativeFloat = 0.8
    top_k: PositiveInt | None = None
    top_p: ClosedUnitInterval | None = None
    min_p: ClosedUnitInterval | None = None
    repetition_penalty: PositiveFloat = 1.0
    max_new_tokens: NonNegativeInt = 500
    stop: str | None = None

    def resolve(self) -> "GenerateOptions":
        """Fill in what is unset; raises UserError for options that contradict each other."""
        given = [name for name in ("top_k", "top_p", "min_p") if getattr(self, name) is not None]
        sampling, top_k = self.sampling, self.top_k
        if sampling == "top5":
            if top_k not in (None, 5):
                raise UserError(f"--sampling top5 contradicts --top_k {top_k}; leave one out")
            sampling, top_k = "top_k", 5
        if sampling is None:
            if len(given) > 1:
                both = " and ".join(f"--{name}" for name in given)
                raise UserError(f"{both} contradict each other; choose one with --sampling")
            sampling = given[0] if given else "top_p"
        if others := [name for name in given if name != sampling]:
            raise UserError(
                f"--sampling {sampling} contradicts --{others[0]}; "
                f"leave one out, or use --sampling {others[0]}"
            )
        if self.top_p == 0:
            raise UserError("--top_p is 0, which leaves no character; give a value up to 1")
        if self.stop == "":
            raise UserError("--stop is empty; give the text to end after, or leave it out")
        defaults = {"top_k": top_k or 5, "top_p": self.top_p or 0.9, "min_p": self.min_p}
        if defaults["min_p"] is None:
            defaults["min_p"] = 0.05
        chosen = {name: value for name, value in defaults.items() if name == sampling}
        if self.temperature == 0:
            return replace(self, sampling="argmax", top_k=None, top_p=None, min_p=None)
        return replace(self, sampling=sampling, **chosen)


def choice(options: GenerateOptions) -> tuple[int, float, float, float]:
    """Resolved options as `sampling` takes them: kind, limit, temperature, repetition penalty."""
    limit = {"top_k": options.top_k, "top_p": options.top_p, "min_p": options.min_p}
    return (
        KINDS.index(options.sampling),
        float(limit.get(options.sampling) or 0),
        float(options.temperature),
        float(options.repetition_penalty),
    )


def distribution(logits: np.ndarray, seen: np.ndarray, options: GenerateOptions) -> np.ndarray:
    """Probabilities (B, V) of the next character, float64; see `sampling.fill_distribution`.

    logits (B, V); seen (B, V) is True for characters already in the row's text. `options` must be
    resolved.
    """
    p = np.empty(logits.shape, dtype=np.float64)
    fill_distributions(np.ascontiguousarray(logits, dtype=np.float32), seen, *choice(options), p)
    return p


def window_length(n: int, block_size: int) -> int:
    """How many of n characters the network sees: all, until block_size; then the older half is
    dropped, and dropped again each time block_size is reached."""
    if n <= block_size:
        return n
    step = block_size - block_size // 2
    return n - -(-(n - block_size) // step) * step


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
        length = window_length(self.n, self.block_size)
        return list(self.recent)[-length:]


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
            self.cache = KVCache(gpt, len(histories))
        # A row is one character behind its window, unless it is new or its window has moved.
        behind = [window_length(h.n, h.block_size) - 1 for h in histories]
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
            part = KVCache(gpt, len(rows))
            gpt.forward(torch.tensor(padded, device=gpt.embedding.weight.device), part)
            self.cache.keys[:, rows] = part.keys
            self.cache.values[:, rows] = part.values
        self.cache.length[rows] = torch.tensor([len(w) for w in windows])


def occurring(prompts: Sequence[Sequence[int]], vocab_size: int) -> np.ndarray:
    """(B, V), True for the characters in each prompt."""
    seen = np.zeros((len(prompts), vocab_size), dtype=bool)
    for row, prompt in zip(seen, prompts, strict=True):
        row[list(prompt)] = True
    return seen


@torch.no_grad()
def compiled_rows(
    gpt: GPT,
    prompts: Sequence[Sequence[int]],
    streams: Sequence[np.random.Generator],
    options: GenerateOptions,
    unigram: np.ndarray | None = None,
    weights: Weights = "float32",
) -> Iterator[np.ndarray]:
    """The next id of every row, (B,), again and again, by the compiled engine."""
    block_size = gpt.config.block_size
    engine = Engine(gpt, len(prompts), weights)
    histories = [History(prompt, block_size) for prompt in prompts]
    empty = [i for i, prompt in enumerate(prompts) if not prompt]
    seen = occurring(prompts, gpt.config.vocab_size)
    how = choice(options)
    notice = Notice(PREPARING.format("one text" if len(prompts) == 1 else "several texts at once"))
    while True:
        windows = [h.window() or [0] for h in histories]  # a row without text: its id is not used
        positions = np.array([len(w) - 1 for w in windows])
        count = 1 if empty else min(AT_ONCE, block_size - positions.max())
        uniform = np.stack([s.random(count) for s in streams])
        with install_listener("numba:compile", notice):
            if stale := np.flatnonzero(engine.length != positions).tolist():
                engine.read(stale, [windows[i][:-1] for i in stale])
            ids = engine.write(np.array([w[-1] for w in windows]), uniform, seen, how)
        if empty:
            ids[empty, 0] = first_ids(unigram, uniform[empty, 0])
            seen[empty] = False
            seen[empty, ids[empty, 0]] = True
            empty = []
        for history, row in zip(histories, ids.tolist(), strict=True):
            history.extend(row)
        yield from ids.T


def stream(seed: int, prompt: int, sample: int) -> np.random.Generator:
    """The uniform numbers of one sample of one prompt; they depend on nothing else."""
    return np.random.default_rng([seed, prompt, sample])


def first_ids(unigram: np.ndarray | None, uniform: np.ndarray) -> np.ndarray:
    """What texts without a prompt begin with, (B,), from the training text's distribution (V,)."""
    if unigram is None:
        raise UserError("an empty prompt needs the unigram distribution; give a prompt")
    return draw(np.tile(unigram, (len(uniform), 1)), uniform)


def generate(
    gpt: GPT,
    prompts: Sequence[Sequence[int]],
    streams: Sequence[np.random.Generator],
    options: GenerateOptions,
    unigram: np.ndarray | None = None,
    weights: Weights = "float32",
) -> Iterator[np.ndarray]:
    """Yield the next id of every row, (B,), again and again; stop asking to stop.

    A row without a prompt starts with a draw from `unigram` (V,). Rows go on together, whatever
    their lengths. Call with the network in evaluation mode.
    """
    like = gpt.embedding.weight
    single = like.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    if like.device.type == "cpu" and single:
        return compiled_rows(gpt, prompts, streams, options, unigram, weights)
    return plain_rows(gpt, prompts, streams, options, unigram, CachedLogits())


@torch.no_grad()
def plain_rows(
    gpt: GPT,
    prompts: Sequence[Sequence[int]],
    streams: Sequence[np.random.Generator],
    options: GenerateOptions,
    unigram: np.ndarray | None,
    next_logits: Callable[[GPT, Sequence[History]], np.ndarray],
) -> Iterator[np.ndarray]:
    """The next id of every row, (B,), again and again, from logits (B, V) by `next_logits`."""
    histories = [History(p, gpt.config.block_size) for p in prompts]
    seen = occurring(prompts, gpt.config.vocab_size)
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


def complete(
    gpt: GPT,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    options: GenerateOptions,
    seed: int,
    num_samples: int = 1,
    unigram: np.ndarray | None = None,
    on_characters: Callable[[list[str]], None] | None = None,
    weights: Weights = "float32",
) -> Iterator[str]:
    """What the network writes after each prompt, `num_samples` times; the prompts are not included.

    TOGETHER texts are written at once, so memory does not grow with their number; of those,
    `on_characters` gets the new piece of each as it is made ('' once a text has ended). Raises
    UserError for a prompt with characters outside the alphabet.
    """
    options = options.resolve()
    encoded = [tokenizer.encode(p, "the prompt").tolist() for p in prompts]
    rows = [(i, j) for i in range(len(prompts)) for j in range(num_samples)]
    for first in range(0, len(rows), TOGETHER):
        part = rows[first : first + TOGETHER]
        steps = generate(
            gpt,
            [encoded[i] for i, _ in part],
            [stream(seed, i, j) for i, j in part],
            options,
            unigram,
            weights=weights,
        )
        yield from decoded(steps, tokenizer, len(part), options, on_characters)


def decoded(
    steps: Iterator[np.ndarray],
    tokenizer: Tokenizer,
    rows: int,
    options: GenerateOptions,
    on_characters: Callable[[list[str]], None] | None,
) -> list[str]:
    """The texts of `rows` that `steps` makes, each up to max_new_tokens or its stop text."""
    ended = [False] * rows
    pieces: list[list[str]] = [[] for _ in range(rows)]
    decoders = [tokenizer.decoder() for _ in range(rows)]
    tails = [""] * rows  # as much of each text as a stop text can reach back
    for _ in range(options.max_new_tokens):
        new = [decode(i) for decode, i in zip(decoders, next(steps), strict=True)]
        for row, characters in enumerate(new):
            if ended[row]:
                new[row] = ""
                continue
            pieces[row].append(characters)
            if options.stop and characters:
                tails[row] = (tails[row] + characters)[-len(options.stop) :]
                ended[row] = tails[row] == options.stop
        if on_characters:
            on_characters(new)
        if all(ended):
            break
    return ["".join(p) for p in pieces]
