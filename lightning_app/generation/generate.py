"""Generation: prompts in, text out, by the engine that suits the network's device.

On a CPU the compiled engine generates (`cpu_engine`), on a GPU PyTorch with a KV cache
(`torch_engine`). The reference is PyTorch without a cache; tests check that the others equal it.
Each character takes one uniform random number from its sample's own generator and inverts the CDF
of the distribution with it, so a text depends on (seed, prompt number, sample number), not on the
batch or the engine.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from lightning_app.data.tokenizer import Tokenizer
from lightning_app.generation.cpu_engine import CPUEngine, WeightFormat
from lightning_app.generation.history import History, characters_seen, first_ids
from lightning_app.generation.numba_cache import CompileNotice
from lightning_app.generation.sampling import GenerateOptions, sampler_args
from lightning_app.generation.torch_engine import CachedLogits, generate_torch
from lightning_app.model.gpt import GPT

CHARACTERS_PER_CALL = 16  # that the compiled engine generates before it returns them
MAX_BATCH = 64  # texts generated together
COMPILING = "compiling for {}, only this first time: about half a minute"


@torch.no_grad()
def generate_compiled(
    engine: CPUEngine,
    prompts: Sequence[Sequence[int]],
    rngs: Sequence[np.random.Generator],
    options: GenerateOptions,
    unigram: NDArray[np.float64] | None = None,
) -> Iterator[NDArray[np.int64]]:
    """`generate_ids` by a compiled engine for as many rows, which may have been used before."""
    gpt = engine.gpt
    block_size = gpt.config.block_size
    engine.length[:] = -1  # no row is in the cache
    histories = [History(prompt, block_size) for prompt in prompts]
    empty = [i for i, prompt in enumerate(prompts) if not prompt]
    seen = characters_seen(prompts, gpt.config.vocab_size)
    rows = np.arange(len(prompts))
    samplers = np.array([sampler_args(options)] * len(prompts))
    notice = CompileNotice(
        COMPILING.format("one text" if len(prompts) == 1 else "several texts at once")
    )
    while True:
        # A row without text is computed with id 0; the character drawn for it is not used.
        windows = [h.window() or [0] for h in histories]
        positions = np.array([len(w) - 1 for w in windows])
        count = 1 if empty else min(CHARACTERS_PER_CALL, block_size - positions.max())
        uniform = np.stack([rng.random(count) for rng in rngs])
        with notice.active():
            if stale := np.flatnonzero(engine.length != positions).tolist():
                engine.prefill(stale, [windows[i][:-1] for i in stale])
            last = np.array([w[-1] for w in windows])
            ids = engine.decode(rows, last, uniform, seen, samplers)
        if empty:
            ids[empty, 0] = first_ids(unigram, gpt.config.vocab_size, uniform[empty, 0])
            seen[empty] = False
            seen[empty, ids[empty, 0]] = True
            empty = []
        for history, row in zip(histories, ids.tolist(), strict=True):
            history.extend(row)
        yield from ids.T


def sample_rng(seed: int, prompt: int, sample: int) -> np.random.Generator:
    """The random numbers of one sample of one prompt, both numbered from 0.

    They do not depend on how many prompts and samples there are.
    """
    return np.random.default_rng([seed, prompt, sample])


def generate_ids(
    gpt: GPT,
    prompts: Sequence[Sequence[int]],
    rngs: Sequence[np.random.Generator],
    options: GenerateOptions,
    unigram: NDArray[np.float64] | None = None,
    weights: WeightFormat = "float32",
    threads: int | None = None,
) -> Iterator[NDArray[np.int64]]:
    """Yield the next id of every row, (B,), without end.

    prompts: The ids of each row's prompt; rows may differ in length. An empty row's first character
        is drawn from `unigram` (V,), or uniformly from the alphabet if that is None.
    rngs: Each row's random numbers, one per character.
    options: Resolved options; max_new_tokens and stop are not applied here.
    weights, threads: Those of `CPUEngine`; not used on other devices.

    Call with the network in evaluation mode.
    """
    if has_cpu_engine(gpt):
        engine = CPUEngine(gpt, len(prompts), weights, threads)
        return generate_compiled(engine, prompts, rngs, options, unigram)
    return generate_torch(gpt, prompts, rngs, options, unigram, CachedLogits())


def has_cpu_engine(gpt: GPT) -> bool:
    """Whether the compiled engine can generate with this network: on a CPU, in float32."""
    weight = gpt.embedding.weight
    float32 = weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    return weight.device.type == "cpu" and float32


def generate_text(
    gpt: GPT,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    options: GenerateOptions,
    seed: int,
    num_samples: int = 1,
    unigram: NDArray[np.float64] | None = None,
    on_characters: Callable[[list[str]], None] | None = None,
    weights: WeightFormat = "float32",
    threads: int | None = None,
) -> Iterator[str]:
    """Yield the continuation of each prompt, `num_samples` times; prompts are not included.

    The texts come in the order of the prompts, all samples of a prompt in a row. Up to MAX_BATCH
    are generated together, before the first of them is yielded, so memory does not grow with their
    number.

    options: Resolved or not.
    seed: Of the random numbers; sample i of prompt j does not depend on how many there are.
    unigram: The training text's character distribution (V,), from which the first character after
        an empty prompt is drawn; if None, it is drawn uniformly from the alphabet.
    on_characters: Called after each character with the new text of each row of the current batch
        ('' for a text that has ended, or for a byte that completes no character).
    weights, threads: On a CPU, the format of the weights and the number of threads (None: chosen by
        measuring); other devices ignore them. The text does not depend on the threads.

    Raises UserError for a prompt with characters outside the alphabet, and for options that
    contradict each other.
    """
    options = options.resolve()
    encoded = [tokenizer.encode(p, "the prompt").tolist() for p in prompts]
    rows = [(i, j) for i in range(len(prompts)) for j in range(num_samples)]
    for first in range(0, len(rows), MAX_BATCH):
        batch = rows[first : first + MAX_BATCH]
        steps = generate_ids(
            gpt,
            [encoded[i] for i, _ in batch],
            [sample_rng(seed, i, j) for i, j in batch],
            options,
            unigram,
            weights,
            threads,
        )
        yield from collect_texts(steps, tokenizer, len(batch), options, on_characters)


def collect_texts(
    steps: Iterator[NDArray[np.int64]],
    tokenizer: Tokenizer,
    rows: int,
    options: GenerateOptions,
    on_characters: Callable[[list[str]], None] | None,
) -> list[str]:
    """Decode the ids of `steps` into a text for each row, up to max_new_tokens or its stop text."""
    ended = [False] * rows
    parts: list[list[str]] = [[] for _ in range(rows)]
    decoders = [tokenizer.decoder() for _ in range(rows)]
    tails = [""] * rows  # the end of each text, as long as the stop text
    for _ in range(options.max_new_tokens):
        new = [decode(int(i)) for decode, i in zip(decoders, next(steps), strict=True)]
        for row, characters in enumerate(new):
            if ended[row]:
                new[row] = ""
                continue
            parts[row].append(characters)
            if options.stop and characters:
                tails[row] = (tails[row] + characters)[-len(options.stop) :]
                ended[row] = tails[row] == options.stop
        if on_characters:
            on_characters(new)
        if all(ended):
            break
    return ["".join(p) for p in parts]
