"""Laws of inspection: planted errors are found, and correct texts have no warnings."""

import random

import pytest

from lightning_app.data.corpora import Corpus
from lightning_app.data.encoding import encode_files
from lightning_app.data.splits import SplitText, split_bounds
from lightning_app.evaluation.inspection import (
    Inspection,
    inspect_text,
    inspection_lines,
    suspicion,
)


@pytest.fixture
def inspect(tmp_path):
    """Inspects a text of one or several files."""

    def inspect(*texts: str | bytes, shares=(0.8, 0.1, 0.1), with_baselines=False) -> Inspection:
        files = []
        for i, text in enumerate(texts):
            files.append(tmp_path / f"{i}.txt")
            files[-1].write_bytes(text if isinstance(text, bytes) else text.encode())
        text = encode_files(files, tmp_path / "cache")
        split_text = SplitText(
            Corpus("texts", tuple(files)), text, split_bounds(len(text.ids), shares)
        )
        return inspect_text(split_text, with_baselines)

    return inspect


def prose(n: int, seed: int = 0) -> str:
    return "".join(random.Random(seed).choices("abcdefghijklmnop \n", k=n))


def test_a_correct_text_has_no_warnings(inspect):
    found = inspect(prose(5000))
    assert found.notes == ()
    assert not any(s.why for s in found.alphabet)
    assert [r.characters for r in found.repetitions] == [0, 0, 0]
    assert not any("!" in line for line in inspection_lines(found))
    assert (found.characters, found.bytes, found.files) == (5000, 5000, 1)


@pytest.mark.parametrize(
    ("text", "lesson"),
    [
        ("a", "repeated    not searched"),  # there is nothing to predict
        ("the quick brown fox jumps over the l\n", "depend on chance"),
        ("a" * 300, "depend on chance"),
        ("hello there " * 25, "depend on chance"),
        ("a" * 9000, "the text repeats itself"),
        (prose(9000), "a network is useful if its loss is below 2."),
    ],
)
def test_of_a_short_or_repeated_text_nothing_false_is_concluded(inspect, text, lesson):
    lines = inspection_lines(inspect(text, with_baselines=True))
    assert lesson in lines[-1]
    assert not any("-0." in line for line in lines)


def test_repetitions_that_were_not_searched_are_reported_so(inspect):
    assert "no two splits have 100" in "\n".join(inspection_lines(inspect("ab" * 99)))
    assert "that occur in two splits" in "\n".join(inspection_lines(inspect("ab" * 999)))


def test_symbols_are_counted_and_ordered(inspect):
    found = inspect("aaab\nb" * 50 + "z")
    assert [(s.code_point, s.count) for s in found.alphabet] == [
        ("U+0061", 150), ("U+0062", 100), ("U+000A", 50), ("U+007A", 1)
    ]  # fmt: skip
    assert any("z(1)" in line for line in inspection_lines(found))


@pytest.mark.parametrize(
    ("c", "word"),
    [
        ("\x00", "control"), ("\x1b", "control"), ("\x85", "control"), ("\r", "line end"),
        ("\ufffd", "lost"), ("\ue000", "private"), ("\u200b", "invisible"), ("\ufeff", "invisible"),
        ("\u0378", "not assigned"), ("\u202e", "invisible"),
    ],
)  # fmt: skip
def test_suspicious_characters_are_named_with_the_reason(inspect, c, word):
    assert word in suspicion(c)
    found = inspect(prose(500) + f"a{c}b" + prose(500))
    (symbol,) = [s for s in found.alphabet if s.why]
    assert (symbol.code_point, symbol.count) == (f"U+{ord(c):04X}", 1)
    assert any(line.strip().startswith(f"! U+{ord(c):04X}") for line in inspection_lines(found))


@pytest.mark.parametrize("c", ["a", " ", "\n", "\t", "é", "天", "🙂", "\u200d", "ا", "\u0301"])
def test_characters_that_languages_need_are_not_suspicious(c):
    assert suspicion(c) == ""


def test_letters_encoded_in_two_ways_are_counted(inspect):
    (note,) = inspect(prose(1000) + "é" * 7 + "e\u0301" * 3 + "x" * 1000).notes
    assert "7 as one code point" in note
    assert "3 as letter and mark" in note
    assert inspect(prose(1000) + "é" * 7).notes == ()
    assert inspect(prose(1000) + "e\u0301" * 7).notes == ()


def test_mixed_line_ends_are_counted_and_uniform_ones_are_not(inspect):
    notes = inspect(b"a\r\nb\nc\r\n" * 40 + b"x" * 200).notes
    assert any("80 CRLF, 40 LF" in note for note in notes)
    assert not any("mixed" in note for note in inspect(b"a\r\nb\r\n" * 90).notes)


def test_utf8_decoded_as_latin_1_is_recognised(inspect):
    broken = "café déjà vu naïve ".encode().decode("latin-1")
    assert any("Latin-1" in note for note in inspect(prose(1000) + broken * 5).notes)
    assert inspect(prose(1000) + "âme Âge café " * 5).notes == ()


def test_held_out_text_that_occurs_in_the_training_text_is_found(inspect):
    train, val, test = prose(8000, 1), prose(1000, 2), prose(1000, 3)
    copied = train[500:900]
    found = inspect(train + val[:600] + copied + test[:700] + val[100:300] + test[900:])
    by_split = {(r.of, r.within): r for r in found.repetitions}
    assert 400 <= by_split["val", "train"].characters < 405  # a neighbour may agree by chance
    assert 200 <= by_split["test", "val"].characters < 205
    assert by_split["test", "train"].characters == 0
    ((position, length, text),) = by_split["val", "train"].examples
    assert 8595 < position <= 8600
    assert 400 <= length < 405
    assert text in train
    assert any("% of val occurs in train" in line for line in inspection_lines(found))


def test_characters_missing_from_the_training_split_are_counted_for_each_split(inspect):
    found = inspect("a" * 800 + "aé" * 50 + "b" * 100)
    assert {s.name: s.unseen for s in found.splits} == {"train": 0, "val": 50, "test": 100}
