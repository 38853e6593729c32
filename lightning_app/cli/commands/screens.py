"""What `fit` prints before and after training."""

import shlex
from datetime import timedelta
from itertools import groupby
from typing import TYPE_CHECKING

from lightning_app import hardware
from lightning_app.evaluation.metrics import loss_metrics
from lightning_app.runs.checkpoint import SECTION, load
from lightning_app.runs.folders import LOGS

if TYPE_CHECKING:
    from lightning.fabric.plugins.environments import ClusterEnvironment
    from lightning.pytorch import Trainer

    from lightning_app.cli.commands.fit_build import Job
    from lightning_app.cli.commands.fit_options import FitRequest
    from lightning_app.runs.resume import Start

LONG_VALIDATION = (
    "           each validation takes longer than the training before it; to hold out less:",
    "           --data.splits [0.998,0.001,0.001]",
)
BUSY = "           other programs use {:.0%} of the processors now, which slows the training down"


def validation_is_long(job: "Job", interval: int, limit: float | int | None) -> bool:
    """Whether a validation takes longer than the training between two validations.

    Scoring a character takes a third of the time of training on it, and an equally long part of the
    training text is scored too.
    """
    if isinstance(limit, int):
        return False
    first, last = job.data.bounds["val"]
    batch = job.data.batch_size * job.trainer.world_size * job.data.block_size
    return 2 * (last - first) / 3 > interval * batch


def lines_before(request: "FitRequest", start: "Start", job: "Job") -> list[str]:
    """The lines before training: corpus, network, device, length."""
    data, gpt, facts = job.data, job.model.gpt, job.facts
    flags = request.config.trainer
    parameters = sum(p.numel() for p in gpt.parameters())
    sizes = ", ".join(f"{name} {b - a:,}" for name, (a, b) in data.bounds.items() if b > a)
    steps = job.trainer.max_steps - start.step
    seconds = job.plan.seconds * steps / flags.max_steps
    busy = 1 - job.plan.processor_share
    time_needed = f"about {seconds / 60:.0f} minutes" if seconds >= 90 else "about a minute or less"
    how = ", compiled" if facts["compile"] else ""
    on_cpu = facts["device"] == "cpu"
    if on_cpu and facts["precision"].startswith("bf16") and not hardware.multiplies_bf16("cpu"):
        how += " (bfloat16 is emulated here, slowly; 32-true is faster)"
    units = "bytes" if data.unit == "byte" else "characters"
    long = validation_is_long(job, flags.val_check_interval, flags.limit_val_batches)
    return [
        f"corpus     {data.source.corpus}: {len(data.text.ids):,} {units} ({sizes})",
        *(f"           {note}" for note in data.text.notes),
        f"alphabet   {len(data.alphabet)} {units}",
        f"network    {parameters / 1e6:.2f} M parameters: {gpt.config.n_layer} layers, "
        f"{gpt.config.n_head} heads, width {gpt.config.n_embd}, context {gpt.config.block_size}",
        f"device     {facts['device']}, {facts['precision']}{how}",
        f"training   {steps:,} steps of {facts['global_batch'] * facts['block_size']:,} "
        f"{units}, {time_needed}",
        *([BUSY.format(busy)] if busy > 0.25 else ()),
        *(LONG_VALIDATION if long else ()),
        f"run        {request.folder} (watch it: tensorboard --logdir {LOGS})"
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


def lines_after(request: "FitRequest", job: "Job", seconds: float) -> list[str]:
    """The lines after training: metrics, the checkpoint, a sample, and the next commands."""
    best, steps = job.checkpoints.best, job.trainer.global_step
    how, more = f"finished: {steps:,}", ""
    if job.checkpoints.stopped_early:
        how = f"stopped early after {steps:,}"
    elif steps < job.trainer.max_steps:  # by max_time, or a user's callback
        how = f"stopped after {steps:,} of {job.trainer.max_steps:,}"
        more = "; the same command resumes it"
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
    if job.data.source.corpus not in ("shakespeare", "tiny_shakespeare"):
        example = example_prompt(trained.tokenizer.drop_invalid(text))
    return [
        *lines,
        "",
        "-- a sample ".ljust(60, "-"),
        text.strip("\n"),
        "-" * 60,
        "",
        "next:",
        *next_commands(request.run, example),
    ]


def example_prompt(text: str) -> str:
    """Up to 20 printable characters that follow each other in `text`, to be typed as a prompt.

    They are all in the alphabet of the network that generated `text`. Empty if there are none.
    """
    printable = (
        "".join(run).strip() for is_printable, run in groupby(text, str.isprintable) if is_printable
    )
    return next(filter(None, printable), "")[:20].strip()


def next_commands(run: str, prompt: str) -> list[str]:
    """What to type after training, quoted for a POSIX shell."""
    name = shlex.quote(run)
    return [
        f"  python main.py predict --run {name} --prompt {shlex.quote(prompt)}",
        f"  python main.py test --run {name}",
        f"  tensorboard --logdir {LOGS}",
    ]
