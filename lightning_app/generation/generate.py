"""Writing: how to choose, and three ways to the next character.

On a CPU the compiled engine writes (`decoding`), on a GPU PyTorch with a KV cache; the uncached
path is the reference, and tests hold the others equal to it. Sampling takes one uniform number per
character from a stream of the sample's own and inverts the distribution's CDF, so the text depends
on (seed, prompt, sample), not on the batch or the engine.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numba.core.event import install_listener

from lightning_app.data.tokenizer import Tokenizer
from lightning_app.generation.cpu_engine import CPUEngine
from lightning_app.generation.history import History, characters_seen, first_ids
from lightning_app.generation.numba_cache import CompileNotice
from lightning_app.generation.options import GenerateOptions, WeightFormat, sampler_args
from lightning_app.generation.torch_engine import CachedLogits, generate_torch
from lightning_app.model.gpt import GPT

CHARACTERS_PER_CALL = 16  # characters the compiled engine writes before it shows them
MAX_BATCH = 64  # texts written at once
PREPARING = "preparing to write {}: compiled once on this machine, in about ten seconds"


@torch.no_grad()
def generate_compiled(
    gpt: GPT,
    prompts: Sequence[Sequence[int]],
    streams: Sequence[np.random.Generator],
    options: GenerateOptions,
    unigram: np.ndarray | None = None,
    weights: WeightFormat = "float32",
) -> Iterator[np.ndarray]:
    """The next id of every row, (B,), again and again, by the compiled engine."""
    block_size = gpt.config.block_size
    engine = CPUEngine(gpt, len(prompts), weights)
    histories = [History(prompt, block_size) for prompt in prompts]
    empty = [i for i, prompt in enumerate(prompts) if not prompt]
    seen = characters_seen(prompts, gpt.config.vocab_size)
    how = sampler_args(options)
    notice = CompileNotice(
        PREPARING.format("one text" if len(prompts) == 1 else "several texts at once")
    )
    while True:
        windows = [h.window() or [0] for h in histories]  # a row without text: its id is not used
        positions = np.array([len(w) - 1 for w in windows])
        count = 1 if empty else min(CHARACTERS_PER_CALL, block_size - positions.max())
        uniform = np.stack([s.random(count) for s in streams])
        with install_listener("numba:compile", notice):
            if stale := np.flatnonzero(engine.length != positions).tolist():
                engine.prefill(stale, [windows[i][:-1] for i in stale])
            ids = engine.decode(np.array([w[-1] for w in windows]), uniform, seen, how)
        if empty:
            ids[empty, 0] = first_ids(unigram, uniform[empty, 0])
            seen[empty] = False
            seen[empty, ids[empty, 0]] = True
            empty = []
        for history, row in zip(histories, ids.tolist(), strict=True):
            history.extend(row)
        yield from ids.T


def sample_rng(seed: int, prompt: int, sample: int) -> np.random.Generator:
    """The uniform numbers of one sample of one prompt; they depend on nothing else."""
    return np.random.default_rng([seed, prompt, sample])


def generate_ids(
    gpt: GPT,
    prompts: Sequence[Sequence[int]],
    streams: Sequence[np.random.Generator],
    options: GenerateOptions,
    unigram: np.ndarray | None = None,
    weights: WeightFormat = "float32",
) -> Iterator[np.ndarray]:
    """Yield the next id of every row, (B,), again and again; stop asking to stop.

    A row without a prompt starts with a draw from `unigram` (V,). Rows go on together, whatever
    their lengths. Call with the network in evaluation mode.
    """
    like = gpt.embedding.weight
    single = like.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    if like.device.type == "cpu" and single:
        return generate_compiled(gpt, prompts, streams, options, unigram, weights)
    return generate_torch(gpt, prompts, streams, options, unigram, CachedLogits())


def generate_text(
    gpt: GPT,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    options: GenerateOptions,
    seed: int,
    num_samples: int = 1,
    unigram: np.ndarray | None = None,
    on_characters: Callable[[list[str]], None] | None = None,
    weights: WeightFormat = "float32",
) -> Iterator[str]:
    """What the network writes after each prompt, `num_samples` times; the prompts are not included.

    TOGETHER texts are written at once, so memory does not grow with their number; of those,
    `on_characters` gets the new piece of each as it is made ('' once a text has ended). Raises
    UserError for a prompt with characters outside the alphabet.
    """
    options = options.resolve()
    encoded = [tokenizer.encode(p, "the prompt").tolist() for p in prompts]
    rows = [(i, j) for i in range(len(prompts)) for j in range(num_samples)]
    for first in range(0, len(rows), MAX_BATCH):
        part = rows[first : first + MAX_BATCH]
        steps = generate_ids(
            gpt,
            [encoded[i] for i, _ in part],
            [sample_rng(seed, i, j) for i, j in part],
            options,
            unigram,
            weights=weights,
        )
        yield from collect_texts(steps, tokenizer, len(part), options, on_characters)


def collect_texts(
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
