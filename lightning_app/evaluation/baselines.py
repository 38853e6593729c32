"""What a loss is worth: simple models and compressors on the same held-out characters.

Each is given the training text and then predicts the held-out one; the compressors go on learning
while they read it, the others do not. A network is worth something below the best of them.
"""

import bz2
import json
import lzma
import math
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from lightning_app.data.encoding import EncodedText, Unit
from lightning_app.files import atomic_write, lock_file

TRAIN_BYTES, HELD_BYTES = 20_000_000, 5_000_000  # more text is not read: it would take minutes
MAX_ORDER = 16  # of the n-gram models
CACHE_FORMAT = 1  # of the cache; raise it and old figures are measured anew


@dataclass(frozen=True)
class Baseline:
    """`nats` per held-out character, None where `note` says why there is no figure; `seconds` of
    one core."""

    name: str
    nats: float | None
    seconds: float
    note: str = ""


@dataclass(frozen=True)
class Baselines:
    """Figures over `held` characters, given `train` characters before them."""

    train: int
    held: int
    figures: tuple[Baseline, ...]


def kneser_ney(
    ids: NDArray[np.integer], split: int, vocab_size: int, max_order: int = MAX_ORDER
) -> list[float]:
    """Nats per character of ids[split:] under n-gram models counted on ids[:split], n = 1, 2, ...

    Interpolated Kneser-Ney smoothing (Chen & Goodman 1998, section 2.7): every count gives a
    discount D to the next shorter context, whose counts are in how many different contexts a
    character was seen; the shortest gives it to the uniform distribution. D is n1 / (n1 + 2 n2), of
    the grams counted once and twice. Stops at the first n that is no better than n - 1.
    """
    ids = ids.astype(np.int64)
    context = np.zeros(len(ids), dtype=np.int64)  # numbers the n - 1 characters before each one
    lower = np.full(len(ids) - split, 1 / vocab_size)
    shorter: tuple[NDArray, NDArray] | None = None
    losses: list[float] = []

    def interpolate(count: NDArray, gram: NDArray, context: NDArray) -> NDArray:
        """Probabilities of the held-out characters, from `count` of each gram and `lower`."""
        of_context = np.zeros(len(count), dtype=np.int64)
        of_context[gram] = context
        total = np.bincount(of_context, weights=count)
        kinds = np.bincount(of_context[count > 0], minlength=len(total))
        once, twice = np.count_nonzero(count == 1), np.count_nonzero(count == 2)
        discount = once / (once + 2 * twice) if once and twice else 0.5
        here = context[split:]
        kept = np.maximum(count[gram[split:]] - discount, 0)
        p = (kept + discount * kinds[here] * lower) / np.maximum(total[here], 1)
        return np.where(total[here] > 0, p, lower)

    for _ in range(max_order):
        _, gram = np.unique(context * vocab_size + ids, return_inverse=True)
        seen = np.bincount(gram[:split], minlength=gram.max() + 1)
        if shorter:
            suffix = np.zeros(len(seen), dtype=np.int64)
            suffix[gram] = shorter[0]
            preceded_by = np.bincount(suffix[seen > 0], minlength=shorter[0].max() + 1)
            lower = interpolate(preceded_by, *shorter)
        losses.append(float(-np.log(interpolate(seen, gram, context)).mean()))
        if len(losses) > 1 and losses[-1] >= losses[-2]:
            break
        shorter = gram, context
        context = np.concatenate(([gram.max() + 1], gram[:-1]))  # nothing stands before the first
    return losses


def compressed_nats(compress: Callable[[bytes], bytes], train: bytes, held: bytes) -> float:
    """Nats that `held` adds to the compressed `train`."""
    return (len(compress(train + held)) - len(compress(train))) * 8 * math.log(2)


def xz(data: bytes) -> bytes:
    window = max(1 << 16, 1 << (len(data) - 1).bit_length())  # all of it
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": window}]
    return lzma.compress(data, format=lzma.FORMAT_XZ, filters=filters)


def ppmd(data: bytes) -> bytes:
    import pyppmd

    memory = min(1 << 30, max(1 << 24, 64 * len(data)))  # enough never to forget
    return pyppmd.compress(data, max_order=6, mem_size=memory)


def ids_to_bytes(ids: NDArray[np.integer], alphabet: str, unit: Unit = "char") -> bytes:
    """The text as UTF-8; one cut into bytes as it is."""
    if unit == "byte":
        return np.frombuffer(alphabet.encode("latin-1"), dtype=np.uint8)[ids].tobytes()
    codes = np.array([ord(c) for c in alphabet], dtype="<u4")
    return codes[ids].tobytes().decode("utf-32-le").encode("utf-8")


def characters_within(ids: NDArray[np.integer], alphabet: str, unit: Unit, limit: int) -> int:
    """How many characters make at most `limit` bytes, by their mean length."""
    sample = ids[:: max(1, len(ids) // 100_000)]
    return int(limit * len(sample) / max(1, len(ids_to_bytes(sample, alphabet, unit))))


def measure_baselines(
    ids: NDArray[np.integer],
    alphabet: str,
    train: tuple[int, int],
    held: tuple[int, int],
    unit: Unit = "char",
) -> Baselines:
    """All yardsticks, best first, on the characters `held` of a text, given those of `train`: the
    last 20 MB of these, and the first 5 MB of those, where there are more."""
    before, after = ids[train[0] : train[1]], ids[held[0] : held[1]]
    before = before[max(0, len(before) - characters_within(before, alphabet, unit, TRAIN_BYTES)) :]
    after = after[: characters_within(after, alphabet, unit, HELD_BYTES)]
    n = len(after)
    texts = ids_to_bytes(before, alphabet, unit), ids_to_bytes(after, alphabet, unit)
    figures = [Baseline("uniform", math.log(len(alphabet)), 0.0)]

    def n_gram() -> None:
        began = time.thread_time()
        losses = kneser_ney(np.concatenate((before, after)), len(before), len(alphabet))
        seconds = time.thread_time() - began
        best = min(range(len(losses)), key=losses.__getitem__)
        figures.append(Baseline("unigram", losses[0], seconds / len(losses)))
        if best:
            figures.append(Baseline(f"{best + 1}-gram, Kneser-Ney", losses[best], seconds))

    def compressor(name: str, compress: Callable[[bytes], bytes]) -> None:
        began = time.thread_time()
        try:
            nats, note = compressed_nats(compress, *texts) / n, ""
        except ModuleNotFoundError:
            nats, note = None, "not measured: pip install -e '.[yardsticks]'"
        figures.append(Baseline(name, nats, time.thread_time() - began, note))

    jobs = [
        n_gram,
        lambda: compressor("bzip2", bz2.compress),
        lambda: compressor("xz", xz),
        lambda: compressor("PPMd, order 6", ppmd),
    ]
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # sorting and compressing release the GIL
        running = [pool.submit(job) for job in jobs]
        for job in tqdm(
            as_completed(running), total=len(jobs), desc="yardsticks", delay=2, leave=False,
            disable=None,
        ):  # fmt: skip
            job.result()
    figures.sort(key=lambda y: math.inf if y.nats is None else y.nats)
    return Baselines(len(before), n, tuple(figures))


def cached_baselines(text: EncodedText, train: tuple[int, int], held: tuple[int, int]) -> Baselines:
    """`measure_baselines`, kept in a file beside the encoded text."""
    file = Path(text.ids.filename).with_name("yardsticks.json")
    key = f"{CACHE_FORMAT}: {train[0]}-{train[1]}, {held[0]}-{held[1]}"
    known = {}
    try:
        known = dict(json.loads(file.read_text(encoding="utf-8")))
        found = known[key]
        figures = tuple(Baseline(**y) for y in found["figures"])
        if all(y.nats is not None for y in figures):
            return Baselines(found["train"], found["held"], figures)
    except (OSError, ValueError, KeyError, TypeError):
        pass  # none yet, or a damaged file: measured anew
    fresh = measure_baselines(text.ids, text.alphabet, train, held, text.unit)
    try:
        with lock_file(file.with_suffix(".lock")), atomic_write(file) as opened:
            opened.write(json.dumps(known | {key: asdict(fresh)}).encode())
    except OSError:
        pass  # a read-only or full disk: the figures are good all the same
    return fresh


def baseline_table(of: Baselines, model: tuple[str, float] | None = None) -> list[str]:
    """Lines for people, best first; `model` (name, nats per character) takes its place there."""
    rows = [(y.name, y.nats, f"{y.seconds:.1f} s", y.note) for y in of.figures]
    if model:
        rows.append((*model, "", "<-"))
    rows.sort(key=lambda row: math.inf if row[1] is None else row[1])
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
