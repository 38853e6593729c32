"""Baselines: the loss of n-gram models and compressors on the same held-out characters.

All are given the training text and then predict the held-out text. Compressors also adapt to the
held-out text while they compress it; n-gram models do not. A network is useful if its loss is below
the lowest of these.
"""

import bz2
import json
import lzma
import math
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from lightning_app.data.encoding import EncodedText, Unit
from lightning_app.files import atomic_write, lock_file

MAX_TRAIN_BYTES, MAX_HELD_OUT_BYTES = 20_000_000, 5_000_000  # of a text: more takes minutes
SECONDS_TO_COMPRESS = 1.4e-6  # a byte, with all compressors, on two cores
MIN_HELD_OUT = 500  # characters; of fewer, a compressor's whole bytes say little
MAX_ORDER = 16  # of the n-gram models
CACHE_NAME = "baselines.json"
CACHE_FORMAT = 2  # results of another format are measured again


@dataclass(frozen=True)
class Baseline:
    """The loss of one simple model or compressor."""

    name: str
    nats: float | None  # per held-out character; None if it was not measured
    seconds: float  # on one core
    note: str = ""  # why it was not measured


@dataclass(frozen=True)
class Baselines:
    """All baselines for one pair of splits."""

    train: int  # characters given
    held: int  # characters predicted
    results: tuple[Baseline, ...]  # the lowest loss first


def kneser_ney(
    ids: NDArray[np.integer], split: int, vocab_size: int, max_order: int = MAX_ORDER
) -> list[float]:
    """Nats per character of ids[split:] under n-gram models counted on ids[:split], n = 1, 2, ...

    Interpolated Kneser-Ney smoothing (Chen & Goodman 1998, "An Empirical Study of Smoothing
    Techniques for Language Modeling", section 2.7). A discount D is subtracted from each count, and
    the probability that this frees is distributed as the model of the next lower order predicts;
    below n = 1 that is the uniform distribution. A lower-order model counts the different
    characters that precede a gram instead of its occurrences. D = n1 / (n1 + 2 n2), where n1 and n2
    are the numbers of grams that occur once and twice. Stops at the first n that is not better than
    n - 1.
    """
    ids = ids.astype(np.int64)
    context = np.zeros(len(ids), dtype=np.int64)  # an id of the n - 1 characters before each one
    lower = np.full(len(ids) - split, 1 / vocab_size)  # probabilities under the lower order
    shorter: tuple[NDArray, NDArray] | None = None
    losses: list[float] = []

    def interpolate(count: NDArray, gram: NDArray, context: NDArray) -> NDArray:
        """Probabilities of the held-out characters, from the counts of grams and `lower`.

        `count` is indexed by gram; `gram` and `context` are the ids of each character's.
        """
        context_of = np.zeros(len(count), dtype=np.int64)  # indexed by gram
        context_of[gram] = context
        total = np.bincount(context_of, weights=count)  # indexed by context, as `distinct`
        distinct = np.bincount(context_of[count > 0], minlength=len(total))
        once, twice = np.count_nonzero(count == 1), np.count_nonzero(count == 2)
        discount = once / (once + 2 * twice) if once and twice else 0.5
        held = context[split:]
        discounted = np.maximum(count[gram[split:]] - discount, 0)
        p = (discounted + discount * distinct[held] * lower) / np.maximum(total[held], 1)
        return np.where(total[held] > 0, p, lower)

    for _ in range(max_order):
        _, gram = np.unique(context * vocab_size + ids, return_inverse=True)
        count = np.bincount(gram[:split], minlength=gram.max() + 1)
        if shorter:
            suffix = np.zeros(len(count), dtype=np.int64)  # each gram without its first character
            suffix[gram] = shorter[0]
            predecessors = np.bincount(suffix[count > 0], minlength=shorter[0].max() + 1)
            lower = interpolate(predecessors, *shorter)
        losses.append(abs(float(np.log(interpolate(count, gram, context)).mean())))  # never -0
        if len(losses) > 1 and losses[-1] >= losses[-2]:
            break
        shorter = gram, context
        context = np.concatenate(([gram.max() + 1], gram[:-1]))  # no gram precedes the first
    return losses


def compressed_nats(compress: Callable[[bytes], bytes], train: bytes, held: bytes) -> float:
    """The additional size of the compressed text, in nats, when `held` is appended to `train`."""
    return (len(compress(train + held)) - len(compress(train))) * 8 * math.log(2)


def xz(data: bytes) -> bytes:
    """LZMA2 with a window as large as the data."""
    window = max(1 << 16, 1 << (len(data) - 1).bit_length())
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": window}]
    return lzma.compress(data, format=lzma.FORMAT_XZ, filters=filters)


def ppmd(data: bytes) -> bytes:
    """PPMd of order 6. Raises ModuleNotFoundError without pyppmd."""
    import pyppmd

    memory = min(1 << 30, max(1 << 24, 64 * len(data)))  # when it is full, PPMd starts again
    return pyppmd.compress(data, max_order=6, mem_size=memory)


def ids_to_bytes(ids: NDArray[np.integer], alphabet: str, unit: Unit = "char") -> bytes:
    """The text as UTF-8; with unit "byte", the bytes themselves."""
    if unit == "byte":
        return np.frombuffer(alphabet.encode("latin-1"), dtype=np.uint8)[ids].tobytes()
    codes = np.array([ord(c) for c in alphabet], dtype="<u4")
    return codes[ids].tobytes().decode("utf-32-le").encode("utf-8")


def characters_within(ids: NDArray[np.integer], alphabet: str, unit: Unit, limit: int) -> int:
    """About how many characters have `limit` bytes, from the mean length of a sample."""
    sample = ids[:: max(1, len(ids) // 100_000)]
    return int(limit * len(sample) / max(1, len(ids_to_bytes(sample, alphabet, unit))))


def measure_baselines(
    ids: NDArray[np.integer],
    alphabet: str,
    train: tuple[int, int],
    held: tuple[int, int],
    unit: Unit = "char",
) -> Baselines:
    """All baselines for ids[held[0] : held[1]], given ids[train[0] : train[1]].

    Of longer splits only the last 20 MB of `train` and the first 5 MB of `held` are used.
    """
    before, after = limited(ids, alphabet, train, held, unit, MAX_TRAIN_BYTES)
    jobs = compressor_jobs(before, after, alphabet, unit)
    both = np.concatenate((before, after))
    jobs.insert(0, lambda: n_gram_baselines(both, len(before), len(alphabet)))
    results = [Baseline("uniform", math.log(len(alphabet)), 0.0), *run_jobs(jobs)]
    results.sort(key=lambda baseline: (_sort_key(baseline.nats), baseline.name))
    return Baselines(len(before), len(after), tuple(results))


def best_compressor(
    text: EncodedText,
    train: tuple[int, int],
    held: tuple[int, int],
    max_bytes: int = MAX_TRAIN_BYTES,
) -> Baseline | None:
    """The compressor with the lowest loss; much faster than all baselines. None if none was
    measured. Of long splits a part is used, as by `measure_baselines`; of `train` at most the last
    `max_bytes`."""
    before, after = limited(text.ids, text.alphabet, train, held, text.unit, max_bytes)
    results = run_jobs(compressor_jobs(before, after, text.alphabet, text.unit))
    measured = [baseline for baseline in results if baseline.nats is not None]
    return min(measured, key=lambda baseline: _sort_key(baseline.nats), default=None)


def limited(
    ids: NDArray[np.integer],
    alphabet: str,
    train: tuple[int, int],
    held: tuple[int, int],
    unit: Unit,
    max_bytes: int,
) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
    """The ids of both splits: the last `max_bytes` of `train`, the first MAX_HELD_OUT_BYTES of
    `held`."""
    before, after = ids[train[0] : train[1]], ids[held[0] : held[1]]
    n = characters_within(before, alphabet, unit, max_bytes)
    before = before[max(0, len(before) - n) :]
    return before, after[: characters_within(after, alphabet, unit, MAX_HELD_OUT_BYTES)]


def compressor_jobs(
    before: NDArray[np.integer], after: NDArray[np.integer], alphabet: str, unit: Unit
) -> list[Callable[[], list[Baseline]]]:
    """Functions that measure the compressors."""
    texts = ids_to_bytes(before, alphabet, unit), ids_to_bytes(after, alphabet, unit)

    def compressor(name: str, compress: Callable[[bytes], bytes]) -> list[Baseline]:
        return [compressor_baseline(name, compress, *texts, len(after))]

    return [
        lambda: compressor("bzip2", bz2.compress),
        lambda: compressor("xz", xz),
        lambda: compressor("PPMd, order 6", ppmd),
    ]


def run_jobs(jobs: Sequence[Callable[[], list[Baseline]]]) -> list[Baseline]:
    """The results of functions that run at the same time, with a bar."""
    results: list[Baseline] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # sorting and compressing release the GIL
        running = [pool.submit(job) for job in jobs]
        for job in tqdm(
            as_completed(running), total=len(jobs), desc="baselines", delay=2, leave=False,
            disable=None,
        ):  # fmt: skip
            results += job.result()
    return results


def n_gram_baselines(ids: NDArray[np.integer], split: int, vocab_size: int) -> list[Baseline]:
    """The unigram model, and the best n-gram model if that has a higher order."""
    start = time.thread_time()
    losses = kneser_ney(ids, split, vocab_size)
    seconds = time.thread_time() - start
    best = min(range(len(losses)), key=losses.__getitem__)
    found = [Baseline("unigram", losses[0], seconds / len(losses))]
    if best:
        found.append(Baseline(f"{best + 1}-gram, Kneser-Ney", losses[best], seconds))
    return found


def compressor_baseline(
    name: str, compress: Callable[[bytes], bytes], train: bytes, held: bytes, n: int
) -> Baseline:
    """A compressor's loss on the n characters of `held`; none if they are fewer than MIN_HELD_OUT,
    or its package is missing."""
    if n < MIN_HELD_OUT:
        return Baseline(name, None, 0.0, f"not measured on fewer than {MIN_HELD_OUT} characters")
    start = time.thread_time()
    nats, note = None, ""
    try:
        nats = max(0.0, compressed_nats(compress, train, held) / n)  # by chance it may be shorter
    except ModuleNotFoundError:
        note = "not measured: pip install -e '.[baselines]'"
    return Baseline(name, nats, time.thread_time() - start, note)


def _sort_key(nats: float | None) -> float:
    return math.inf if nats is None else nats


def cached_baselines(text: EncodedText, train: tuple[int, int], held: tuple[int, int]) -> Baselines:
    """`measure_baselines`, with the results stored in the cache folder of the encoded text."""
    folder = Path(str(text.ids.filename)).parent
    found = stored_baselines(folder, train, held)
    if found and all(baseline.nats is not None for baseline in found.results):
        return found
    measured = measure_baselines(text.ids, text.alphabet, train, held, text.unit)
    file = folder / CACHE_NAME
    try:
        with lock_file(file.with_suffix(".lock")), atomic_write(file) as opened:
            all_stored = read_stored(file) | {split_key(train, held): asdict(measured)}
            opened.write(json.dumps(all_stored).encode())
    except OSError:
        pass  # a read-only or full disk: the results are returned all the same
    return measured


def stored_baselines(
    folder: Path, train: tuple[int, int], held: tuple[int, int]
) -> Baselines | None:
    """What `cached_baselines` has stored in the cache folder of an encoded text; None if it has not
    measured these splits."""
    try:
        found = read_stored(folder / CACHE_NAME)[split_key(train, held)]
        results = tuple(Baseline(**fields) for fields in found["results"])
        return Baselines(found["train"], found["held"], results)
    except (KeyError, TypeError):
        return None


def split_key(train: tuple[int, int], held: tuple[int, int]) -> str:
    return f"{CACHE_FORMAT}: {train[0]}-{train[1]}, {held[0]}-{held[1]}"


def read_stored(file: Path) -> dict[str, Any]:
    """All stored results, by `split_key`; none if there is no file, or it is damaged."""
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def baseline_table(baselines: Baselines, model: tuple[str, float] | None = None) -> list[str]:
    """Lines of a table, the lowest loss first. `model` (name, nats per character) is one of its
    rows, marked by an arrow."""
    rows = [(b.name, b.nats, f"{b.seconds:.1f} s", b.note) for b in baselines.results]
    if model:
        rows.append((*model, "", "<-"))
    rows.sort(key=lambda row: _sort_key(row[1]))
    lines = [f"{'':24}{'nats':>8}{'bpc':>9}{'perplexity':>12}{'time':>9}"]
    for name, nats, seconds, note in rows:
        if nats is None:
            lines.append(f"{name:24}{note}")
        else:
            lines.append(
                f"{name:24}{nats:8.4f}{nats / math.log(2):9.4f}{math.exp(nats):12.4f}"
                f"{seconds:>9} {note}".rstrip()
            )
    return lines
