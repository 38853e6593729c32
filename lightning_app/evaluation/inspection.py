"""What there is to know about a text before an hour goes into it.

Its alphabet with what looks wrong in it, its splits, passages that stand in more than one of them,
and what simple models make of it. The text is read as a stream; only the yardsticks, and the
passages of held-out text beyond two million characters, are taken from a part, which is said.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lightning_app.data.encoding import CHUNK_SIZE, count_ids
from lightning_app.data.splits import SplitText
from lightning_app.evaluation.baselines import Baselines, baseline_table, cached_baselines
from lightning_app.evaluation.overlap import WindowIndex, covered_characters, find_windows, passages

RARE = 10  # a character seen less often is hardly learned
PASSAGE = 100  # characters; shorter repetitions are how language is
HELD_OUT_LIMIT = 2_000_000  # characters of a held-out split that are looked up elsewhere
EXAMPLES = 3


@dataclass(frozen=True)
class Symbol:
    """A character, `count` times in the text; `why` says what is suspicious about it."""

    code_point: str
    name: str
    count: int
    why: str = ""


@dataclass(frozen=True)
class SplitSummary:
    name: str
    first: int
    last: int
    unseen: int  # characters whose symbol does not occur in the training split


@dataclass(frozen=True)
class Repetition:
    """How much of split `of` stands word for word in split `within`, in passages of PASSAGE
    characters or more; `examples` are the longest, as (place, length, text)."""

    of: str
    within: str
    characters: int
    looked_at: int
    examples: tuple[tuple[int, int, str], ...]


@dataclass(frozen=True)
class Inspection:
    corpus: str
    files: int
    bytes: int
    characters: int
    fingerprint: str
    notes: tuple[str, ...]
    alphabet: tuple[Symbol, ...]  # by count, the commonest first
    splits: tuple[SplitSummary, ...]
    repetitions: tuple[Repetition, ...]
    yardsticks: Baselines | None


def suspicion(c: str) -> str:
    """Why a character seldom belongs in a text; empty for those that do."""
    category = unicodedata.category(c)
    if c in "\n\t":
        return ""
    if c == "\r":
        return "line end of another system"
    if c == "\ufffd":
        return "stands for a character that was lost"
    if c in "\ufeff\u200b\u00ad\u2060":
        return "invisible"
    if c in "\u200c\u200d":  # joiners: emoji, Persian and Indian scripts need them
        return ""
    return {
        "Cc": "control character",
        "Cf": "invisible",
        "Co": "private use: means nothing elsewhere",
        "Cn": "not assigned by Unicode",
    }.get(category, "")


def name_of(c: str) -> str:
    names = {"\n": "LINE FEED", "\t": "TAB", "\r": "CARRIAGE RETURN"}
    return names.get(c) or unicodedata.name(c, "no name")


def normalisation(ids: np.ndarray, alphabet: str, counts: np.ndarray) -> list[str]:
    """A note when a text writes letters with marks in both of Unicode's ways: as one code point
    (NFC), and as letter and mark (NFD)."""
    composed = sum(
        int(n)
        for c, n in zip(alphabet, counts, strict=True)
        if unicodedata.normalize("NFD", c) != c and unicodedata.normalize("NFC", c) == c
    )
    marks = np.array([unicodedata.combining(c) > 0 for c in alphabet])
    decomposed = 0
    if marks.any():
        pairs: dict[int, int] = {}
        for first in range(0, len(ids) - 1, CHUNK_SIZE):
            piece = ids[first : first + CHUNK_SIZE + 1].astype(np.int64)
            at = np.flatnonzero(marks[piece[1:]])
            found, number = np.unique(piece[at] * len(alphabet) + piece[at + 1], return_counts=True)
            for pair, n in zip(found.tolist(), number.tolist(), strict=True):
                pairs[pair] = pairs.get(pair, 0) + n
        for pair, n in pairs.items():
            letter, mark = divmod(pair, len(alphabet))
            if len(unicodedata.normalize("NFC", alphabet[letter] + alphabet[mark])) == 1:
                decomposed += n
    if not (composed and decomposed):
        return []
    return [
        f"two spellings of letters with marks: {composed:,} as one code point (NFC), "
        f"{decomposed:,} as letter and mark (NFD); normalise the text"
    ]


def line_ends(files: Sequence[Path]) -> list[str]:
    """A note when line ends of two systems are mixed (CRLF is read as LF, so nothing is lost)."""
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


def mojibake(ids: np.ndarray, alphabet: str) -> list[str]:
    """A note when UTF-8 seems to have been read as Latin-1 or Windows-1252 before."""
    lead = [i for i, c in enumerate(alphabet) if c in "ÂÃâ"]
    follow = [i for i, c in enumerate(alphabet) if "\x80" <= c <= "¿" or c in "€™œž“”‚‘’"]
    if not lead or not follow:
        return []
    hits = 0
    for first in range(0, len(ids) - 1, CHUNK_SIZE):
        piece = ids[first : first + CHUNK_SIZE + 1]
        hits += int(np.count_nonzero(np.isin(piece[:-1], lead) & np.isin(piece[1:], follow)))
    if hits < 3:
        return []
    return [f"{hits:,} places look like UTF-8 read as Latin-1 (Ã©, â€™): convert the source again"]


def find_repetitions(divided: SplitText) -> tuple[Repetition, ...]:
    """Passages of each held-out split that also stand in a split before it."""
    text, repetitions = divided.text, []
    held = {name: divided.ids(name)[:HELD_OUT_LIMIT] for name in ("val", "test")}
    indexes = {name: WindowIndex(ids, PASSAGE) for name, ids in held.items() if len(ids) >= PASSAGE}
    for within, after in (("train", ("val", "test")), ("val", ("test",))):
        names, other = [name for name in after if name in indexes], divided.ids(within)
        if not names or len(other) < PASSAGE:
            continue
        for of, where in zip(names, find_windows([indexes[n] for n in names], other), strict=True):
            longest = sorted(passages(where, PASSAGE), key=lambda p: p.first - p.last)[:EXAMPLES]
            examples = tuple(
                (
                    divided.bounds[of][0] + p.first,
                    p.last - p.first,
                    "".join(text.alphabet[i] for i in held[of][p.first : p.first + PASSAGE]),
                )
                for p in longest
            )
            size = len(held[of])
            share = covered_characters(where, PASSAGE, size)
            repetitions.append(Repetition(of, within, share, size, examples))
    return tuple(repetitions)


def inspect_text(divided: SplitText, with_yardsticks: bool = True) -> Inspection:
    text, bounds, files = divided.text, divided.bounds, divided.corpus.files
    ids, alphabet = text.ids, text.alphabet
    counts = count_ids(ids, len(alphabet))
    own = {name: count_ids(ids[slice(*ends)], len(alphabet)) for name, ends in bounds.items()}
    unseen = own["train"] == 0
    splits = [
        SplitSummary(name, *ends, int(own[name][unseen].sum())) for name, ends in bounds.items()
    ]
    if text.unit == "byte":
        symbols = [
            Symbol(f"U+{ord(c):04X}", f"byte 0x{ord(c):02x}", int(n))
            for c, n in zip(alphabet, counts, strict=True)
        ]
        notes = []
    else:
        symbols = [
            Symbol(f"U+{ord(c):04X}", name_of(c), int(n), suspicion(c))
            for c, n in zip(alphabet, counts, strict=True)
        ]
        notes = [*text.notes, *line_ends(files), *normalisation(ids, alphabet, counts)]
        notes += mojibake(ids, alphabet)
    held = next((bounds[name] for name in ("val", "test") if np.diff(bounds[name])), None)
    figures = None
    if with_yardsticks and held and bounds["train"][1]:
        figures = cached_baselines(text, bounds["train"], held)
    return Inspection(
        corpus=divided.corpus.name,
        files=len(files),
        bytes=sum(file.stat().st_size for file in files),
        characters=len(ids),
        fingerprint=text.fingerprint,
        notes=tuple(notes),
        alphabet=tuple(sorted(symbols, key=lambda s: -s.count)),
        splits=tuple(splits),
        repetitions=find_repetitions(divided),
        yardsticks=figures,
    )


def inspection_lines(of: Inspection) -> list[str]:
    """The inspection for people: one screen, what to worry about marked with `!`."""
    lines = [
        f"corpus      {of.corpus}: {of.files:,} file{'s' * (of.files != 1)}, {of.bytes:,} bytes, "
        f"{of.characters:,} characters"
    ]
    lines += [f"          ! {note}" for note in of.notes]
    lines.append(f"alphabet    {len(of.alphabet):,} characters")
    common = "".join(character(s) for s in of.alphabet[:60])
    lines.append(f"  common    {common}")
    rare = [s for s in of.alphabet if s.count < RARE]
    if rare:
        some = " ".join(f"{character(s)}({s.count})" for s in rare[:20])
        more = f" and {len(rare) - 20:,} more" if len(rare) > 20 else ""
        lines.append(f"  rare      {len(rare):,} seen less than {RARE} times: {some}{more}")
    suspicious = [s for s in of.alphabet if s.why]
    for s in suspicious[:10]:
        lines.append(f"          ! {s.code_point} {s.name}, {s.count:,} times: {s.why}")
    if len(suspicious) > 10:
        lines.append(f"          ! and {len(suspicious) - 10:,} more of this kind (--json has all)")
    for split in of.splits:
        size = split.last - split.first
        line = f"{split.name:12}{size:,} characters ({size / max(1, of.characters):.1%})"
        lines.append(line + (f"; {split.unseen:,} never seen in train" if split.unseen else ""))
    lines.append("repeated    passages of 100 and more characters that stand in two splits")
    for r in of.repetitions:
        share = r.characters / r.looked_at
        mark = "!" if share > 0.01 else " "
        size = f" (of its first {r.looked_at:,})" if r.looked_at == HELD_OUT_LIMIT else ""
        lines.append(f"          {mark} {share:.2%} of {r.of} stands in {r.within}{size}")
        for place, length, text in r.examples:
            lines.append(f"            {length:,} characters at {place:,}: {text[:50]!r}...")
    if of.yardsticks:
        held = "val" if of.splits[1].last > of.splits[1].first else "test"
        lines += [
            "",
            f"{of.yardsticks.held:,} characters of {held}, given {of.yardsticks.train:,} of train",
            *baseline_table(of.yardsticks),
        ]
        best = min(y.nats for y in of.yardsticks.figures if y.nats is not None)
        lines.append(f"a network is worth something below {best:.3f} nats a character")
    return lines


def character(s: Symbol) -> str:
    c = chr(int(s.code_point[2:], 16))
    if c in " \n":
        return "␣" if c == " " else "⏎"
    return c if c.isprintable() and not unicodedata.combining(c) else s.code_point
