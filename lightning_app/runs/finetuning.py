"""--init_from: a new run that starts from another one's weights, for another text."""

from typing import Any

from lightning_app.runs.checkpoint import TrainedModel
from lightning_app.training.module import CharGPT


def take_network(model: Any, hyper_parameters: dict[str, Any]) -> list[str]:
    """Set the `model:` options to another network's, but for dropout and block_size. Returns lines
    to say."""
    lines = []
    for name, value in hyper_parameters.items():
        if name not in ("alphabet", "block_size", "dropout") and model[name] != value:
            model[name] = value
            lines.append(f"--init_from: model.{name} is {value}")
    return lines


def inherit(model: CharGPT, source: TrainedModel) -> list[str]:
    """Copy the weights of `source`; a character's rows of embedding and head go to its new place,
    new characters keep their initial ones. Returns lines to say."""
    old, new = source.tokenizer.ids, model.tokenizer.ids
    shared = [c for c in new if c in old]
    to, of = ([ids[c] for c in shared] for ids in (new, old))
    weights = source.gpt.state_dict()
    mine = model.gpt.state_dict()
    for name in ("embedding.weight", "lm_head.weight"):
        rows = mine[name].clone()
        rows[to] = weights[name][of]
        weights[name] = rows
    model.gpt.load_state_dict(weights)
    lines = [f"--init_from: {len(shared)} of {len(new)} characters known"]
    if added := [c for c in new if c not in old]:
        lines.append(f"  new characters, to be learned: {''.join(added)!r}")
    if gone := [c for c in old if c not in new]:
        lines.append(f"  no longer in the alphabet: {''.join(gone)!r}")
    return lines
