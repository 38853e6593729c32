"""Encoding: UTF-8 files become a memory-mapped array of ids, cached on disk.

Files are read twice, in chunks of a few megabytes: the first pass finds the alphabet and the hash
of the text, the second writes the ids to a cache folder named by that hash. Several processes may
encode the same text at the same time. CRLF is read as LF and byte-order marks are skipped, so the
hash is that of the characters a model sees. With unit "byte" files are read as they are, and byte b
is represented by the character chr(b).
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
COUNT_SIZE = 1 << 16  # numbers counted at a time: numpy.bincount converts them to int64
UNICODE_SIZE = 0x110000  # number of code points
HASH_PREFIX = {"char": b"", "byte": b"bytes:"}  # a text has other ids as bytes: another cache
CACHE_FORMAT = 1  # caches of another format are encoded again


@dataclass(frozen=True)
class EncodedText:
    """A text as ids, and what is needed to decode and to split it."""

    ids: np.memmap  # (n,), of the smallest unsigned type that is large enough for the alphabet
    alphabet: str  # the characters that occur in the text, sorted
    fingerprint: str  # sha256 of the text's characters as UTF-8, or of its bytes
    starts: tuple[int, ...]  # the position of each file's first character
    notes: tuple[str, ...]  # what differs from the files: byte-order marks, CRLF
    unit: Unit = "char"


class TextChunk(NamedTuple):
    """Consecutive characters of a file."""

    data: bytes  # the characters in UTF-8; with unit "byte", the bytes of the file
    codes: np.ndarray  # (n,) their code points: uint8 if all are ASCII or bytes, else uint32
    bytes_read: int  # for the progress bar


def read_bytes(path: Path) -> Iterator[TextChunk]:
    """The bytes of a file, in chunks."""
    with path.open("rb") as file:
        while raw := file.read(CHUNK_SIZE):
            yield TextChunk(raw, np.frombuffer(raw, dtype=np.uint8), len(raw))


def read_characters(path: Path) -> Iterator[TextChunk]:
    """The characters of a file, in chunks, with CRLF as LF and without a byte-order mark.

    Raises UserError for a file that is not UTF-8.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("strict")
    pending = b""  # a carriage return, or the first bytes of a character, for the next chunk
    with path.open("rb") as file:
        raw = file.read(CHUNK_SIZE).removeprefix(codecs.BOM_UTF8)
        while raw or pending:
            last, bytes_read = not raw, len(raw)
            raw, pending = pending + raw, b""
            if not last and raw.endswith(b"\r"):
                raw, pending = raw[:-1], b"\r"
            if b"\r" in raw:
                raw = raw.replace(b"\r\n", b"\n")
            if raw.isascii():
                codes = np.frombuffer(raw, dtype=np.uint8)
            else:
                try:
                    text = decoder.decode(raw, final=last)
                except UnicodeDecodeError:
                    raise UserError(describe_bad_byte(path)) from None
                if incomplete := decoder.getstate()[0]:  # bytes of the last character
                    raw, pending = raw[: -len(incomplete)], incomplete + pending
                decoder.reset()
                codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
            yield TextChunk(raw, codes, bytes_read)
            raw = b"" if last else file.read(CHUNK_SIZE)


def describe_bad_byte(path: Path) -> str:
    """The error message for a file that is not UTF-8: line and offset of the first bad byte, and
    the most likely remedy."""
    data = path.read_bytes()
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return f"{path} is UTF-16, not UTF-8; convert it: iconv -f UTF-16 -t UTF-8"
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        remedy = "convert it, for instance: iconv -f LATIN1 -t UTF-8"
        if b"\0" in data:
            remedy = "this is not a text file; leave it out, or read bytes with --data.unit byte"
        elif error.reason == "unexpected end of data":
            remedy = "the file ends within a character; download or save it again"
        elif not data[: error.start].isascii():
            remedy = "the text before it is UTF-8, so the file is damaged there; repair it"
        return (
            f"{path} is not UTF-8: byte 0x{data[error.start]:02x} in line {line}, "
            f"offset {error.start}; {remedy}"
        )
    return f"{path} changed while it was being read; start again"


def read_files(files: Sequence[Path], unit: Unit, label: str) -> Iterator[tuple[int, TextChunk]]:
    """(file number, chunk) for all files, with the newlines that join them. Shows a progress bar
    after 2 s."""
    newline = TextChunk(b"\n", np.frombuffer(b"\n", dtype=np.uint8), 0)
    total = sum(file.stat().st_size for file in files)
    read = read_bytes if unit == "byte" else read_characters
    with tqdm(
        total=total, desc=label, unit="B", unit_scale=True, delay=2, leave=False, disable=None
    ) as bar:
        for number, file in enumerate(files):
            if number:
                yield number - 1, newline
            for chunk in read(file):
                yield number, chunk
                bar.update(chunk.bytes_read)


def add_counts(codes: np.ndarray, counts: np.ndarray) -> None:
    """Add the number of occurrences of each code to `counts`, in place; it has 256 entries or
    more."""
    if codes.dtype == np.uint8:  # counted as pairs: half as many numbers
        pairs = np.zeros((256, 256), dtype=np.int64)
        even = len(codes) // 2 * 2
        add_counts(codes[:even].view(np.uint16), pairs.reshape(-1))
        counts[:256] += pairs.sum(axis=0) + pairs.sum(axis=1)
        codes = codes[even:]
    for first in range(0, len(codes), COUNT_SIZE):
        found = np.bincount(codes[first : first + COUNT_SIZE])
        counts[: len(found)] += found


def count_ids(ids: np.ndarray, vocab_size: int) -> np.ndarray:
    """The number of occurrences of each id, (vocab_size,)."""
    counts = np.zeros(max(256, vocab_size), dtype=np.int64)
    for first in range(0, len(ids), CHUNK_SIZE):
        add_counts(ids[first : first + CHUNK_SIZE], counts)
    return counts[:vocab_size]


def count_characters(files: Sequence[Path], unit: Unit) -> tuple[np.ndarray, str, list[int]]:
    """First pass: the number of occurrences of each code point, the fingerprint, and the number of
    characters of each file and the newline after it."""
    counts = np.zeros(UNICODE_SIZE, dtype=np.int64)
    digest = hashlib.sha256(HASH_PREFIX[unit])
    lengths = [0] * len(files)
    for number, chunk in read_files(files, unit, "reading"):
        add_counts(chunk.codes, counts)
        lengths[number] += len(chunk.codes)
        digest.update(chunk.data)
    return counts, digest.hexdigest(), lengths


def reading_notes(files: Sequence[Path]) -> list[str]:
    """What `read_characters` changes; only the first chunk of each file is examined."""
    marks = crlf = 0
    for path in files:
        with path.open("rb") as file:
            head = file.read(CHUNK_SIZE)
        marks += head.startswith(codecs.BOM_UTF8)
        crlf += b"\r\n" in head
    notes = [f"{marks} file(s) begin with a byte-order mark, which is skipped"] if marks else []
    return notes + ([f"{crlf} file(s) with CRLF line ends, read as LF"] if crlf else [])


def encode_files(files: Sequence[Path], cache: Path, unit: Unit = "char") -> EncodedText:
    """The text of `files`, joined by newlines, as ids memory-mapped from a folder in `cache`.

    Raises UserError if there are no characters, a file is unreadable, or, with unit "char", not
    UTF-8. A second process that encodes the same text waits for the first.
    """
    try:
        counts, fingerprint, lengths = count_characters(files, unit)
    except PermissionError as error:
        raise UserError(f"{error.filename} cannot be read: permission denied") from None
    alphabet = "".join(map(chr, np.flatnonzero(counts)))
    n = int(counts.sum())
    if sum(lengths) == len(files) - 1:  # only the newlines that join empty files
        names = ", ".join(map(str, files[:3]))
        raise UserError(f"the corpus is empty: {names}; give a file with text in it")
    dtype = np.dtype(np.min_scalar_type(len(alphabet) - 1))
    folder = cache_folder(cache, fingerprint)
    size = n * dtype.itemsize
    if not is_complete(folder, fingerprint, size):
        with lock_file(folder.with_suffix(".lock")):
            if not is_complete(folder, fingerprint, size):  # another process may have written it
                write_cache(files, unit, folder, fingerprint, alphabet, dtype)
    return EncodedText(
        ids=np.memmap(folder / "ids.bin", dtype=dtype, mode="r", shape=(n,)),
        alphabet=alphabet,
        fingerprint=fingerprint,
        starts=tuple(int(x) for x in np.cumsum([0, *lengths[:-1]])),
        notes=tuple(reading_notes(files)) if unit == "char" else (),
        unit=unit,
    )


def cache_folder(cache: Path, fingerprint: str) -> Path:
    """Where in `cache` the ids of a text are, and what was computed from them."""
    return cache / fingerprint[:20]


def is_complete(folder: Path, fingerprint: str, size: int) -> bool:
    """Whether a cache folder holds the ids of this text, of `size` bytes, in today's format."""
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

    Raises UserError if the files have changed since the first pass.
    """
    table = np.zeros(ord(alphabet[-1]) + 1, dtype=dtype)  # code point -> id
    table[[ord(c) for c in alphabet]] = np.arange(len(alphabet), dtype=dtype)
    byte_table = table[:256].astype(np.uint8).tobytes().ljust(256, b"\0")  # for bytes.translate
    digest = hashlib.sha256(HASH_PREFIX[unit])
    with temporary_folder(folder) as temporary:
        with (temporary / "ids.bin").open("wb") as file:
            for _, (data, codes, _) in read_files(files, unit, "encoding"):
                digest.update(data)
                if codes.dtype == np.uint8 and dtype == np.uint8:
                    file.write(data.translate(byte_table))
                    continue
                if len(codes) and codes.max() >= len(table):
                    break  # a new character: the file has changed, so the digest differs
                file.write(table[codes])
            file.flush()
            os.fsync(file.fileno())
        if digest.hexdigest() != fingerprint:
            raise UserError("the corpus changed while it was being read; start again")
        meta = {"format": CACHE_FORMAT, "fingerprint": fingerprint}
        (temporary / "meta.json").write_text(json.dumps(meta))
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)
