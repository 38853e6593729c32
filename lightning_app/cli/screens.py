"""What fit says before training and after it."""

import shlex
import time
from typing import TYPE_CHECKING

from lightning_app.evaluation.metrics import loss_metrics
from lightning_app.generation.generate import generate_text
from lightning_app.generation.sampling import GenerateOptions
from lightning_app.hardware import multiplies_bf16
from lightning_app.runs.checkpoint import SECTION, load
from lightning_app.runs.folders import LOGS

if TYPE_CHECKING:
    from lightning_app.cli.fit import FitCLI


LONG_VALIDATION = (
    "           each validation takes longer than the training before it; to hold out less:",
    "           --data.splits [0.998,0.001,0.001]",
)


def validation_is_long(cli: "FitCLI") -> bool:
    """Scoring is a third of training's work, and an equally long piece of train is scored too."""
    trainer, data = cli.trainer, cli.datamodule
    if isinstance(trainer.limit_val_batches, int) or isinstance(trainer.val_check_interval, float):
        return False
    first, last = data.bounds["val"]
    batch = data.batch_size * trainer.world_size * data.block_size
    return 2 * (last - first) / 3 > trainer.val_check_interval * batch


def before(cli: "FitCLI") -> list[str]:
    """What is about to happen: corpus, network, machine, length."""
    data, gpt, facts = cli.datamodule, cli.model.gpt, cli.facts
    parameters = sum(p.numel() for p in gpt.parameters())
    sizes = ", ".join(f"{name} {b - a:,}" for name, (a, b) in data.bounds.items() if b > a)
    steps = cli.trainer.max_steps
    if cli.point:
        steps -= cli.point[1][SECTION]["step"]
    seconds = cli.seconds * steps / cli.config.trainer.max_steps
    time_needed = f"about {seconds / 60:.0f} minutes" if seconds >= 90 else "about a minute or less"
    how = ", compiled" if facts["compile"] else ""
    on_cpu = cli.accelerator == "cpu"
    if on_cpu and facts["precision"].startswith("bf16") and not multiplies_bf16("cpu"):
        how += " (bfloat16 is emulated here, slowly; 32-true is faster)"
    units = "bytes" if data.unit == "byte" else "characters"
    return [
        f"corpus     {data.corpus}: {len(data.text.ids):,} {units} ({sizes})",
        *(f"           {note}" for note in data.text.notes),
        f"alphabet   {len(data.alphabet)} {units}",
        f"network    {parameters / 1e6:.2f} M parameters: {gpt.config.n_layer} layers, "
        f"{gpt.config.n_head} heads, width {gpt.config.n_embd}, context {gpt.config.block_size}",
        f"device     {cli.accelerator}, {facts['precision']}{how}",
        f"training   {steps:,} steps of {facts['global_batch'] * facts['block_size']:,} "
        f"{units}, {time_needed}",
        *(LONG_VALIDATION if validation_is_long(cli) else ()),
        f"run        {cli.folder} (watch it: tensorboard --logdir {LOGS})"
        if not cli.dev_run
        else "run        none: fast_dev_run leaves no trace",
    ]


def after(cli: "FitCLI") -> list[str]:
    """The screen at the end: how good, where it is, a sample, what to type next."""
    best = cli.checkpoints.best
    minutes = (time.perf_counter() - cli.began) / 60
    steps = cli.trainer.global_step
    how, more = f"finished: {steps:,}", ""
    if cli.checkpoints.stopped_early:
        how = f"stopped early after {steps:,}"
    elif steps < cli.trainer.max_steps:  # by max_time, or a user's callback
        how = f"stopped after {steps:,} of {cli.trainer.max_steps:,}"
        more = "; the same command goes on"
    lines = [f"run {cli.run} {how} steps, {minutes:.1f} minutes{more}", ""]
    path = cli.folder / "checkpoints" / "best.ckpt"
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
    (text,) = generate_text(
        trained.gpt,
        trained.tokenizer,
        [prompt],
        GenerateOptions(max_new_tokens=300),
        seed=cli.config.seed_everything,
        unigram=trained.unigram,
    )
    example = "O God, O God!"
    if cli.datamodule.corpus not in ("shakespeare", "tiny_shakespeare"):
        example = " ".join(trained.tokenizer.whole(text).split())[:20]
    return [
        *lines,
        "",
        "-- a sample ".ljust(60, "-"),
        text.strip("\n"),
        "-" * 60,
        "",
        "next:",
        f"  python main.py predict --run {cli.run} --prompt {shlex.quote(example)}",
        f"  python main.py test --run {cli.run}",
        f"  tensorboard --logdir {LOGS}",
    ]
