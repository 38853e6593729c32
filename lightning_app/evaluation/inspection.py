"""Inspection of a text before training: its alphabet, splits, repetitions and baselines.

It reports suspicious characters, passages that occur in more than one split, and the loss of simple
models. The text is read in chunks. Only baselines, and repetitions in held-out splits of more than
two million characters, use a part of it, and the output says so.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lightning_app.data.encoding import CHUNK_SIZE, EncodedText, count_ids
from lightning_app.data.splits import SplitText
from lightning_app.evaluation.baselines import (
    MIN_HELD_OUT,
    Baselines,
    baseline_table,
    cached_baselines,
)
from lightning_app.evaluation.overlap import WindowIndex, covered_characters, find_windows, passages

RARE_COUNT = 10  # a character with fewer occurrences is hardly learned
PASSAGE_LENGTH = 100  # characters; shorter repetitions are normal in any language
HELD_OUT_LIMIT = 2_000_000  # characters of a held-out split that are searched for elsewhere
MAX_EXAMPLES = 3

Bounds = dict[str, tuple[int, int]]  # split: first and one-past-last character


@dataclass(frozen=True)
class Symbol:
    """A character of the alphabet, or with unit "byte" a byte."""

    code_point: str  # U+ and four or more hexadecimal digits
    name: str
    count: int  # occurrences in the text
    why: str = ""  # the reason if it is suspicious


@dataclass(frozen=True)
class SplitSummary:
    """One split of the text."""

    name: str
    first: int
    last: int  # one past its last character
    unseen: int  # characters that do not occur in the training split, with repetitions


@dataclass(frozen=True)
class Repetition:
    """How much of split `of` also occurs in split `within`, in passages of at least PASSAGE_LENGTH
    characters."""

    of: str
    within: str
    characters: int  # of `of` that are in such passages
    looked_at: int  # characters of `of` that were searched for
    examples: tuple[tuple[int, int, str], ...]  # the longest: position, length, text


@dataclass(frozen=True)
class Inspection:
    """All results; `inspect --json` prints them under these names."""

    corpus: str
    files: int
    bytes: int
    characters: int
    fingerprint: str
    notes: tuple[str, ...]
    alphabet: tuple[Symbol, ...]  # the most frequent first
    splits: tuple[SplitSummary, ...]
    repetitions: tuple[Repetition, ...]
    baselines: Baselines | None


def inspect_text(split_text: SplitText, with_baselines: bool = True) -> Inspection:
    """Inspect a text. Baselines predict the validation split, or if it is empty the test split."""
    text, bounds, files = split_text.text, split_text.bounds, split_text.corpus.files
    counts = count_ids(text.ids, len(text.alphabet))
    held = next((bounds[name] for name in ("val", "test") if np.diff(bounds[name])), None)
    baselines = None
    if with_baselines and held and bounds["train"][1]:
        baselines = cached_baselines(text, bounds["train"], held)
    return Inspection(
        corpus=split_text.corpus.name,
        files=len(files),
        bytes=sum(file.stat().st_size for file in files),
        characters=len(text.ids),
        fingerprint=text.fingerprint,
        notes=text_notes(text, files, counts) if text.unit == "char" else (),
        alphabet=count_symbols(text, counts),
        splits=summarise_splits(text, bounds),
        repetitions=find_repetitions(split_text),
        baselines=baselines,
    )


def count_symbols(text: EncodedText, counts: np.ndarray) -> tuple[Symbol, ...]:
    """The symbols of the alphabet, given their numbers of occurrences (V,); most frequent first."""

    def symbol(c: str, count: int) -> Symbol:
        if text.unit == "byte":
            return Symbol(f"U+{ord(c):04X}", f"byte 0x{ord(c):02x}", count)
        return Symbol(f"U+{ord(c):04X}", character_name(c), count, suspicion(c))

    symbols = [symbol(c, int(n)) for c, n in zip(text.alphabet, counts, strict=True)]
    return tuple(sorted(symbols, key=lambda s: -s.count))


def character_name(c: str) -> str:
    names = {"\n": "LINE FEED", "\t": "TAB", "\r": "CARRIAGE RETURN"}
    return names[c] if c in names else unicodedata.name(c, "no name")


def suspicion(c: str) -> str:
    """The reason why a character is probably an error in a text; empty for other characters."""
    if c in "\n\t":
        return ""
    if c == "\r":
        return "line end of another system"
    if c == "\ufffd":
        return "replaces a character that was lost"
    if c in "\ufeff\u200b\u00ad\u2060":
        return "invisible"
    if c in "\u200c\u200d":  # joiners: needed by emoji, Persian and Indian scripts
        return ""
    return {
        "Cc": "control character",
        "Cf": "invisible",
        "Co": "private use: has no standard meaning",
        "Cn": "not assigned by Unicode",
    }.get(unicodedata.category(c), "")


def text_notes(text: EncodedText, files: Sequence[Path], counts: np.ndarray) -> tuple[str, ...]:
    """What reading changes in a text, and probable errors that concern more than one character."""
    return (
        *text.notes,
        *line_end_notes(files),
        *normalisation_notes(text.ids, text.alphabet, counts),
        *mojibake_notes(text.ids, text.alphabet),
    )


def normalisation_notes(ids: np.ndarray, alphabet: str, counts: np.ndarray) -> list[str]:
    """A note if letters with marks are encoded in both of Unicode's ways: as one code point (NFC),
    and as a letter and a combining mark (NFD)."""
    composed = sum(
        int(n)
        for c, n in zip(alphabet, counts, strict=True)
        if unicodedata.normalize("NFD", c) != c and unicodedata.normalize("NFC", c) == c
    )
    decomposed = sum(
        n
        for letter, mark, n in letters_with_marks(ids, alphabet)
        if len(unicodedata.normalize("NFC", letter + mark)) == 1
    )
    if not (composed and decomposed):
        return []
    return [
        f"letters with marks are encoded in two ways: {composed:,} as one code point (NFC), "
        f"{decomposed:,} as letter and mark (NFD); normalise the text"
    ]


def letters_with_marks(ids: np.ndarray, alphabet: str) -> list[tuple[str, str, int]]:
    """(character, combining mark after it, number of occurrences)."""
    marks = np.array([unicodedata.combining(c) > 0 for c in alphabet])
    if not marks.any():
        return []
    counts: dict[int, int] = {}
    for first in range(0, len(ids) - 1, CHUNK_SIZE):
        chunk = ids[first : first + CHUNK_SIZE + 1].astype(np.int64)
        before = np.flatnonzero(marks[chunk[1:]])
        found, n = np.unique(chunk[before] * len(alphabet) + chunk[before + 1], return_counts=True)
        for pair, count in zip(found.tolist(), n.tolist(), strict=True):
            counts[pair] = counts.get(pair, 0) + count
    return [
        (alphabet[pair // len(alphabet)], alphabet[pair % len(alphabet)], count)
        for pair, count in counts.items()
    ]


def line_end_notes(files: Sequence[Path]) -> list[str]:
    """A note if CRLF and LF line ends are mixed."""
    crlf = lf = 0
    for path in files:
        last = b""
        with path.open("rb") as file:
            while chunk := file.read(CHUNK_SIZE):
                crlf += (last + chunk).count(b"\r\n")
                lf += chunk.count(b"\n")
                last = chunk[-1:]
    if not 0 < crlf < lf:
        return []
    return [f"mixed line ends: {crlf:,} CRLF, {lf - crlf:,} LF; all are read as LF"]


def mojibake_notes(ids: np.ndarray, alphabet: str) -> list[str]:
    """A note if UTF-8 was probably decoded as Latin-1 or Windows-1252 before it was saved."""
    lead = [i for i, c in enumerate(alphabet) if c in "ÂÃâ"]
    follow = [i for i, c in enumerate(alphabet) if "\x80" <= c <= "¿" or c in "€™œž“”‚‘’"]
    if not lead or not follow:
        return []
    hits = 0
    for first in range(0, len(ids) - 1, CHUNK_SIZE):
        chunk = ids[first : first + CHUNK_SIZE + 1]
        hits += int(np.count_nonzero(np.isin(chunk[:-1], lead) & np.isin(chunk[1:], follow)))
    if hits < 3:
        return []
    return [
        f"{hits:,} places look like UTF-8 that was decoded as Latin-1 (Ã©, â€™): convert the "
        "source again"
    ]


def summarise_splits(text: EncodedText, bounds: Bounds) -> tuple[SplitSummary, ...]:
    counts = {
        name: count_ids(text.ids[first:last], len(text.alphabet))
        for name, (first, last) in bounds.items()
    }
    unseen = counts["train"] == 0
    return tuple(
        SplitSummary(name, first, last, int(counts[name][unseen].sum()))
        for name, (first, last) in bounds.items()
    )


def find_repetitions(split_text: SplitText) -> tuple[Repetition, ...]:
    """Passages of each held-out split that also occur in a split before it."""
    held = {name: split_text.ids(name)[:HELD_OUT_LIMIT] for name in ("val", "test")}
    indexes = {
        name: WindowIndex(ids, PASSAGE_LENGTH)
        for name, ids in held.items()
        if len(ids) >= PASSAGE_LENGTH
    }
    repetitions = []
    for within, later in (("train", ("val", "test")), ("val", ("test",))):
        names, other = [name for name in later if name in indexes], split_text.ids(within)
        if not names or len(other) < PASSAGE_LENGTH:
            continue
        found = find_windows([indexes[name] for name in names], other)
        for of, positions in zip(names, found, strict=True):
            size = len(held[of])
            characters = covered_characters(positions, PASSAGE_LENGTH, size)
            examples = longest_passages(split_text, of, positions)
            repetitions.append(Repetition(of, within, characters, size, examples))
    return tuple(repetitions)


def longest_passages(
    split_text: SplitText, name: str, positions: np.ndarray
) -> tuple[tuple[int, int, str], ...]:
    """(position in the text, length, first characters) of the longest passages of a split, given
    the positions that `find_windows` returned for it."""
    ids, alphabet = split_text.ids(name), split_text.text.alphabet
    longest = sorted(passages(positions, PASSAGE_LENGTH), key=lambda p: p.first - p.last)
    return tuple(
        (
            split_text.bounds[name][0] + p.first,
            p.last - p.first,
            "".join(alphabet[i] for i in ids[p.first : p.first + PASSAGE_LENGTH]),
        )
        for p in longest[:MAX_EXAMPLES]
    )


def inspection_lines(inspection: Inspection) -> list[str]:
    """The inspection as one screen of text; `!` marks what may be a problem."""
    files = f"{inspection.files:,} file{'s' * (inspection.files != 1)}"
    return [
        f"corpus      {inspection.corpus}: {files}, {inspection.bytes:,} bytes, "
        f"{inspection.characters:,} characters",
        *(f"          ! {note}" for note in inspection.notes),
        *alphabet_lines(inspection.alphabet),
        *split_lines(inspection),
        *repetition_lines(inspection.repetitions),
        *baseline_lines(inspection),
    ]


def alphabet_lines(alphabet: Sequence[Symbol]) -> list[str]:
    lines = [
        f"alphabet    {len(alphabet):,} characters",
        f"  common    {''.join(displayed(s) for s in alphabet[:60])}",
    ]
    rare = [s for s in alphabet if s.count < RARE_COUNT]
    if rare:
        shown = " ".join(f"{displayed(s)}({s.count})" for s in rare[:20])
        more = f" and {len(rare) - 20:,} more" if len(rare) > 20 else ""
        lines.append(f"  rare      {len(rare):,} occur less than {RARE_COUNT} times: {shown}{more}")
    suspicious = [s for s in alphabet if s.why]
    for s in suspicious[:10]:
        lines.append(f"          ! {s.code_point} {s.name}, {s.count:,} times: {s.why}")
    if len(suspicious) > 10:
        lines.append(f"          ! and {len(suspicious) - 10:,} more suspicious ones (see --json)")
    return lines


def displayed(symbol: Symbol) -> str:
    """A symbol as the screen shows it; invisible ones as their code point."""
    c = chr(int(symbol.code_point[2:], 16))
    if c in " \n":
        return "␣" if c == " " else "⏎"
    return c if c.isprintable() and not unicodedata.combining(c) else symbol.code_point


def split_lines(inspection: Inspection) -> list[str]:
    lines = []
    for split in inspection.splits:
        size = split.last - split.first
        share = size / max(1, inspection.characters)
        unseen = f"; {split.unseen:,} do not occur in train" if split.unseen else ""
        lines.append(f"{split.name:12}{size:,} characters ({share:.1%}){unseen}")
    return lines


def repetition_lines(repetitions: Sequence[Repetition]) -> list[str]:
    if not repetitions:
        return [
            f"repeated    not searched: no two splits have {PASSAGE_LENGTH} or more characters each"
        ]
    lines = [
        f"repeated    passages of {PASSAGE_LENGTH} or more characters that occur in two splits"
    ]
    for r in repetitions:
        share = r.characters / r.looked_at
        mark = "!" if share > 0.01 else " "
        part = f" (of its first {r.looked_at:,})" if r.looked_at == HELD_OUT_LIMIT else ""
        lines.append(f"          {mark} {share:.2%} of {r.of} occurs in {r.within}{part}")
        for position, length, text in r.examples:
            lines.append(f"            {length:,} characters at {position:,}: {text[:50]!r}...")
    return lines


def baseline_lines(inspection: Inspection) -> list[str]:
    baselines = inspection.baselines
    if baselines is None:
        return []
    val = inspection.splits[1]
    lowest = min(b.nats for b in baselines.results if b.nats is not None)
    lesson = f"a network is useful if its loss is below {lowest:.3f} nats per character"
    if baselines.held < MIN_HELD_OUT:
        lesson = f"on fewer than {MIN_HELD_OUT} characters these figures depend on chance"
    elif lowest < 0.0005:
        lesson = "a network cannot be better than the first of these: the text repeats itself"
    return [
        "",
        f"{baselines.held:,} characters of {'val' if val.last > val.first else 'test'}, given "
        f"{baselines.train:,} of train",
        *baseline_table(baselines),
        lesson,
    ]
