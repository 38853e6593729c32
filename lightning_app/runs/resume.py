"""Whether a run may be resumed with the options given now, and from which checkpoint.

Facts are a dictionary that describes a run; `RunCheckpoints` stores it in each checkpoint. Here the
facts in a checkpoint are compared with those of the present options.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_app.errors import UserError
from lightning_app.lightning_internals import processed_batches
from lightning_app.model.gpt import GPT
from lightning_app.runs.checkpoint import (
    NETWORK_PREFIX,
    PREVIOUS_NAME,
    RAW_WEIGHTS,
    SECTION,
    read_checkpoint,
)
from lightning_app.runs.folders import LOGS, find_checkpoint

# A run with another network, other data or another order of the data is refused.
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
    ("window_schedule", "data.window_schedule"),
)
# A difference is reported, and applied to the resumed run.
MAY_CHANGE = ("max_steps", "replace_names", "dropout", "optim", "patience", "intervals", "logger")
# The run is resumed, but not bit for bit as it would have continued.
INEXACT = ("device", "precision", "torch", "threads", "compile", "processes", "accumulate")

BUILT_IN_STOP = "StopWithoutImprovement"  # the callback of --early_stopping_patience


@dataclass
class Differences:
    """A line for each difference, by its consequence."""

    refused: list[str] = field(default_factory=list)
    applied: list[str] = field(default_factory=list)
    inexact: list[str] = field(default_factory=list)


def compare_facts(old: dict[str, Any], new: dict[str, Any]) -> Differences:
    """What differs between the facts in a checkpoint and those of the present options."""
    differences = Differences()
    if old["fingerprint"] != new["fingerprint"]:  # not compared by path: files may have been moved
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
    """`text` in one line; if it is long, only the part around index `at`, the first difference."""
    if len(text) > 60:
        return f"...{text[max(0, at - 10) :][:40]!r}... ({len(text)} characters)"
    return text if text.isprintable() and text == " ".join(text.split()) else repr(text)


def refusal(run: str, lines: list[str]) -> UserError:
    """The error for a run that was trained with other options; `lines` are the differences."""
    return UserError(
        f"run {run} was trained with other options: {'; '.join(lines)}; train another run with "
        f"--run OTHER, or move this one aside with --fresh true"
    )


def check_state(state: dict[str, Any], gpt: GPT, parameters: Sequence[Tensor]) -> None:
    """Check that this network can resume training from a checkpoint's tensors.

    Raises ValueError if a tensor is not finite or has another shape, and one of CORRUPT_ERRORS if
    a part is missing. `parameters` are those of the optimizer, in the order of its groups.
    """
    section = state[SECTION]
    expected = {NETWORK_PREFIX + name: w.shape for name, w in gpt.state_dict().items()}
    if gpt.ngrams is not None:  # these sizes depend on the text
        tables = [f"{NETWORK_PREFIX}ngrams.{name}" for name in ("characters", "counts")]
        expected |= dict.fromkeys(tables, state["state_dict"][tables[0]].shape)
    for weights in (state["state_dict"], state.get(RAW_WEIGHTS)):
        if weights is not None:
            if {name: w.shape for name, w in weights.items()} != expected:
                raise ValueError("its weights are another network's")
            check_finite(weights.values())
    steps = processed_batches(state) / section["accumulate"]
    if not state["global_step"] == section["step"] == steps:
        raise ValueError("its parts disagree about the step")
    if section["best"] and not section["best"]["loss"] >= 0:
        raise ValueError("its best loss is negative or not a number")
    (optimizer,) = state["optimizer_states"]
    ids = [i for group in optimizer["param_groups"] for i in group["params"]]  # sharded: reordered
    if not sorted(ids) == sorted(optimizer["state"]) == list(range(len(parameters))):
        raise ValueError("its optimizer has other parameters")
    for i, p in zip(ids, parameters, strict=True):
        moments = optimizer["state"][i]
        if not moments or any(m.shape not in ((), p.shape) for m in moments.values()):
            raise ValueError("its optimizer has other shapes")
        check_finite(moments.values())


def check_finite(tensors: Iterable[Tensor]) -> None:
    """Raises ValueError if a tensor has an element that is infinite or nan."""
    if not all(torch.isfinite(t).all() for t in tensors):
        raise ValueError("it contains numbers that are not finite")


@dataclass(frozen=True)
class Start:
    """Where a run starts from: a checkpoint to resume from, or none."""

    path: Path | None = None
    state: dict[str, Any] | None = None  # the checkpoint's contents
    note: str | None = None  # why it is not last.ckpt
    origin: str | None = (
        ""  # the file that the run was started from, "" for none, None if not known
    )

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self.state[SECTION]["step"] if self.state else 0


def find_start(
    run: str, ckpt_path: str | None, init_from: str | None, fresh: bool, dev_run: bool
) -> Start:
    """Decide which checkpoint `fit` resumes from: the file of --ckpt_path, or the run's own.

    Raises UserError if the run already has checkpoints and was not started from the given file, and
    if none of its checkpoints can be read.
    """
    if ckpt_path and (fresh or init_from):
        other = "--fresh" if fresh else "--init_from"
        raise UserError(f"{other} and --ckpt_path contradict each other; leave one out")
    given = ckpt_path or init_from or ""
    path = find_checkpoint(ckpt_path, run) if ckpt_path else None
    if path and path.resolve().is_relative_to((LOGS / run).resolve()):  # the run's own
        state = read_checkpoint(path)
        return Start(path, state, origin=state[SECTION]["origin"])
    found = None if fresh or dev_run else resume_point(run)
    if found:
        origin = found[1][SECTION]["origin"]
        if given and origin not in (given, None):
            raise UserError(
                f"run {run} already has checkpoints and was not started from {given}; "
                "start another run with --run OTHER, or move this one aside with --fresh true"
            )
        return Start(*found, origin=origin)
    return Start(path, read_checkpoint(path) if path else None, origin=given)


def resume_point(run: str) -> tuple[Path, dict[str, Any], str | None] | None:
    """The file to resume a run from, its contents, and the reason if it is not last.ckpt.

    None for a run without checkpoints. Raises UserError if none of them can be read.
    """
    folder = LOGS / run / "checkpoints"
    problem = None
    for name in ("last.ckpt", PREVIOUS_NAME, "best.ckpt"):
        path = folder / name
        if not path.exists():
            continue
        try:
            state = read_checkpoint(path)
        except UserError as error:
            problem = problem or error
            continue
        if name == "last.ckpt":
            return path, state, None
        return path, state, f"{problem or f'{folder}/last.ckpt is missing'}; resuming from {path}"
    if problem:
        raise UserError(f"{problem}; --fresh true renames the folder of run {run} and starts again")
    return None


def finished_reason(old: dict[str, Any], new: dict[str, Any]) -> str | None:
    """Why there is nothing left to train, and how to continue; None if there are steps left."""
    step, patience = old["step"], new["patience"]
    if new["max_steps"] <= step:
        return (
            f"finished: {step:,} steps of {new['max_steps']:,}; "
            f"to continue: --trainer.max_steps {step + max(1, step // 2)}"
        )
    if old["stopped_early"] and patience is not None and patience <= (old["patience"] or 0):
        if new["patience_of"] != BUILT_IN_STOP:
            return (
                f"stopped early at step {step:,} by {new['patience_of']}; to continue, give it a "
                f"patience of more than {old['patience']}, or leave it out"
            )
        return (
            f"stopped early at step {step:,}: no better val/loss for {old['patience']} "
            f"validations; to continue: --early_stopping_patience {2 * old['patience']}"
        )
    return None
