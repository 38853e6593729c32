"""What `fit` prints before and after training."""

import math
import shlex
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from itertools import groupby
from typing import TYPE_CHECKING

from lightning.pytorch.loggers import TensorBoardLogger

from lightning_app import hardware
from lightning_app.errors import program
from lightning_app.evaluation.baselines import (
    MAX_TRAIN_BYTES,
    SECONDS_TO_COMPRESS,
    best_compressor,
    characters_within,
)
from lightning_app.evaluation.metrics import loss_metrics
from lightning_app.model.ngram_counting import table_sizes
from lightning_app.runs.checkpoint import SECTION, load
from lightning_app.runs.folders import LOGS
from lightning_app.training.recipe import FREE_PASSES

if TYPE_CHECKING:
    from lightning.fabric.plugins.environments import ClusterEnvironment
    from lightning.pytorch import Trainer

    from lightning_app.cli.commands.fit_build import Job
    from lightning_app.cli.commands.fit_options import FitRequest
    from lightning_app.runs.resume import Start
    from lightning_app.training.recipe import Line

SMALLER_SPLITS = ([0.99, 0.005, 0.005], [0.998, 0.001, 0.001])
COMPARING_SHARE = 0.05  # of --minutes
BUSY = "           other programs use {:.0%} of the processors now, which slows the training down"


def batches_as_long(characters: float, job: "Job") -> float:
    """The batches that take as long to train on as a validation of so many characters.

    Scoring a character takes a third of the time of training on it, and an equally long part of the
    training text is scored too.
    """
    batch = job.data.batch_size * job.trainer.world_size * job.data.block_size
    return 2 * characters / 3 / batch


def long_validation(job: "Job", interval: int, resumed: bool) -> list[str]:
    """Lines with a remedy if a validation takes longer than the training between two validations.

    Smaller splits are suggested only where they leave something to validate and test on: of some
    corpora complete files are held out. A run that is resumed cannot change its splits.
    """
    limit = job.trainer.limit_val_batches
    if isinstance(limit, int):  # a number of batches, which may be 0
        return []
    first, last = job.data.bounds["val"]
    needed = batches_as_long((last - first) * limit, job)
    accumulate = job.trainer.accumulate_grad_batches
    run = job.trainer.max_steps * accumulate  # in batches; a validation follows the last
    if needed <= interval or interval >= run:
        return []
    rarely = min(run, math.ceil(needed / accumulate) * accumulate)
    remedy = f"less often: --trainer.val_check_interval {rarely}"
    for splits in () if resumed else SMALLER_SPLITS:
        source = replace(job.data.source, splits=splits)
        bounds = source.split(job.data.split_text.corpus, job.data.text).bounds
        sizes = [b - a for a, b in bounds.values()]
        if all(sizes) and batches_as_long(sizes[1] * limit, job) <= interval:
            remedy = f"on less text: --data.splits {splits}".replace(", ", ",")
            break
    return [
        "           each validation takes longer than the training before it; to validate",
        f"           {remedy}",
    ]


def has_tensorboard(job: "Job") -> bool:
    return any(isinstance(logger, TensorBoardLogger) for logger in job.trainer.loggers)


def plan_lines(decisions: Sequence["Line"]) -> list[str]:
    """What --minutes chose and why."""
    return [
        line
        for subject, text in decisions
        for line in textwrap.wrap(
            text, 88, initial_indent=f"{subject:<11}", subsequent_indent=" " * 11
        )
    ]


def lines_before(request: "FitRequest", start: "Start", job: "Job") -> list[str]:
    """The lines before training: corpus, network, device, length."""
    data, gpt, facts = job.data, job.model.gpt, job.facts
    flags = request.config.trainer
    parameters = sum(p.numel() for p in gpt.parameters())
    tables = ", ".join(map(str, table_sizes(gpt.config.ngram_rows)))
    counted = f", counts of what follows {tables} characters" if tables else ""
    sizes = ", ".join(f"{name} {b - a:,}" for name, (a, b) in data.bounds.items() if b > a)
    steps = job.trainer.max_steps - start.step
    seconds = job.plan.seconds * steps / flags.max_steps
    busy = 1 - job.plan.processor_share
    time_needed = f"about {seconds / 60:.0f} minutes" if seconds >= 90 else "about a minute or less"
    minutes = request.config.minutes
    if minutes and start.step == 0 and "trainer.max_steps" not in request.given():
        time_needed = f"at most {minutes:g} minute{'s' if minutes != 1 else ''} in all"
    how = ", compiled" if facts["compile"] else ""
    on_cpu = facts["device"] == "cpu"
    if on_cpu and facts["precision"].startswith("bf16") and not hardware.multiplies_bf16("cpu"):
        how += " (bfloat16 is emulated here, slowly; 32-true is faster)"
    units = "bytes" if data.unit == "byte" else "characters"
    resumed = start.state is not None
    long = [] if request.dev_run else long_validation(job, flags.val_check_interval, resumed)
    watch = f" (watch it: tensorboard --logdir {LOGS})" if has_tensorboard(job) else ""
    return [
        f"corpus     {data.source.corpus}: {len(data.text.ids):,} {units} ({sizes})",
        *(f"           {note}" for note in data.text.notes),
        f"alphabet   {len(data.alphabet)} {units}",
        f"network    {parameters / 1e6:.2f} M parameters: {gpt.config.n_layer} layers, "
        f"{gpt.config.n_head} heads, width {gpt.config.n_embd}, context {gpt.config.block_size}"
        + counted,
        f"device     {facts['device']}, {facts['precision']}{how}",
        f"training   {steps:,} steps of {facts['global_batch'] * facts['block_size']:,} "
        f"{units}, {time_needed}",
        *([BUSY.format(busy)] if busy > 0.25 else ()),
        *long,
        f"run        {request.folder}{watch}"
        if not request.dev_run
        else "run        none: fast_dev_run writes no files",
    ]


def waiting_line(trainer: "Trainer", environment: "ClusterEnvironment", limit: timedelta) -> str:
    """What a run on several machines waits for before its first step."""
    return (
        f"waiting up to {limit.seconds // 60} minutes until {trainer.world_size} processes on "
        f"{trainer.num_nodes} machines have connected to {environment.main_address}, port "
        f"{environment.main_port}; start the command on every machine, with torchrun or SLURM (see "
        "the README)"
    )


def lines_if_finished(run: str, reason: str, start: "Start") -> list[str]:
    """The lines if no steps are left to train: the reason, and the best loss."""
    lines = [f"run {run} is {reason}"]
    if start.state and (best := start.state[SECTION]["best"]):
        lines.append(f"best val/loss {best['loss']:.4f} at step {best['step']:,}")
    return lines


def lines_after(request: "FitRequest", start: "Start", job: "Job", seconds: float) -> list[str]:
    """The lines after training: metrics, the checkpoint, a sample, and the next commands."""
    best, steps, minutes = job.checkpoints.best, job.trainer.global_step, request.config.minutes
    how, more = f"finished: {steps:,}", ""
    if job.checkpoints.stopped_early:
        how = f"stopped early after {steps:,}"
    elif steps < job.trainer.max_steps:
        how = f"stopped after {steps:,} of {job.trainer.max_steps:,}"
        more = "; a callback of --trainer.callbacks stopped it"
        if request.config.trainer.max_time is not None:
            more = "; the same command resumes it"
        if steps == start.step:
            more = ": --trainer.max_time or a callback leaves no time for a step"
    lines = [f"run {request.run} {how} steps, {seconds / 60:.1f} minutes{more}", ""]
    path = request.folder / "checkpoints" / "best.ckpt"
    if not best or not path.exists():
        return [*lines, "no validation ran, so there is no best.ckpt"]
    f = loss_metrics(best["loss"])
    lines += [
        f"best val/loss  {f['loss']:.4f} nats per character (step {best['step']:,})",
        f"perplexity     {f['perplexity']:.4f}",
        f"bpc            {f['bpc']:.4f}",
        f"checkpoint     {path}",
        *(lines_beside_compressors(job, best["loss"], minutes) if minutes else []),
    ]
    if steps - best["step"] > 0.2 * steps:
        lines.append(
            f"overfitting: the best step was {steps - best['step']:,} before the last; more "
            "dropout or weight decay, a smaller network or --early_stopping_patience may help"
        )
    trained = load(path)
    prompt = "\n" if "\n" in trained.tokenizer.ids else ""
    text = trained.generate(prompt, seed=request.config.seed_everything, max_new_tokens=300)
    example = "O God, O God!"
    if job.data.split_text.corpus.name not in ("shakespeare", "tiny_shakespeare"):
        example = example_prompt(trained.tokenizer.drop_invalid(text))
    first, last = job.data.bounds["test"]
    score = "test" if last > first else "validate"
    return [
        *lines,
        "",
        "-- a sample ".ljust(60, "-"),
        text.strip("\n"),
        "-" * 60,
        "",
        "next:",
        *next_commands(request.run, example, score),
        *([f"  tensorboard --logdir {LOGS}"] if has_tensorboard(job) else []),
    ]


def compared_bytes(minutes: float) -> int:
    """How much of the training text the compressors get, so that they take at most COMPARING_SHARE
    of the time."""
    return min(MAX_TRAIN_BYTES, int(COMPARING_SHARE * 60 * minutes / SECONDS_TO_COMPRESS))


def lines_beside_compressors(job: "Job", loss: float, minutes: float) -> list[str]:
    """The best compressor's loss on the validated characters, and what to do if it is lower."""
    data, text = job.data, job.data.text
    (train, end), (first, last) = data.bounds["train"], data.bounds["val"]
    held = first, min(last, first + job.model.eval_loss.scored)
    max_bytes = compared_bytes(minutes)
    best = best_compressor(text, (train, end), held, max_bytes)
    if best is None or best.nats is None:
        return []
    lines = [f"for comparison {best.nats:.4f} by a compressor, {best.name}"]
    compared = characters_within(text.ids[train:end], text.alphabet, text.unit, max_bytes)
    if compared < end - train:
        lines[0] += f", given the last {compared:,} characters of the training text"
    if best.nats < loss:
        read = job.trainer.global_step * job.facts["global_batch"] * data.block_size
        passes = read / (end - train)
        more = "more minutes"
        if passes > FREE_PASSES:
            more = "more text of this kind, or the weights of a run on such text (--init_from),"
        reading = f"the training text was read {passes:.1f} times"
        if passes < 1:
            reading = f"{100 * passes:.2g} % of the training text was read"
        lines.append(f"the compressor is better: {more} would help; {reading}")
    return lines


def example_prompt(text: str) -> str:
    """Up to 20 printable characters that follow each other in `text`, to be typed as a prompt.

    They are all in the alphabet of the network that generated `text`. Empty if there are none.
    """
    printable = (
        "".join(run).strip() for is_printable, run in groupby(text, str.isprintable) if is_printable
    )
    return next(filter(None, printable), "")[:20].strip()


def next_commands(run: str, prompt: str, score: str) -> list[str]:
    """What to type after training, quoted for a POSIX shell; `score` is test or validate."""
    name = shlex.quote(run)
    return [
        f"  {program()} predict --run {name} --prompt {shlex.quote(prompt)}",
        f"  {program()} {score} --run {name}",
    ]
