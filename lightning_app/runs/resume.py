"""May a run go on? What it was trained with, against what is asked for now.

Facts are what a checkpoint says about its run (see `Checkpoints`); the comparison is a pure
function of two of them.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lightning_app.errors import UserError
from lightning_app.model.gpt import GPT
from lightning_app.runs.checkpoint import NETWORK_PREFIX, SECTION
from lightning_app.training.optimizer import OptimOptions, parameter_groups

# Another network, other data or another path through them: not the same run any more.
MUST_MATCH = (
    ("network", "model"),
    ("alphabet", "alphabet"),
    ("splits", "data.splits"),
    ("hold_out", "data.hold_out"),
    ("unit", "data.unit"),
    ("seed", "seed_everything"),
    ("block_size", "data.block_size"),
    ("global_batch", "data.batch_size x accumulation x processes"),
    ("optimizer", "optim.name"),
    ("schedule", "schedule"),
)
# Applied to a run that goes on.
MAY_CHANGE = ("max_steps", "rename", "dropout", "optim", "patience", "intervals", "logger")
# The run goes on, but not bit for bit as it would have.
INEXACT = ("device", "precision", "torch", "threads", "compile", "processes", "accumulate")


@dataclass
class Differences:
    """Lines about what differs, by what follows from it."""

    refused: list[str] = field(default_factory=list)
    applied: list[str] = field(default_factory=list)
    inexact: list[str] = field(default_factory=list)


def compare_facts(old: dict[str, Any], new: dict[str, Any]) -> Differences:
    differences = Differences()
    if old["fingerprint"] != new["fingerprint"]:  # the same text may lie elsewhere
        names = (f"{x['corpus']} ({x['fingerprint'][:8]})" for x in (old, new))
        differences.refused += list_changes("data.corpus", *names)
    for key, option in MUST_MATCH:
        differences.refused += list_changes(option, old[key], new[key])
    for key in MAY_CHANGE:
        differences.applied += list_changes(key, old[key], new[key])
    for key in INEXACT:
        differences.inexact += list_changes(key, old[key], new[key])
    return differences


def list_changes(name: str, old: Any, new: Any) -> list[str]:
    """`name: old -> new`, one for each entry that differs."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = list(dict.fromkeys([*old, *new]))
        return [line for k in keys for line in list_changes(f"{name}.{k}", old.get(k), new.get(k))]
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


def refusal(run: str, lines: list[str]) -> UserError:
    return UserError(
        f"run {run} was trained with something else: {'; '.join(lines)}; train another run with "
        f"--run OTHER, or move this one aside with --fresh true"
    )


def check_state(state: dict[str, Any], gpt: GPT, optim: OptimOptions) -> None:
    """Raises ValueError, or what missing parts raise, unless the tensors of a checkpoint are those
    that training this network goes on from: of its shapes, and finite."""
    section = state[SECTION]
    expected = {NETWORK_PREFIX + name: w.shape for name, w in gpt.state_dict().items()}
    for weights in (state["state_dict"], section.get("raw"), section.get("average")):
        if weights is not None:
            if {name: w.shape for name, w in weights.items()} != expected:
                raise ValueError("its weights are another network's")
            check_finite(weights.values())
    total = state["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["processed"]
    if not state["global_step"] == section["step"] == total / section["accumulate"]:
        raise ValueError("its parts disagree about the step")
    if section["best"] and not section["best"]["loss"] >= 0:
        raise ValueError("its best loss is no loss")
    (optimizer,) = state["optimizer_states"]
    parameters = [p for group in parameter_groups(gpt, optim) for p in group["params"]]
    ids = [i for group in optimizer["param_groups"] for i in group["params"]]  # sharded: reordered
    if not sorted(ids) == sorted(optimizer["state"]) == list(range(len(parameters))):
        raise ValueError("its optimizer has other parameters")
    for i, p in zip(ids, parameters, strict=True):
        moments = optimizer["state"][i]
        if not moments or any(m.shape not in ((), p.shape) for m in moments.values()):
            raise ValueError("its optimizer has other shapes")
        check_finite(moments.values())


def check_finite(tensors: Iterable[Tensor]) -> None:
    if not all(torch.isfinite(t).all() for t in tensors):
        raise ValueError("it holds numbers that are not finite")


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
