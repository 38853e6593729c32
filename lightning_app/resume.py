"""May a run go on? What it was trained with, against what is asked for now.

Facts are what a checkpoint says about its run (see `Checkpoints`); the comparison is a pure
function of two of them.
"""

from dataclasses import dataclass, field
from typing import Any

from lightning_app.errors import UserError

# Another network, other data or another path through them: not the same run any more.
MUST_MATCH = (
    ("network", "model"),
    ("alphabet", "alphabet"),
    ("splits", "data.splits"),
    ("hold_out", "data.hold_out"),
    ("seed", "seed_everything"),
    ("block_size", "data.block_size"),
    ("global_batch", "data.batch_size x accumulation x processes"),
    ("optimizer", "optim.name"),
    ("schedule", "schedule"),
)
# Applied to a run that goes on.
MAY_CHANGE = ("max_steps", "dropout", "optim", "patience", "intervals", "logger")
# The run goes on, but not bit for bit as it would have.
INEXACT = ("device", "precision", "torch", "threads", "compile", "processes", "accumulate")


@dataclass
class Differences:
    """Lines about what differs, by what follows from it."""

    refused: list[str] = field(default_factory=list)
    applied: list[str] = field(default_factory=list)
    inexact: list[str] = field(default_factory=list)


def compare(old: dict[str, Any], new: dict[str, Any]) -> Differences:
    differences = Differences()
    old = {"hold_out": "characters"} | old  # files from before that option
    if old["fingerprint"] != new["fingerprint"]:  # the same text may lie elsewhere
        names = (f"{x['corpus']} ({x['fingerprint'][:8]})" for x in (old, new))
        differences.refused += changes("data.corpus", *names)
    for key, option in MUST_MATCH:
        differences.refused += changes(option, old[key], new[key])
    for key in MAY_CHANGE:
        differences.applied += changes(key, old[key], new[key])
    for key in INEXACT:
        differences.inexact += changes(key, old[key], new[key])
    return differences


def changes(name: str, old: Any, new: Any) -> list[str]:
    """`name: old -> new`, one for each entry that differs."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = list(dict.fromkeys([*old, *new]))
        return [line for k in keys for line in changes(f"{name}.{k}", old.get(k), new.get(k))]
    if old == new:
        return []
    old, new = str(old), str(new)
    pairs = enumerate(zip(old, new, strict=False))
    at = next((i for i, (a, b) in pairs if a != b), min(len(old), len(new)))
    return [f"{name}: {shorten(old, at)} -> {shorten(new, at)}"]


def shorten(text: str, at: int) -> str:
    """`text` in one line; of a long one the piece around place `at`, where the other differs."""
    if len(text) > 60:
        return f"...{text[max(0, at - 10) :][:40]!r}... ({len(text)} characters)"
    return text if text.isprintable() and text == " ".join(text.split()) else repr(text)


def refuse(run: str, lines: list[str]) -> UserError:
    return UserError(
        f"run {run} was trained with something else: {'; '.join(lines)}; train another run with "
        f"--run OTHER, or move this one aside with --fresh true"
    )


def is_finished(old: dict[str, Any], new: dict[str, Any]) -> str | None:
    """Why there is nothing left to train, and how to go on; None when there is."""
    step, patience = old["step"], new["patience"]
    if new["max_steps"] <= step:
        return (
            f"finished: {step:,} steps of {new['max_steps']:,}; "
            f"to go on: --trainer.max_steps {step + max(1, step // 2)}"
        )
    if old["stopped_early"] and patience is not None and patience <= (old["patience"] or 0):
        return (
            f"stopped early at step {step:,}: no better val/loss for {old['patience']} "
            f"validations; to go on: --early_stopping_patience {2 * old['patience']}"
        )
    return None
