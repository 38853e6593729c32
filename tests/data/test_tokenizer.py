"""Laws of the tokenizer."""

import doctest

import numpy as np
import pytest
import torch

from lightning_app.data import tokenizer as module
from lightning_app.data.tokenizer import Tokenizer
from lightning_app.errors import UserError

CORPUS = "\n\x00\t O God, O God!\u00e9e\u0301\u4e2d\u6587\U0001f642\u2028'\"-."


def tokenizer(corpus: str = CORPUS) -> Tokenizer:
    return Tokenizer("".join(sorted(set(corpus))))


def refusal(corpus: str, text: str) -> str:
    with pytest.raises(UserError) as error:
        tokenizer(corpus).encode(text, "the prompt")
    message = str(error.value)
    assert message.startswith("the prompt has characters the model never saw")
    assert len(message.splitlines()) == 1
    return message


def test_decode_undoes_encode():
    t = tokenizer()
    for text in (CORPUS, CORPUS[::-1], "", " ", "\n\n"):
        assert t.decode(t.encode(text)) == text


def test_decode_takes_lists_arrays_and_tensors():
    t = tokenizer("abc")
    assert t.decode([2, 0]) == t.decode(np.array([2, 0], np.uint8)) == "ca"
    assert t.decode(torch.tensor([2, 0])) == "ca"


def test_ids_are_indices_into_the_sorted_alphabet():
    t = tokenizer()
    assert t.encode(t.alphabet).tolist() == list(range(len(t)))
    assert [ord(c) for c in t.alphabet] == sorted({ord(c) for c in CORPUS})
    assert t.encode("").dtype == t.encode("O").dtype == np.int64


@pytest.mark.parametrize("alphabet", ["ba", "aa", "aab"])
def test_an_alphabet_that_is_unsorted_or_has_repeats_is_refused(alphabet):
    with pytest.raises(AssertionError):
        Tokenizer(alphabet)


@pytest.mark.parametrize(
    ("corpus", "text", "named", "remedy"),
    [
        ("it's", "it\u2019s", "U+2019 RIGHT SINGLE QUOTATION MARK", 'write "\'" for'),
        ('"a', "\u201ca", "U+201C LEFT DOUBLE QUOTATION MARK", "write '\"' for"),
        ("cafe", "caf\u00e9", "U+00E9 LATIN SMALL LETTER E WITH ACUTE", "write 'e' for '\u00e9'"),
        ("cafe", "\u00c9", "U+00C9", "write 'e' for '\u00c9'"),
        ("god", "God", "'G' (U+0047 LATIN CAPITAL LETTER G)", "write 'g' for 'G'"),
        ("GOD", "gOD", "'g' (U+0067 LATIN SMALL LETTER G)", "write 'G' for 'g'"),
        ("a-", "a\u2014", "U+2014 EM DASH", "write '--' for"),
        ("a.", "a\u2026", "U+2026 HORIZONTAL ELLIPSIS", "write '...' for"),
        ("a b", "a\tb", r"'\t' (U+0009 unnamed)", r"write ' ' for '\t'"),
        ("a\n", "a\r", r"'\r' (U+000D unnamed)", r"write '\n' for '\r'"),
        ("fi", "\ufb01", "U+FB01 LATIN SMALL LIGATURE FI", "write 'fi' for"),
    ],
)
def test_a_missing_character_is_named_with_a_similar_one_from_the_alphabet(
    corpus, text, named, remedy
):
    message = refusal(corpus, text)
    assert named in message
    assert remedy in message
    assert "leave" not in message


@pytest.mark.parametrize("character", ["\u4e2d", "\u0301", "\n", "\x00", "\u2014", "1"])
def test_a_missing_character_that_resembles_none_is_to_be_left_out(character):
    message = refusal("abc", "ab" + character)
    assert f"U+{ord(character):04X}" in message
    assert "at position 2" in message
    assert "; leave them out" in message


def test_each_missing_character_is_named_once_and_at_most_five_are():
    message = refusal("a", "aZ1Z1Z")
    assert message.count("U+005A") == message.count("U+0031") == 1
    assert "at position 1" in message
    many = refusal("a", "1234567")
    assert "'5'" in many
    assert "'6'" not in many
    assert "and 2 more" in many


def test_the_example_of_the_docstring_is_right():
    assert doctest.testmod(module) == (0, 3)


# Bytes.


def byte_tokenizer(text: str) -> Tokenizer:
    return Tokenizer("".join(map(chr, sorted(set(text.encode())))), "byte")


def test_with_unit_byte_ids_are_those_of_utf_8():
    t = byte_tokenizer(CORPUS)
    assert "".join(t.alphabet[i] for i in t.encode(CORPUS)).encode("latin-1") == CORPUS.encode()
    assert t.decode(t.encode(CORPUS)) == CORPUS


def test_invalid_bytes_are_decoded_as_a_mark_that_can_be_dropped():
    t = byte_tokenizer("a\u00e9")
    cut = t.encode("\u00e9a")[1:]
    assert t.decode(cut) == "\ufffda"
    assert t.drop_invalid(t.decode(cut)) == "a"
    assert tokenizer("\ufffd").drop_invalid("\ufffd") == "\ufffd"  # a character like others


def test_bytes_missing_from_the_alphabet_are_named():
    with pytest.raises(UserError, match=r"the prompt has bytes the model never saw: 0xc3, 0xa9 "):
        byte_tokenizer("abc").encode("ab\u00e9", "the prompt")


@pytest.mark.parametrize("t", [tokenizer(), byte_tokenizer(CORPUS)], ids=["char", "byte"])
def test_decoding_id_by_id_gives_the_same_text(t):
    decode, ids = t.decoder(), t.encode(CORPUS).tolist()
    assert "".join(decode(i) for i in ids) == CORPUS
    if t.unit == "byte":
        decode, ids = t.decoder(), t.encode("\u4e2d").tolist()
        assert [decode(i) for i in ids] == ["", "", "\u4e2d"]
