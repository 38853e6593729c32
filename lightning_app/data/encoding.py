"""UTF-8 text on disk to a memory-mapped array of ids: streaming, cached, safe with two processes.

Two passes over the text, a few megabytes at a time: the first finds the alphabet and the content's
hash, the second writes the ids under that hash. Line ends become LF and a byte-order mark goes, so
the hash is that of the characters a model sees. Cut into bytes, a file is taken as it is, and a
symbol is the character of the byte's number.
"""

import codecs
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from tqdm import tqdm

from lightning_app.errors import UserError
from lightning_app.files import lock_file, temporary_folder

Unit = Literal["char", "byte"]
CHUNK_SIZE = 4 << 20  # bytes read at a time
BINCOUNT = 1 << 16  # numbers counted at a time: it makes eight bytes of each
CODE_POINTS = 0x110000
HASH_PREFIX = {
    "char": b"",
    "byte": b"bytes:",
}  # before what is hashed: "é" in bytes is another text
CACHE_FORMAT = 1  # of the cache; raise it and old caches are made anew


@dataclass(frozen=True)
class EncodedText:
    """A text as ids, with what there is to know about it."""

    ids: np.ndarray  # (n,) memory-mapped, the smallest unsigned type that holds the alphabet
    alphabet: str  # the sorted code points of the text
    fingerprint: str  # sha256 of the text's characters as UTF-8, or of its bytes
    starts: tuple[int, ...]  # where each file begins, in characters
    notes: tuple[str, ...]  # what was changed on the way: byte-order marks, CRLF
    unit: Unit = "char"


class TextChunk(NamedTuple):
    """A part of a text, cut between characters."""

    utf8: bytes  # or, cut into bytes, the file's
    codes: np.ndarray  # the code points, uint8 where all are ASCII or bytes, else uint32
    read: int  # how many bytes of the file went into it


def read_bytes(path: Path) -> Iterator[TextChunk]:
    """A file as it is."""
    with path.open("rb") as file:
        while raw := file.read(CHUNK_SIZE):
            yield TextChunk(raw, np.frombuffer(raw, dtype=np.uint8), len(raw))


def read_characters(path: Path) -> Iterator[TextChunk]:
    """A file's characters, LF line ends, no byte-order mark. Raises UserError for what is not
    UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8")("strict")
    held = b""  # a carriage return or the first bytes of a character, kept for the next chunk
    with path.open("rb") as file:
        raw = file.read(CHUNK_SIZE).removeprefix(codecs.BOM_UTF8)
        while raw or held:
            last, read = not raw, len(raw)
            raw, held = held + raw, b""
            if not last and raw.endswith(b"\r"):
                raw, held = raw[:-1], b"\r"
            if b"\r" in raw:
                raw = raw.replace(b"\r\n", b"\n")
            if raw.isascii():
                codes = np.frombuffer(raw, dtype=np.uint8)
            else:
                try:
                    text = decoder.decode(raw, final=last)
                except UnicodeDecodeError:
                    raise UserError(describe_bad_byte(path)) from None
                if pending := decoder.getstate()[0]:
                    raw, held = raw[: -len(pending)], pending + held
                decoder.reset()
                codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
            yield TextChunk(raw, codes, read)
            raw = b"" if last else file.read(CHUNK_SIZE)


def describe_bad_byte(path: Path) -> str:
    """Where a file stops being UTF-8: line, offset, and the likeliest remedy."""
    data = path.read_bytes()
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return f"{path} is UTF-16, not UTF-8; convert it: iconv -f UTF-16 -t UTF-8"
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        remedy = "convert it, for instance: iconv -f LATIN1 -t UTF-8"
        if b"\0" in data:
            remedy = "it is no text; name the texts alone, or take it with --data.unit byte"
        elif error.reason == "unexpected end of data":
            remedy = "the file ends within a character; fetch or save it again"
        elif not data[: error.start].isascii():
            remedy = "what stands before it is UTF-8, so the file is damaged there; mend it"
        return (
            f"{path} is not UTF-8: byte 0x{data[error.start]:02x} in line {line}, "
            f"offset {error.start}; {remedy}"
        )
    return f"{path} changed while it was read; start again"


def read_files(files: Sequence[Path], unit: Unit, doing: str) -> Iterator[tuple[int, TextChunk]]:
    """(file number, piece) over all files, with the newline that joins them; a bar after 2 s."""
    newline = TextChunk(b"\n", np.frombuffer(b"\n", dtype=np.uint8), 0)
    total = sum(file.stat().st_size for file in files)
    with tqdm(
        total=total, desc=doing, unit="B", unit_scale=True, delay=2, leave=False, disable=None
    ) as bar:
        for number, file in enumerate(files):
            if number:
                yield number - 1, newline
            for piece in (read_bytes if unit == "byte" else read_characters)(file):
                yield number, piece
                bar.update(piece.read)


def add_counts(codes: np.ndarray, counts: np.ndarray) -> None:
    """Add how often each number occurs to counts, of 256 at least."""
    if codes.dtype == np.uint8:  # as pairs, which are half as many
        pairs = np.zeros((256, 256), dtype=np.int64)
        even = len(codes) // 2 * 2
        add_counts(codes[:even].view(np.uint16), pairs.reshape(-1))
        counts[:256] += pairs.sum(axis=0) + pairs.sum(axis=1)
        codes = codes[even:]
    for first in range(0, len(codes), BINCOUNT):
        found = np.bincount(codes[first : first + BINCOUNT])
        counts[: len(found)] += found


def count_ids(ids: np.ndarray, vocab_size: int) -> np.ndarray:
    """How often each id occurs, (vocab_size,)."""
    counts = np.zeros(max(256, vocab_size), dtype=np.int64)
    for first in range(0, len(ids), CHUNK_SIZE):
        add_counts(ids[first : first + CHUNK_SIZE], counts)
    return counts[:vocab_size]


def count_characters(files: Sequence[Path], unit: Unit) -> tuple[np.ndarray, str, list[int]]:
    """First pass: counts by code point, the fingerprint, and how many characters each file adds."""
    counts = np.zeros(CODE_POINTS, dtype=np.int64)
    digest = hashlib.sha256(HASH_PREFIX[unit])
    lengths = [0] * len(files)
    for number, piece in read_files(files, unit, "reading"):
        add_counts(piece.codes, counts)
        lengths[number] += len(piece.codes)
        digest.update(piece.utf8)
    return counts, digest.hexdigest(), lengths


def reading_notes(files: Sequence[Path]) -> list[str]:
    """What reading normalises, judged by each file's first chunk."""
    marks = crlf = 0
    for path in files:
        with path.open("rb") as file:
            head = file.read(CHUNK_SIZE)
        marks += head.startswith(codecs.BOM_UTF8)
        crlf += b"\r\n" in head
    notes = [f"{marks} file(s) began with a byte-order mark, left out"] if marks else []
    return notes + ([f"{crlf} file(s) with CRLF line ends, read as LF"] if crlf else [])


def encode_files(files: Sequence[Path], cache: Path, unit: Unit = "char") -> EncodedText:
    """Ids of the texts in `files`, joined by a newline, memory-mapped from below `cache`.

    Raises UserError for an empty or undecodable text. A second process waits for the first.
    """
    try:
        counts, fingerprint, lengths = count_characters(files, unit)
    except PermissionError as error:
        raise UserError(f"{error.filename} cannot be read: permission denied") from None
    alphabet = "".join(map(chr, np.flatnonzero(counts)))
    n = int(counts.sum())
    if sum(lengths) == len(files) - 1:  # nothing but the newlines that join empty files
        names = ", ".join(map(str, files[:3]))
        raise UserError(f"the corpus is empty: {names}; give a file with text in it")
    dtype = np.dtype(np.min_scalar_type(len(alphabet) - 1))
    folder = cache / fingerprint[:20]
    size = n * dtype.itemsize
    if not is_complete(folder, fingerprint, size):
        with lock_file(folder.with_suffix(".lock")):
            if not is_complete(folder, fingerprint, size):  # another process made it meanwhile
                write_cache(files, unit, folder, fingerprint, alphabet, dtype)
    return EncodedText(
        ids=np.memmap(folder / "ids.bin", dtype=dtype, mode="r", shape=(n,)),
        alphabet=alphabet,
        fingerprint=fingerprint,
        starts=tuple(int(x) for x in np.cumsum([0, *lengths[:-1]])),
        notes=tuple(reading_notes(files)) if unit == "char" else (),
        unit=unit,
    )


def is_complete(folder: Path, fingerprint: str, size: int) -> bool:
    try:
        meta = json.loads((folder / "meta.json").read_text())
        return (
            meta == {"format": CACHE_FORMAT, "fingerprint": fingerprint}
            and (folder / "ids.bin").stat().st_size == size
        )
    except (OSError, ValueError):
        return False


def write_cache(
    files: Sequence[Path],
    unit: Unit,
    folder: Path,
    fingerprint: str,
    alphabet: str,
    dtype: np.dtype,
) -> None:
    """Second pass: encode into a temporary folder, then rename it to `folder`.

    Raises UserError when the text is no longer the one of the first pass.
    """
    table = np.zeros(ord(alphabet[-1]) + 1, dtype=dtype)
    table[[ord(c) for c in alphabet]] = np.arange(len(alphabet), dtype=dtype)
    of_byte = table[:256].astype(np.uint8).tobytes().ljust(256, b"\0")  # ids of the first 256
    digest = hashlib.sha256(HASH_PREFIX[unit])
    with temporary_folder(folder) as temporary:
        with (temporary / "ids.bin").open("wb") as file:
            for _, (utf8, codes, _) in read_files(files, unit, "encoding"):
                digest.update(utf8)
                if codes.dtype == np.uint8 and dtype == np.uint8:
                    file.write(utf8.translate(of_byte))
                    continue
                if len(codes) and codes.max() >= len(table):
                    break  # a new character: the file changed, as the digest will tell
                file.write(table[codes])
            file.flush()
            os.fsync(file.fileno())
        if digest.hexdigest() != fingerprint:
            raise UserError("the corpus changed while it was read; start again")
        meta = {"format": CACHE_FORMAT, "fingerprint": fingerprint}
        (temporary / "meta.json").write_text(json.dumps(meta))
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)
