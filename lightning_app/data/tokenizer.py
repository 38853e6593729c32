"""The tokenizer: one id for each character of an alphabet, or for each byte of UTF-8."""

import codecs
import unicodedata
from collections.abc import Callable, Iterable
from typing import SupportsIndex

import numpy as np

from lightning_app.data.encoding import Unit
from lightning_app.errors import UserError

# Keyboard characters for frequent typographic ones that Unicode's NFKD leaves unchanged.
KEYBOARD = {
    **dict.fromkeys("‘’‚′ʼ`´", "'"),
    **dict.fromkeys("“”„″«»", '"'),
    **dict.fromkeys("‐‑‒–−", "-"),
    "—": "--",
    "\t": " ",
    "\r": "\n",
}


class Tokenizer:
    """Text to ids and back. The id of a character is its index in the sorted alphabet.

    >>> tokenizer = Tokenizer(" abc")
    >>> tokenizer.encode("a cab")
    array([1, 0, 3, 1, 2])
    >>> tokenizer.decode([3, 1, 2])
    'cab'

    With unit "byte" a text is encoded as UTF-8 and each byte has an id; the alphabet contains
    chr(b) for each byte b.
    """

    def __init__(self, alphabet: str, unit: Unit = "char") -> None:
        assert list(alphabet) == sorted(set(alphabet)), "an alphabet is sorted, without repeats"
        assert unit in ("char", "byte"), "unit is char or byte"
        assert unit == "char" or max(alphabet, default="") <= "\xff", "bytes are below 256"
        self.alphabet, self.unit = alphabet, unit
        self.ids = {character: i for i, character in enumerate(alphabet)}

    def __len__(self) -> int:
        """The vocabulary size."""
        return len(self.alphabet)

    def encode(self, text: str, what: str = "the text") -> np.ndarray:
        """The ids of `text`, int64 (n,).

        Raises UserError, which calls the text `what`, for characters that the alphabet lacks.
        """
        if self.unit == "byte":
            return self._encode_bytes(text.encode("utf-8"), what)
        missing = [c for c in dict.fromkeys(text) if c not in self.ids]
        if missing:
            position = text.index(missing[0])
            raise UserError(
                f"{self.describe_missing(missing, what)} (the first at position {position})"
            )
        return np.array([self.ids[c] for c in text], dtype=np.int64)

    def _encode_bytes(self, data: bytes, what: str) -> np.ndarray:
        missing = [b for b in dict.fromkeys(data) if chr(b) not in self.ids]
        if missing:
            values = ", ".join(f"0x{b:02x}" for b in missing[:5])
            raise UserError(
                f"{what} has bytes the model never saw: {values} (the first at position "
                f"{data.index(missing[0])}); leave them out"
            )
        return np.array([self.ids[chr(b)] for b in data], dtype=np.int64)

    def decode(self, ids: Iterable[SupportsIndex]) -> str:
        """The text of ids, given as a list, an array or a tensor (n,).

        With unit "byte", bytes that are not valid UTF-8 are decoded as U+FFFD.
        """
        text = "".join(self.alphabet[i] for i in ids)
        return text.encode("latin-1").decode("utf-8", "replace") if self.unit == "byte" else text

    def drop_invalid(self, text: str) -> str:
        """Decoded text without the U+FFFD of invalid bytes, so that it can be encoded again."""
        return text.replace("\ufffd", "") if self.unit == "byte" else text

    def decoder(self) -> Callable[[int], str]:
        """A function that decodes one text id by id. It returns the characters that an id
        completes: always one, or with unit "byte" possibly none."""
        if self.unit == "char":
            return self.alphabet.__getitem__
        incremental = codecs.getincrementaldecoder("utf-8")("replace")
        return lambda i: incremental.decode(self.alphabet[i].encode("latin-1"))

    def describe_missing(self, missing: list[str], what: str) -> str:
        """The error message for characters of `what` that the alphabet lacks, with what to write
        instead of them."""
        shown = [unicode_name(c) for c in missing[:5]]
        if len(missing) > 5:
            shown.append(f"and {len(missing) - 5} more")
        remedies = [
            f"write {known!r} for {c!r}" for c in missing[:5] if (known := self.substitute(c))
        ]
        return (
            f"{what} has characters the model never saw: {', '.join(shown)}; "
            f"{', '.join(remedies) or 'leave them out'}"
        )

    def substitute(self, character: str) -> str:
        """Similar characters from the alphabet: unaccented, of the other case, or those of a
        keyboard. An empty string if there are none."""
        base = "".join(
            c for c in unicodedata.normalize("NFKD", character) if not unicodedata.combining(c)
        )
        candidates = (KEYBOARD.get(character, ""), base, base.lower(), base.upper())
        known = (c for c in candidates if c and c != character and all(x in self.ids for x in c))
        return next(known, "")


def unicode_name(character: str) -> str:
    """A character as error messages show it: 'é' (U+00E9 LATIN SMALL LETTER E WITH ACUTE)."""
    return f"{character!r} (U+{ord(character):04X} {unicodedata.name(character, 'unnamed')})"
