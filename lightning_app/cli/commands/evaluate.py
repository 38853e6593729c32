"""validate, test: the exact loss of a trained network on a held-out split."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from jsonargparse import Namespace
from jsonargparse.typing import PositiveInt

from lightning_app.cli.configs import split_configs
from lightning_app.cli.loading import LoadedRun, add_run_arguments, load_run, rebuild_data
from lightning_app.cli.parsing import Parser, instantiate
from lightning_app.cli.trainer_flags import add_trainer_flags, as_list, make_trainer
from lightning_app.data.batches import EvalBatches
from lightning_app.data.datamodule import CharDataModule
from lightning_app.data.splits import TextSource
from lightning_app.errors import UserError, program
from lightning_app.evaluation.baselines import baseline_table, cached_baselines
from lightning_app.evaluation.dynamic import DynamicOptions, dynamic_loss
from lightning_app.evaluation.metrics import loss_metrics
from lightning_app.evaluation.report import collect_scores, report_page
from lightning_app.runs.checkpoint import checkpoint_summary, load
from lightning_app.training.callbacks.progress_bar import EvaluationProgressBar
from lightning_app.training.module import CharGPT


def make_parser(command: str) -> Parser:
    parser = Parser(prog=f"{program()} {command}", description=__doc__)
    add = parser.add_argument
    add_run_arguments(parser)
    add(
        "--evaluate",
        type=Literal["block", "sliding", "dynamic"],
        default="block",
        help="block: consecutive windows, as in training; sliding: every character has at "
        "least half a window of context; dynamic: the network is trained on each part of the "
        "text after scoring it.",
    )
    add(
        "--stride",
        type=PositiveInt | None,
        help="Characters that each window scores, at its end; the others are context. null is "
        "half a window for sliding and 32 for dynamic, which trains after each window.",
    )
    parser.add_class_arguments(DynamicOptions, "dynamic")
    add("--report", type=str | None, help="HTML file for a report on the network's errors.")
    add(
        "--baselines",
        type=bool,
        default=True,
        help="Also print the loss of n-grams and compressors on the same characters.",
    )
    add(
        "--seed_everything",
        type=int | None,
        help="Has no effect: scoring uses no random numbers.",
    )
    parser.add_class_arguments(TextSource, "data", instantiate=False, skip={"unit"})
    add(
        "--data.block_size",
        type=PositiveInt | None,
        help="Characters in a window, at most the network's.",
    )
    add("--data.batch_size", type=PositiveInt | None, help="Windows in a batch.")
    # options that are not given are those of the checkpoint
    parser.set_defaults({f"data.{name}": None for name in TextSource.names() if name != "unit"})
    add_trainer_flags(parser)
    return parser


def main(argv: list[str]) -> int:
    command, rest = argv[0], argv[1:]
    configs, rest = split_configs(rest)
    parser = make_parser(command)
    config = parser.parse_args(rest)
    run = load_run(config, configs)
    options = instantiate(parser, config)
    given = {name: value for name, value in config.data.items() if value is not None}
    block_size = given.get("block_size", run.trained.gpt.config.block_size)
    stride = choose_stride(config.evaluate, config.stride, block_size)
    data = rebuild_data(run.trained, given, stride)
    check_options(config, rest)
    split = {"validate": "val", "test": "test"}[command]
    if config.evaluate == "dynamic":
        score_dynamically(run, data, split, options.dynamic, config.baselines)
    else:
        score_with_trainer(run, data, split, config, dict(options.trainer))
    return 0


def check_options(config: Namespace, arguments: list[str]) -> None:
    """Raises UserError for options that have no effect with this --evaluate."""
    dynamic = config.evaluate == "dynamic"
    if config.report and dynamic:
        raise UserError(
            "--report shows the errors of the trained weights, which --evaluate dynamic changes; "
            "use it with --evaluate block or sliding"
        )
    prefix = "--trainer" if dynamic else "--dynamic."
    unused = next((a.split("=")[0] for a in arguments if a.startswith(prefix)), None)
    if unused and dynamic:
        raise UserError(
            f"{unused} is not for --evaluate dynamic, which reads one window after another without "
            "a Trainer; leave it out"
        )
    if unused:
        raise UserError(f"{unused} is for --evaluate dynamic")


def score_with_trainer(
    run: LoadedRun, data: CharDataModule, split: str, config: Namespace, flags: dict[str, Any]
) -> None:
    """Score the split, and print its metrics, the baselines and the report as asked for."""
    model = CharGPT(**run.trained.arguments, gpt=run.trained.gpt)
    callbacks = [*as_list(flags["callbacks"]), EvaluationProgressBar()]
    trainer = make_trainer(flags | {"callbacks": callbacks})
    batches = data.eval_batches(split)  # all: with a Trainer, only those of one process
    if trainer.is_global_zero:
        announce(run, data, batches)
    evaluate = trainer.validate if split == "val" else trainer.test
    evaluate(model, datamodule=data, verbose=False)
    if not model.eval_metrics:
        raise UserError(f"--trainer.limit_{split}_batches leaves nothing to score; leave it out")
    if not trainer.is_global_zero:
        return
    loss, scored = model.eval_metrics[f"{split}/loss"], model.eval_loss.scored
    print_metrics(loss, scored, f"{describe_context(config.evaluate, data)}; {trainer.precision}")
    first, last = data.bounds[split]
    if scored < last - max(first, 1):
        print("\nonly a part of the split: no baselines, no report", file=sys.stderr)
        return
    if config.baselines:
        print_comparison(data, split, loss)
    if config.report:
        write_report(run, data, split, batches, Path(config.report))


def write_report(
    run: LoadedRun, data: CharDataModule, split: str, batches: EvalBatches, file: Path
) -> None:
    # Loaded again, because a strategy may have sharded the network or a precision rounded it.
    trained = load(run.path)
    scores = collect_scores(trained.gpt, batches)
    page = report_page(f"{run.name or run.path}: {split}", trained, scores, data.ids("train"))
    file.write_text(page, encoding="utf-8")
    print(f"\nwrote {file}")


def choose_stride(evaluate: str, given: int | None, block_size: int) -> int:
    """How many characters each window scores. Raises UserError for a stride without effect."""
    if evaluate == "block":
        if given is not None:
            raise UserError("--stride is for --evaluate sliding or dynamic; block scores them all")
        return block_size
    return min(given or {"sliding": max(1, block_size // 2), "dynamic": 32}[evaluate], block_size)


def describe_context(evaluate: str, data: CharDataModule) -> str:
    each = "" if evaluate == "block" else f" that score {data.eval_stride} each"
    return f"context: {evaluate}, windows of {data.block_size}{each}"


def announce(run: LoadedRun, data: CharDataModule, batches: EvalBatches) -> None:
    if data.text.fingerprint != run.trained.data.get("fingerprint"):
        print("this is not the text that the run was trained on", file=sys.stderr)
    print(
        f"scoring {run.path} ({checkpoint_summary(run.trained.info)}) on characters "
        f"{batches.first:,} to {batches.last:,} of {data.source.corpus}",
        file=sys.stderr,
    )


def print_metrics(loss: float, scored: int, how: str) -> None:
    f = loss_metrics(loss)
    print(f"loss        {f['loss']:.6f} nats per character")
    print(f"perplexity  {f['perplexity']:.6f}")
    print(f"bpc         {f['bpc']:.6f}")
    print(f"characters  {scored} ({how})")


def score_dynamically(
    run: LoadedRun,
    data: CharDataModule,
    split: str,
    options: DynamicOptions,
    with_baselines: bool,
) -> None:
    """Score the split by dynamic evaluation, and print its metrics and the baselines."""
    batches = replace(data.eval_batches(split), batch_size=1)  # in reading order, one by one
    announce(run, data, batches)
    metric = dynamic_loss(run.trained.gpt, batches, options)
    loss = float(metric.compute())
    how = f"{describe_context('dynamic', data)}, learning rate {options.learning_rate:g}"
    print_metrics(loss, metric.scored, f"{how}; not a figure of the weights alone")
    if with_baselines:
        print_comparison(data, split, loss)


def print_comparison(data: CharDataModule, split: str, loss: float) -> None:
    """Print a table of the loss and the baselines, which are scored on the same text."""
    first, last = data.bounds[split]
    held = max(first, 1), last  # the corpus's first character is not scored
    found = cached_baselines(data.text, data.bounds["train"], held)
    heading = f"the same {found.held:,} characters, given {found.train:,} of the training split"
    if found.held < held[1] - held[0]:
        heading = f"the first {found.held:,} of these characters, given {found.train:,} before them"
    print("", heading, *baseline_table(found, ("this network", loss)), sep="\n")
