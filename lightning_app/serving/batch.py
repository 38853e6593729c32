"""Continuous batching: the texts of different requests are written together, step by step.

A text takes a row of the engine as soon as one is free, and leaves it as soon as the text ends, so
it waits for no other text to end. Nothing here knows about threads or HTTP.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from lightning_app.data.tokenizer import Tokenizer
from lightning_app.generation.cpu_engine import CPUEngine, WeightFormat
from lightning_app.generation.cpu_kernels import draw_rows
from lightning_app.generation.generate import CHARACTERS_PER_CALL, COMPILING
from lightning_app.generation.history import History, first_ids
from lightning_app.generation.numba_cache import CompileNotice
from lightning_app.generation.sampling import GenerateOptions, sampler_args
from lightning_app.generation.torch_engine import TorchEngine
from lightning_app.model.gpt import GPT
from lightning_app.model.kv_cache import context_length

# Characters of prompts that are computed in one step at most (or one window, if that is longer):
# the texts that are being written wait no longer than this takes.
PREFILL_CHARACTERS = 512
# Characters of a text alone in its first call of the engine; each later call writes more, so that
# the first are sent soon.
FIRST_CALL = 4

FinishReason = Literal["stop", "length"]


class Engine(Protocol):
    """What is used of `CPUEngine` and `TorchEngine`."""

    gpt: GPT
    length: NDArray[np.int64]  # (B,) characters in the cache

    def prefill(self, rows: Sequence[int], windows: Sequence[Sequence[int]]) -> None: ...

    def next_logits(
        self, rows: NDArray[np.int64], tokens: NDArray[np.int64]
    ) -> NDArray[np.float32]: ...

    def decode(
        self,
        rows: NDArray[np.int64],
        tokens: NDArray[np.int64],
        uniform: NDArray[np.float64],
        seen: NDArray[np.bool_],
        samplers: NDArray[np.float64],
    ) -> NDArray[np.int64]: ...


class TokenLogprob(NamedTuple):
    """What the network thought of one id of a text."""

    token: str
    logprob: float | None  # None for the first id of a prompt: nothing predicts it
    top: dict[str, float] | None  # the likeliest ids and this one
    offset: int  # the characters of the text before it


@dataclass
class Written:
    """What one step added to a text."""

    characters: str = ""
    tokens: list[TokenLogprob] = field(default_factory=list)  # only if logprobs were asked for
    prompt_tokens: list[TokenLogprob] = field(default_factory=list)  # only if the prompt is scored
    ids: int = 0  # all that were generated for this text so far
    finish_reason: FinishReason | None = None


def token_name(tokenizer: Tokenizer, i: int) -> str:
    """The name of an id in lists of logprobs: its character. A byte that is not ASCII is part of a
    character; its name is that of OpenAI's interface, such as bytes:\\xc3."""
    character = tokenizer.alphabet[i]
    if tokenizer.unit == "char" or character < "\x80":
        return character
    return f"bytes:\\x{ord(character):02x}"


class LogprobLists:
    """Makes the lists of logprobs of one text: for each id, the `top` likeliest ids and itself.

    They are the network's own, as at temperature 1, before options of sampling change them.
    """

    def __init__(self, tokenizer: Tokenizer, top: int) -> None:
        self.tokenizer, self.top = tokenizer, top
        self.decode = tokenizer.decoder()
        self.offset = 0

    def entry(self, i: int, logits: NDArray[np.floating] | None) -> TokenLogprob:
        """The entry of id `i`, the next of the text; logits (V,) predicted it."""
        name, offset = token_name(self.tokenizer, i), self.offset
        self.offset += len(self.decode(i))
        if logits is None:
            return TokenLogprob(name, None, None, offset)
        x = logits.astype(np.float64)
        x -= x.max()
        x -= np.log(np.exp(x).sum())
        likeliest = np.argsort(-x, kind="stable")[: self.top]
        top = {token_name(self.tokenizer, int(j)): float(x[j]) for j in likeliest}
        top.setdefault(name, float(x[i]))
        return TokenLogprob(name, float(x[i]), top if self.top else None, offset)


@torch.no_grad()
def score_prompt(gpt: GPT, ids: Sequence[int], lists: LogprobLists) -> Iterator[list[TokenLogprob]]:
    """The entries of a prompt's ids, a part after each call of the network.

    Each id is predicted from the window that `context_length` gives it.
    """
    block_size, device = gpt.config.block_size, gpt.embedding.weight.device
    if ids:
        yield [lists.entry(ids[0], None)]
    n = 1  # ids that have their entry
    while n < len(ids):
        first = n - context_length(n, block_size)
        # the last id that is predicted from a window with the same beginning
        last = next(
            (m for m in range(n + 1, len(ids)) if m - context_length(m, block_size) != first),
            len(ids),
        )
        window = torch.tensor([ids[first : last - 1]], device=device)
        logits = gpt(window)[0, n - 1 - first :].float().cpu().numpy()
        yield [lists.entry(i, row) for i, row in zip(ids[n:last], logits, strict=True)]
        n = last


class Text:
    """One text to write.

    Args:
        tokenizer: The network's.
        prompt: The ids before the text; may be empty.
        rng: The text's random numbers, one for each id.
        options: Resolved; max_new_tokens is applied here, `stop` is not.
        stops: The text ends before the first of these.
        logprobs: How many of the likeliest ids are listed with each id; None for no lists.
        scored: Whether the prompt's ids get such lists too.
        deliver: Called with what each step has written, by whoever calls `ContinuousBatch.step`.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt: Sequence[int],
        rng: np.random.Generator,
        options: GenerateOptions,
        stops: Sequence[str] = (),
        logprobs: int | None = None,
        scored: bool = False,
        deliver: Callable[[Written], None] = lambda written: None,
    ) -> None:
        self.tokenizer, self.prompt, self.rng = tokenizer, prompt, rng
        self.sampler = sampler_args(options)
        self.max_ids = options.max_new_tokens
        self.stops, self.logprobs, self.scored = stops, logprobs, scored
        self.deliver = deliver
        self.decode = tokenizer.decoder()
        self.lists = None if logprobs is None else LogprobLists(tokenizer, logprobs)
        self.ids = 0  # generated so far
        self.held = ""  # the end of the text, while it may be the beginning of a stop text
        self.held_tokens: list[TokenLogprob] = []
        self.sent = 0  # characters
        self.finish_reason: FinishReason | None = None

    def add(self, ids: Sequence[int], logits: NDArray[np.floating] | None = None) -> Written:
        """Add ids until the text ends. With lists of logprobs, one id and its logits (V,)."""
        for i in ids:
            self.ids += 1
            if self.lists:
                self.held_tokens.append(self.lists.entry(i, logits))
            for character in self.decode(i):
                self.held += character
                if stop := max(filter(self.held.endswith, self.stops), key=len, default=""):
                    self.held = self.held[: -len(stop)]
                    self.finish_reason = "stop"
                    return self.released()
            if self.ids == self.max_ids:
                self.finish_reason = "length"
                break
        return self.released()

    def released(self) -> Written:
        """What can be sent now: everything that cannot become part of a stop text."""
        kept = 0
        if self.finish_reason is None and self.stops:
            longest = min(len(self.held), max(map(len, self.stops)) - 1)
            ends = (n for n in range(longest, 0, -1))
            kept = next((n for n in ends if self.begins_stop(self.held[-n:])), 0)
        cut = len(self.held) - kept
        characters, self.held = self.held[:cut], self.held[cut:]
        self.sent += len(characters)
        known = len(self.held_tokens)
        if self.finish_reason != "length":  # at the end a byte may be left without a character
            known = sum(token.offset < self.sent for token in self.held_tokens)
        tokens, self.held_tokens = self.held_tokens[:known], self.held_tokens[known:]
        return Written(characters, tokens, [], self.ids, self.finish_reason)

    def begins_stop(self, end: str) -> bool:
        return any(stop.startswith(end) for stop in self.stops)


class ContinuousBatch:
    """The texts that are being written and those that wait for a row.

    Args:
        engine: Computes the texts; its network also scores prompts.
        unigram: The distribution (V,) of the first character after an empty prompt; None: uniform.
    """

    def __init__(self, engine: Engine, unigram: NDArray[np.float64] | None = None) -> None:
        self.gpt, self.engine, self.unigram = engine.gpt, engine, unigram
        count = len(engine.length)
        self.block_size = self.gpt.config.block_size
        self.rows: list[Text | None] = [None] * count
        self.histories = [History([], self.block_size) for _ in range(count)]
        self.seen = np.zeros((count, self.gpt.config.vocab_size), dtype=bool)
        self.samplers = np.zeros((count, 4))
        self.unscored: deque[tuple[Text, Iterator[list[TokenLogprob]]]] = deque()
        self.waiting: deque[Text] = deque()
        self.last_prefilled = 0

    @property
    def idle(self) -> bool:
        return not (self.unscored or self.waiting or any(self.rows))

    def add(self, text: Text) -> None:
        """Write `text` as soon as a row is free."""
        if text.scored:
            lists = LogprobLists(text.tokenizer, text.logprobs or 0)
            self.unscored.append((text, score_prompt(self.gpt, text.prompt, lists)))
        else:
            self.waiting.append(text)

    def remove(self, text: Text) -> None:
        """Forget a text; its row is free. Does nothing if the text has ended."""
        self.unscored = deque((t, parts) for t, parts in self.unscored if t is not text)
        self.waiting = deque(t for t in self.waiting if t is not text)
        self.rows = [None if t is text else t for t in self.rows]

    def step(self) -> list[tuple[Text, Written]]:
        """Write at least one id of every text that has a row and is not waiting for its prefill.

        Returns what was written, in the order in which it must be delivered.
        """
        written = [*self.score(), *self.admit()]
        self.prefill()
        written += self.write()
        self.rows = [None if t and t.finish_reason else t for t in self.rows]
        return written

    def score(self) -> Iterator[tuple[Text, Written]]:
        """One call of the network for the prompt that has waited longest."""
        if not self.unscored:
            return
        text, parts = self.unscored.popleft()
        if (entries := next(parts, None)) is None:
            self.waiting.append(text)
        else:
            yield text, Written(prompt_tokens=entries)
            self.unscored.append((text, parts))

    def admit(self) -> Iterator[tuple[Text, Written]]:
        """Give free rows to waiting texts; write the first id of those without a prompt."""
        for row, taken in enumerate(self.rows):
            while self.waiting and not taken:
                text = self.waiting.popleft()
                if text.max_ids == 0:
                    yield text, Written(finish_reason="length")
                    continue
                self.rows[row] = taken = text
                self.histories[row] = History(text.prompt, self.block_size)
                self.seen[row] = False
                self.seen[row, list(text.prompt)] = True
                self.samplers[row] = text.sampler
                self.engine.length[row] = -1  # its cache is another text's
                if not text.prompt:
                    yield text, self.write_first(row, text)

    def write_first(self, row: int, text: Text) -> Written:
        """Draw the first id of a text without a prompt."""
        size = self.gpt.config.vocab_size
        (first,) = first_ids(self.unigram, size, text.rng.random(1)).tolist()
        self.histories[row].extend([first])
        self.seen[row, first] = True
        p = np.full(size, 1 / size) if self.unigram is None else self.unigram
        with np.errstate(divide="ignore"):
            return text.add([first], np.log(np.maximum(p, 1e-300)))

    def position(self, row: int) -> int:
        """Of the row's last id in its window; the cache must have the ids before it."""
        return context_length(self.histories[row].n, self.block_size) - 1

    def active(self) -> list[int]:
        return [row for row, text in enumerate(self.rows) if text and not text.finish_reason]

    def prefill(self) -> None:
        """Compute the windows of rows that are new or whose window has moved, up to a limit; the
        others wait for the next step. The rows take turns."""
        stale = [row for row in self.active() if self.engine.length[row] != self.position(row)]
        stale.sort(key=lambda row: (row <= self.last_prefilled, row))
        limit = max(PREFILL_CHARACTERS, self.block_size)
        rows: list[int] = []
        windows: list[tuple[int, ...]] = []
        for row in stale:
            window = tuple(self.histories[row].window()[:-1])
            distinct = {*windows, window}
            if rows and sum(map(len, distinct)) > limit:
                break
            rows.append(row)
            windows.append(window)
        if rows:
            self.engine.prefill(rows, windows)
            self.last_prefilled = rows[-1]

    def write(self) -> Iterator[tuple[Text, Written]]:
        """Write the next id of every row whose cache is complete; if there is only one, several
        ids."""
        ready = [row for row in self.active() if self.engine.length[row] == self.position(row)]
        if not ready:
            return
        rows = np.array(ready)
        texts = [text for row in ready if (text := self.rows[row])]
        tokens = np.array([self.histories[row].recent[-1] for row in ready])
        logits = None
        if any(text.lists for text in texts):
            uniform = np.array([text.rng.random() for text in texts])
            logits = self.engine.next_logits(rows, tokens)
            drawn = draw_rows(logits, rows, uniform, self.seen, self.samplers, 1)[:, None]
        else:
            count = 1
            if len(ready) == 1:
                left = texts[0].max_ids - texts[0].ids
                space = self.block_size - self.position(ready[0])
                count = min(CHARACTERS_PER_CALL, max(FIRST_CALL, texts[0].ids), left, space)
            random = np.stack([text.rng.random(count) for text in texts])
            drawn = self.engine.decode(rows, tokens, random, self.seen, self.samplers)
        for i, (row, text) in enumerate(zip(ready, texts, strict=True)):
            ids = drawn[i].tolist()
            self.histories[row].extend(ids)
            yield text, text.add(ids, None if logits is None else logits[i])


def make_batch(
    gpt: GPT,
    rows: int,
    weights: WeightFormat = "float32",
    unigram: NDArray[np.float64] | None = None,
    threads: int | None = None,
) -> ContinuousBatch:
    """A batch for up to `rows` texts, by the engine that suits the network's device.

    Compiles what the engine needs, so that no request waits for it.

    weights, threads: Of the CPU engine; threads None: chosen by measuring.
    """
    on_cpu = gpt.embedding.weight.device.type == "cpu"
    engine: Engine = CPUEngine(gpt, rows, weights, threads) if on_cpu else TorchEngine(gpt, rows)
    seen = np.zeros((rows, gpt.config.vocab_size), dtype=bool)
    samplers = np.array([sampler_args(GenerateOptions().resolve())] * rows)
    with CompileNotice(COMPILING.format("serving")).active():
        for count in {1, min(2, rows)}:
            some = np.arange(count)
            zeros = np.zeros(count, dtype=np.int64)
            window = [0] * min(1, gpt.config.block_size - 1)
            engine.prefill(some.tolist(), [window] * count)
            engine.next_logits(some, zeros)
            engine.prefill(some.tolist(), [window] * count)
            engine.decode(some, zeros, np.zeros((count, 1)), seen, samplers)
    return ContinuousBatch(engine, unigram)
