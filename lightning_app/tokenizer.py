"""Characters to ids and back: the alphabet is the sorted code points of a corpus."""

import unicodedata

import numpy as np

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
    """One id per character: its place in the sorted alphabet. Ids do not depend on anything else,
    so the alphabet string is the whole tokenizer."""

    def __init__(self, alphabet: str) -> None:
        assert list(alphabet) == sorted(set(alphabet)), "an alphabet is sorted and without repeats"
        self.alphabet = alphabet
        self.ids = {character: i for i, character in enumerate(alphabet)}

    def __len__(self) -> int:
        return len(self.alphabet)

    def encode(self, text: str, what: str = "the text") -> np.ndarray:
        """Ids of `text`, int64 (len(text),). Raises UserError naming the characters it lacks."""
        missing = [c for c in dict.fromkeys(text) if c not in self.ids]
        if missing:
            at = text.index(missing[0])
            raise UserError(f"{self.explain(missing, what)} (the first at position {at})")
        return np.array([self.ids[c] for c in text], dtype=np.int64)

    def decode(self, ids) -> str:
        return "".join(self.alphabet[i] for i in ids)

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
