"""Laws of encoding files; the reference is Python's own decoding."""

import errno
import hashlib
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from lightning_app.data import encoding
from lightning_app.data.encoding import (
    CACHE_FORMAT,
    EncodedText,
    count_characters,
    count_ids,
    encode_files,
    read_characters,
)
from lightning_app.errors import UserError

ROOT = Path(__file__).parents[2]
BOM = b"\xef\xbb\xbf"
TEXTS = {
    "ascii": "To be, or not to be: that is the question.\n\tWhether...\x00\x7f",
    "latin": "Größe, où ça? ¡Señor! ÿ",
    "cjk": "天地玄黃、宇宙洪荒。\n日月盈昃",
    "emoji": "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽é",
    "mixed": "a\r\né\r\n\n天\r\r\n😀\r\n\r天\r",
    "line ends": "\r\n\r\n\r\r\n\n\r",
    "last code points": "\ud7ff\ue000\uffff\U00010000\U0010ffff",
}


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def plain(path: Path) -> str:
    return path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")


def decoded(text: EncodedText) -> str:
    return "".join(text.alphabet[i] for i in text.ids)


def refusal(files: list[Path], cache: Path) -> str:
    with pytest.raises(UserError) as error:
        encode_files(files, cache)
    message = str(error.value)
    assert "\n" not in message
    return message


def folders(cache: Path) -> list[Path]:
    return [path for path in cache.iterdir() if path.is_dir()]


# Characters.


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 7, 4 << 20])
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_ids_decode_to_the_text_wherever_chunks_end(tmp_path, monkeypatch, text, chunk):
    monkeypatch.setattr(encoding, "CHUNK_SIZE", chunk)
    file = written(tmp_path / "a.txt", text)
    encoded = encode_files([file], tmp_path / "cache")
    assert decoded(encoded) == plain(file)
    assert encoded.alphabet == "".join(sorted(set(plain(file))))


@pytest.mark.parametrize("chunk", [1, 2, 3, 4, 5, 7, 8])
def test_chunks_of_files_of_all_lengths_join_to_the_text(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(encoding, "CHUNK_SIZE", chunk)
    for text in ("abcdefghij", "é天😀" * 3, "\r\n" * 6, "a\r\né\r\n\r天\r\r\n😀"):
        for length in range(1, len(text) + 1):
            file = written(tmp_path / "a.txt", text[:length])
            chunks = list(read_characters(file))
            assert "".join(chunk.data.decode() for chunk in chunks) == plain(file)
            assert sum(chunk.bytes_read for chunk in chunks) == file.stat().st_size


@pytest.mark.parametrize("position", range(9))
def test_a_crlf_pair_across_two_chunks_is_one_line_end(tmp_path, monkeypatch, position):
    monkeypatch.setattr(encoding, "CHUNK_SIZE", 4)
    file = written(tmp_path / "a.txt", "é" + "x" * position + "\r\n" + "y" * 8)
    assert (
        decoded(encode_files([file], tmp_path / "cache")) == "é" + "x" * position + "\n" + "y" * 8
    )


def test_a_lone_carriage_return_stays(tmp_path):
    file = written(tmp_path / "a.txt", "a\rb\r\rc\r\r\nd\r")
    assert decoded(encode_files([file], tmp_path / "cache")) == "a\rb\r\rc\r\nd\r"


@pytest.mark.parametrize("chunk", [4, 5, 4 << 20])
def test_a_byte_order_mark_is_skipped_at_the_start_of_each_file_only(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(encoding, "CHUNK_SIZE", chunk)
    files = [written(tmp_path / f"{i}.txt", BOM + "aé\ufeffb".encode()) for i in range(2)]
    encoded = encode_files(files, tmp_path / "cache")
    assert decoded(encoded) == "aé\ufeffb\naé\ufeffb"
    assert encoded.starts == (0, 5)


def test_notes_say_what_reading_changes(tmp_path):
    files = [
        written(tmp_path / "0.txt", BOM + b"a\r\nb"),
        written(tmp_path / "1.txt", "a\r\n"),
        written(tmp_path / "2.txt", "a\n\r"),
    ]
    notes = encode_files(files, tmp_path / "cache").notes
    assert len(notes) == 2
    assert re.match(r"1 file.*byte-order mark", notes[0])
    assert re.match(r"2 file.*CRLF", notes[1])
    assert encode_files(files[2:], tmp_path / "cache").notes == ()


def test_files_are_joined_by_one_newline_and_starts_are_their_positions(tmp_path):
    texts = ["", "one\n", "zwei: é", "", "天地\n\n", "x"]
    files = [written(tmp_path / f"{i}.txt", text) for i, text in enumerate(texts)]
    encoded = encode_files(files, tmp_path / "cache")
    joined = decoded(encoded)
    assert joined == "\n".join(texts)
    for start, text in zip(encoded.starts, texts, strict=True):
        assert joined[start : start + len(text)] == text
        assert start == 0 or joined[start - 1] == "\n"


def test_the_order_of_files_is_the_order_given(tmp_path):
    a, b = written(tmp_path / "a.txt", "a"), written(tmp_path / "b.txt", "b")
    assert decoded(encode_files([b, a], tmp_path / "cache")) == "b\na"


@pytest.mark.parametrize(
    ("symbols", "dtype"), [(1, np.uint8), (256, np.uint8), (257, np.uint16), (65537, np.uint32)]
)
def test_ids_have_the_smallest_unsigned_type_that_is_large_enough(tmp_path, symbols, dtype):
    text = "".join(chr(0x10000 + i) for i in range(symbols))
    encoded = encode_files([written(tmp_path / "a.txt", text)], tmp_path / "cache")
    assert encoded.ids.dtype == dtype
    assert (encoded.ids == np.arange(symbols)).all()


def test_ids_are_mapped_from_the_file_and_cannot_be_written(tmp_path):
    ids = encode_files([written(tmp_path / "a.txt", "abc")], tmp_path / "cache").ids
    assert isinstance(ids, np.memmap)
    assert not ids.flags.writeable


def test_the_fingerprint_is_the_hash_of_the_characters(tmp_path):
    unix = written(tmp_path / "unix.txt", "é\n天\n")
    windows = written(tmp_path / "windows.txt", BOM + "é\r\n天\r\n".encode())
    cache = tmp_path / "cache"
    expected = hashlib.sha256("é\n天\n".encode()).hexdigest()
    assert encode_files([unix], cache).fingerprint == expected
    assert encode_files([windows], cache).fingerprint == expected
    assert len(folders(cache)) == 1


def test_the_alphabet_is_the_same_under_two_hash_seeds(tmp_path):
    file = written(tmp_path / "a.txt", "".join(TEXTS.values()))
    script = (
        "import sys, pathlib; from lightning_app.data.encoding import encode_files; "
        "text = encode_files([pathlib.Path(sys.argv[1])], pathlib.Path(sys.argv[2])); "
        "sys.stdout.buffer.write((text.alphabet + str(text.ids.tolist())).encode())"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", script, str(file), str(tmp_path / f"cache{seed}")],
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1


# Refusals.


@pytest.mark.parametrize("chunk", [1, 3, 8, 4 << 20])
@pytest.mark.parametrize("lead", [0, 1, 7, 8, 9, 100])
def test_a_bad_byte_is_named_with_file_line_and_offset(tmp_path, monkeypatch, lead, chunk):
    monkeypatch.setattr(encoding, "CHUNK_SIZE", chunk)
    before = ("é\r\n" * lead).encode()
    file = written(tmp_path / "bad.txt", before + b"ab\xffcd\n")
    message = refusal([file], tmp_path / "cache")
    assert str(file) in message
    assert "0xff" in message
    assert f"line {lead + 1}," in message
    assert f"offset {len(before) + 2};" in message
    assert ("damaged" if lead else "iconv") in message


@pytest.mark.parametrize("chunk", [1, 2, 4, 4 << 20])
@pytest.mark.parametrize("cut", [1, 2, 3])
def test_a_character_truncated_at_the_end_of_a_file_is_named(tmp_path, monkeypatch, cut, chunk):
    monkeypatch.setattr(encoding, "CHUNK_SIZE", chunk)
    file = written(tmp_path / "bad.txt", b"one\ntwo" + "😀".encode()[:cut])
    message = refusal([file, written(tmp_path / "good.txt", "x")], tmp_path / "cache")
    assert "0xf0 in line 2, offset 7; the file ends within a character" in message


def test_a_binary_file_gets_no_advice_to_convert_it(tmp_path):
    message = refusal([written(tmp_path / "x.png", b"\x89PNG\r\n\x1a\n\0\0")], tmp_path / "cache")
    assert "not a text file" in message
    assert "iconv" not in message


@pytest.mark.parametrize("between", ["\r", "\r\n", "\n", "a"])
@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_a_character_with_another_inside_is_refused(tmp_path, monkeypatch, between, chunk):
    monkeypatch.setattr(encoding, "CHUNK_SIZE", chunk)
    file = written(tmp_path / "bad.txt", b"a\xe2\x82" + between.encode() + b"\xacb")
    assert "0xe2 in line 1, offset 1;" in refusal([file], tmp_path / "cache")


@pytest.mark.parametrize("bad", [b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80"])
def test_overlong_forms_surrogates_and_numbers_beyond_unicode_are_refused(tmp_path, bad):
    assert "offset 1;" in refusal([written(tmp_path / "bad.txt", b"a" + bad)], tmp_path / "cache")


@pytest.mark.parametrize("codec", ["utf-16-le", "utf-16-be"])
def test_utf16_is_recognised_by_its_byte_order_mark(tmp_path, codec):
    file = written(tmp_path / "bad.txt", "\ufeffabc\n".encode(codec))
    message = refusal([file], tmp_path / "cache")
    assert "UTF-16" in message
    assert "iconv -f UTF-16" in message


@pytest.mark.parametrize("contents", [[b""], [b"", b""], [BOM], [b"", BOM, b""]])
def test_a_corpus_without_characters_is_refused_by_name(tmp_path, contents):
    files = [written(tmp_path / f"{i}.txt", c) for i, c in enumerate(contents)]
    message = refusal(files, tmp_path / "cache")
    assert "empty" in message
    assert str(files[0]) in message


def test_a_corpus_of_newlines_is_a_corpus(tmp_path):
    files = [written(tmp_path / "0.txt", ""), written(tmp_path / "1.txt", "\n")]
    assert decoded(encode_files(files, tmp_path / "cache")) == "\n\n"


@pytest.mark.parametrize("later", ["abcd", "ab", "abd", "ab😀", ""])
def test_a_file_that_changes_between_the_passes_is_refused_and_not_cached(
    tmp_path, monkeypatch, later
):
    file, count = written(tmp_path / "a.txt", "abc"), count_characters

    def count_and_change(files, unit):
        found = count(files, unit)
        written(file, later)
        return found

    monkeypatch.setattr(encoding, "count_characters", count_and_change)
    assert "changed" in refusal([file], tmp_path / "cache")
    assert folders(tmp_path / "cache") == []


# The cache.


def test_the_cache_is_used_for_the_same_text_in_another_file(tmp_path):
    cache = tmp_path / "cache"
    encode_files([written(tmp_path / "a.txt", "abc")], cache)
    [folder] = folders(cache)
    os.utime(folder / "ids.bin", ns=(1, 1))
    again = encode_files([written(tmp_path / "b.txt", "abc")], cache)
    assert (folder / "ids.bin").stat().st_mtime_ns == 1
    assert decoded(again) == "abc"


def test_another_text_has_another_cache(tmp_path):
    cache = tmp_path / "cache"
    file = written(tmp_path / "a.txt", "abc")
    first = encode_files([file], cache)
    second = encode_files([written(file, "abd")], cache)
    assert (decoded(first), decoded(second)) == ("abc", "abd")
    assert len(folders(cache)) == 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: os.truncate(folder / "ids.bin", 4),
        lambda folder: (folder / "ids.bin").write_bytes(b"x" * 1000),
        lambda folder: (folder / "ids.bin").unlink(),
        lambda folder: (folder / "meta.json").unlink(),
        lambda folder: (folder / "meta.json").write_bytes(b"\xff\x00garbage"),
        lambda folder: (folder / "meta.json").write_text("{}"),
        lambda folder: (folder / "meta.json").write_text("null"),
    ],
    ids=["short ids", "long ids", "no ids", "no meta", "garbage", "empty meta", "null meta"],
)
def test_a_damaged_cache_is_encoded_again(tmp_path, damage):
    cache, file = tmp_path / "cache", written(tmp_path / "a.txt", "hello é")
    encode_files([file], cache)
    [folder] = folders(cache)
    os.utime(folder, ns=(1, 1))
    damage(folder)
    assert decoded(encode_files([file], cache)) == "hello é"
    [folder] = folders(cache)
    os.utime(folder / "ids.bin", ns=(1, 1))
    encode_files([file], cache)  # now complete
    assert (folder / "ids.bin").stat().st_mtime_ns == 1


def test_a_cache_of_another_format_is_encoded_again(tmp_path, monkeypatch):
    cache, file = tmp_path / "cache", written(tmp_path / "a.txt", "abc")
    encode_files([file], cache)
    [folder] = folders(cache)
    os.utime(folder / "ids.bin", ns=(1, 1))
    monkeypatch.setattr(encoding, "CACHE_FORMAT", CACHE_FORMAT + 1)
    encode_files([file], cache)
    assert (folder / "ids.bin").stat().st_mtime_ns > 1


def test_an_incomplete_folder_of_a_killed_process_is_harmless(tmp_path):
    cache, file = tmp_path / "cache", written(tmp_path / "a.txt", "abc")
    encode_files([file], cache)
    [folder] = folders(cache)
    part = folder.rename(folder.with_suffix(".part"))  # as if killed before the rename
    written(part / "ids.bin", "x")
    written(part / "stray", "x")
    assert decoded(encode_files([file], cache)) == "abc"
    assert folders(cache) == [folder]
    assert sorted(path.name for path in folder.iterdir()) == ["ids.bin", "meta.json"]


class Full:
    """A file on a full disk: two bytes are written, then an error is raised."""

    def __init__(self, file) -> None:
        self.file = file

    def __enter__(self) -> "Full":
        return self

    def __exit__(self, *error) -> None:
        self.file.close()

    def write(self, data: bytes) -> None:
        self.file.write(data[:2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_leaves_no_incomplete_cache(tmp_path, monkeypatch):
    cache, file = tmp_path / "cache", written(tmp_path / "a.txt", "hello")
    opened = Path.open

    def open_full(self, mode="r", *args, **kwargs):
        file = opened(self, mode, *args, **kwargs)
        return Full(file) if "w" in mode else file

    with monkeypatch.context() as full:
        full.setattr(Path, "open", open_full)
        with pytest.raises(OSError, match="No space left"):
            encode_files([file], cache)
    assert folders(cache) == []
    assert decoded(encode_files([file], cache)) == "hello"


RACER = """
import sys, time
from pathlib import Path
from lightning_app.data import encoding
encoding.CHUNK_SIZE = 100
read_all = encoding.read_files
def slowly(files, *args):  # as for a large text: both processes encode at the same time
    for chunk in read_all(files, *args):
        time.sleep(0.0005)
        yield chunk
encoding.read_files = slowly
go = Path(sys.argv[3])
go.with_suffix("." + sys.argv[4]).touch()
while not go.exists():
    time.sleep(0.001)
text = encoding.encode_files([Path(sys.argv[1])], Path(sys.argv[2]))
sys.stdout.buffer.write("".join(text.alphabet[i] for i in text.ids).encode())
"""


def test_two_processes_at_the_same_time_get_the_same_ids(tmp_path):
    text = "".join(f"line {i}: é天😀\n" for i in range(2000))
    file, go = written(tmp_path / "a.txt", text), tmp_path / "race.go"
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, file, tmp_path / "cache", go, str(i)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for i in range(2)
    ]
    while not all(go.with_suffix(f".{i}").exists() or r.poll() for i, r in enumerate(racers)):
        time.sleep(0.005)
    go.touch()
    for racer in racers:
        out, err = racer.communicate(timeout=60)
        assert racer.returncode == 0, err.decode()
        assert out.decode() == text
    assert len(folders(tmp_path / "cache")) == 1


# Counts.


@pytest.mark.parametrize("vocab_size", [3, 200, 300, 70_000])
def test_counts_of_ids_are_those_of_numpy_wherever_chunks_end(monkeypatch, vocab_size):
    monkeypatch.setattr(encoding, "CHUNK_SIZE", 1001)
    ids = np.random.default_rng(0).integers(vocab_size, size=10_000)
    ids = ids.astype(np.min_scalar_type(vocab_size - 1))
    expected = np.bincount(ids, minlength=vocab_size)
    assert count_ids(ids, vocab_size).tolist() == expected.tolist()
    assert count_ids(ids[:0], vocab_size).tolist() == [0] * vocab_size


# Bytes.


def test_with_unit_byte_any_file_is_read_as_it_is(tmp_path):
    data = BOM + bytes(range(256)) + b"\r\n"
    encoded = encode_files([written(tmp_path / "a.bin", data)], tmp_path / "cache", "byte")
    assert decoded(encoded).encode("latin-1") == data
    assert encoded.fingerprint == hashlib.sha256(b"bytes:" + data).hexdigest()
    assert encoded.notes == ()
