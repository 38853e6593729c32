"""Characters to ids and back: the alphabet is the sorted code points of a corpus, or its bytes."""

import codecs
import unicodedata
from collections.abc import Callable

import numpy as np

from lightning_app.data.encoding import Unit
from lightning_app.errors import UserError

# What a typewriter offers for the commonest typographic characters; NFKD does not know these.
PLAIN = {
    **dict.fromkeys("‘’‚′ʼ`´", "'"),
    **dict.fromkeys("“”„″«»", '"'),
    **dict.fromkeys("‐‑‒–−", "-"),
    "—": "--",
    "\t": " ",
    "\r": "\n",
}


class Tokenizer:
    """One id per character: its place in the sorted alphabet. Ids do not depend on anything else.

    With unit "byte" a text is its UTF-8 bytes, and the alphabet's characters stand for their
    numbers.
    """

    def __init__(self, alphabet: str, unit: Unit = "char") -> None:
        assert list(alphabet) == sorted(set(alphabet)), "an alphabet is sorted and without repeats"
        assert unit in ("char", "byte"), "a text is cut into characters or bytes"
        assert unit == "char" or max(alphabet, default="") <= "\xff", "a byte is below 256"
        self.alphabet, self.unit = alphabet, unit
        self.ids = {character: i for i, character in enumerate(alphabet)}

    def __len__(self) -> int:
        return len(self.alphabet)

    def encode(self, text: str, what: str = "the text") -> np.ndarray:
        """Ids of `text`, int64 (n,). Raises UserError naming the characters it lacks."""
        if self.unit == "byte":
            return self.encode_bytes(text.encode("utf-8"), what)
        missing = [c for c in dict.fromkeys(text) if c not in self.ids]
        if missing:
            at = text.index(missing[0])
            raise UserError(f"{self.explain(missing, what)} (the first at position {at})")
        return np.array([self.ids[c] for c in text], dtype=np.int64)

    def encode_bytes(self, data: bytes, what: str) -> np.ndarray:
        missing = [b for b in dict.fromkeys(data) if chr(b) not in self.ids]
        if missing:
            named = ", ".join(f"0x{b:02x}" for b in missing[:5])
            raise UserError(
                f"{what} has bytes the model never saw: {named} (the first at position "
                f"{data.index(missing[0])}); leave them out"
            )
        return np.array([self.ids[chr(b)] for b in data], dtype=np.int64)

    def decode(self, ids) -> str:
        text = "".join(self.alphabet[i] for i in ids)
        return text.encode("latin-1").decode("utf-8", "replace") if self.unit == "byte" else text

    def whole(self, text: str) -> str:
        """Decoded text without the marks of bytes that were no character."""
        return text.replace("\ufffd", "") if self.unit == "byte" else text

    def decoder(self) -> Callable[[int], str]:
        """A function for one text that turns id after id into its next characters: one, or for
        bytes none until a character is whole."""
        if self.unit == "char":
            return self.alphabet.__getitem__
        incremental = codecs.getincrementaldecoder("utf-8")("replace")
        return lambda i: incremental.decode(self.alphabet[i].encode("latin-1"))

    def explain(self, missing: list[str], what: str) -> str:
        """Which characters `what` has that the alphabet lacks, and what to write instead."""
        named = [self.name(c) for c in missing[:5]]
        if len(missing) > 5:
            named.append(f"and {len(missing) - 5} more")
        remedies = [
            f"write {plain!r} for {c!r}" for c in missing[:5] if (plain := self.nearest(c)) != ""
        ]
        return (
            f"{what} has characters the model never saw: {', '.join(named)}; "
            f"{', '.join(remedies) or 'leave them out'}"
        )

    @staticmethod
    def name(character: str) -> str:
        return f"{character!r} (U+{ord(character):04X} {unicodedata.name(character, 'unnamed')})"

    def nearest(self, character: str) -> str:
        """What the alphabet offers instead of `character`, '' for nothing."""
        base = "".join(
            c for c in unicodedata.normalize("NFKD", character) if not unicodedata.combining(c)
        )
        candidates = (PLAIN.get(character, ""), base, base.lower(), base.upper())
        known = (c for c in candidates if c and c != character and all(x in self.ids for x in c))
        return next(known, "")
