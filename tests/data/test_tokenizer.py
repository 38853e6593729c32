"""Laws of the alphabet."""

import numpy as np
import pytest
import torch

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


def test_ids_are_places_in_the_sorted_alphabet():
    t = tokenizer()
    assert t.encode(t.alphabet).tolist() == list(range(len(t)))
    assert [ord(c) for c in t.alphabet] == sorted({ord(c) for c in CORPUS})
    assert t.encode("").dtype == t.encode("O").dtype == np.int64


@pytest.mark.parametrize("alphabet", ["ba", "aa", "aab"])
def test_an_alphabet_out_of_order_or_with_repeats_is_no_alphabet(alphabet):
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
def test_a_missing_character_is_named_with_the_nearest_one_the_alphabet_has(
    corpus, text, named, remedy
):
    message = refusal(corpus, text)
    assert named in message
    assert remedy in message
    assert "leave" not in message


@pytest.mark.parametrize("character", ["\u4e2d", "\u0301", "\n", "\x00", "\u2014", "1"])
def test_a_missing_character_without_a_stand_in_is_to_be_left_out(character):
    message = refusal("abc", "ab" + character)
    assert f"U+{ord(character):04X}" in message
    assert "at position 2" in message
    assert "; leave them out" in message


def test_each_missing_character_is_named_once_and_five_at_most():
    message = refusal("a", "aZ1Z1Z")
    assert message.count("U+005A") == message.count("U+0031") == 1
    assert "at position 1" in message
    many = refusal("a", "1234567")
    assert "'5'" in many
    assert "'6'" not in many
    assert "and 2 more" in many
