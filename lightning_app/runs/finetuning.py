"""--init_from: a new run that starts from another run's weights, for another text."""

from typing import Any

from lightning_app.data.tokenizer import Tokenizer
from lightning_app.model.gpt import GPT
from lightning_app.model.ngrams import TABLES
from lightning_app.runs.checkpoint import TrainedModel

NOT_TAKEN = ("alphabet", "unit", "block_size", "dropout")  # they are the new run's own


def take_network(options: Any, arguments: dict[str, Any]) -> list[str]:
    """Set the `model:` options to another network's, except dropout and block_size.

    Returns a line for each option that was changed.
    """
    lines = []
    for name, value in arguments.items():
        if name in NOT_TAKEN or options[name] == value:
            continue
        options[name] = value
        lines.append(f"--init_from: model.{name} is {value}")
    return lines


def inherit(gpt: GPT, tokenizer: Tokenizer, source: TrainedModel) -> list[str]:
    """Copy the weights of `source` into `gpt`, whose alphabet is the tokenizer's.

    A character's rows of embedding and head are copied to its new id; characters that the source
    does not know keep their initial rows. Returns lines about known, new and dropped characters.
    """
    old, new = source.tokenizer.ids, tokenizer.ids
    shared = [c for c in new if c in old]
    to_rows, from_rows = ([ids[c] for c in shared] for ids in (new, old))
    weights, initial = source.gpt.state_dict(), gpt.state_dict()
    for name in ("embedding.weight", "lm_head.weight"):
        rows = initial[name].clone()
        rows[to_rows] = weights[name][from_rows]
        weights[name] = rows
    if gpt.ngrams is not None:  # the counts are those of the new text
        tables = [f"ngrams.{name}" for name in ("weight", "codes", *TABLES)]
        weights |= {name: initial[name] for name in tables}
        rows = weights["ngrams.weight"].unflatten(0, (-1, len(new)))  # (2 N, V, D)
        vectors = source.gpt.state_dict()["ngrams.weight"].unflatten(0, (-1, len(old)))
        rows[:, to_rows] = vectors[:, from_rows]
    gpt.load_state_dict(weights)
    lines = [f"--init_from: {len(shared)} of {len(new)} characters known"]
    if added := [c for c in new if c not in old]:
        lines.append(f"  new characters, to be learned: {''.join(added)!r}")
    if gone := [c for c in old if c not in new]:
        lines.append(f"  no longer in the alphabet: {''.join(gone)!r}")
    return lines
