"""validate, test: the exact loss of a trained network on a held-out split."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Literal

from jsonargparse.typing import PositiveInt

from lightning_app.cli.configs import split_configs
from lightning_app.cli.loading import LoadedRun, add_run_arguments, load_run, rebuild_data
from lightning_app.cli.parsing import Parser
from lightning_app.cli.trainer_flags import add_trainer_flags, make_trainer
from lightning_app.data.batches import EvalBatches
from lightning_app.data.datamodule import CharDataModule
from lightning_app.data.splits import TextSource
from lightning_app.errors import UserError
from lightning_app.evaluation.baselines import baseline_table, cached_baselines
from lightning_app.evaluation.dynamic import DynamicOptions, dynamic_loss
from lightning_app.evaluation.metrics import loss_metrics
from lightning_app.evaluation.report import collect_scores, report_page
from lightning_app.runs.checkpoint import checkpoint_summary, load
from lightning_app.training.callbacks.progress_bar import EvaluationProgressBar
from lightning_app.training.module import CharGPT


class EvaluateParser(Parser):
    def __init__(self, command: str) -> None:
        super().__init__(prog=f"main.py {command}", description=__doc__)
        add = self.add_argument
        add_run_arguments(self)
        add(
            "--evaluate",
            type=Literal["block", "sliding", "dynamic"],
            default="block",
            help="block: windows side by side, as in training; sliding: every character sees at "
            "least half a window before it; dynamic: the network learns on as it reads.",
        )
        add(
            "--stride",
            type=PositiveInt | None,
            help="Characters that a window scores, the others being context; null is half of it "
            "for sliding and 32 for dynamic, which learns after each.",
        )
        self.add_class_arguments(DynamicOptions, "dynamic")
        add("--report", type=str | None, help="Write where the network fails to this HTML file.")
        add(
            "--baselines",
            type=bool,
            default=True,
            help="Print the loss of n-grams and compressors on the same characters, too.",
        )
        add("--seed_everything", type=int | None, help="Accepted for symmetry; scoring is exact.")
        self.add_class_arguments(TextSource, "data", instantiate=False, skip={"unit"})
        add(
            "--data.block_size",
            type=PositiveInt | None,
            help="Characters in a window, at most the network's.",
        )
        add("--data.batch_size", type=PositiveInt | None, help="Windows in a batch.")
        # what is not given is as the checkpoint says
        self.set_defaults({f"data.{name}": None for name in TextSource.names() if name != "unit"})
        add_trainer_flags(self)


def main(argv: list[str]) -> int:
    command, rest = argv[0], argv[1:]
    configs, rest = split_configs(rest)
    parser = EvaluateParser(command)
    config = parser.parse_args(rest)
    run = load_run(config, configs)
    init = parser.instantiate(config)
    given = {name: value for name, value in config.data.items() if value is not None}
    block_size = given.get("block_size", run.trained.gpt.config.block_size)
    data = rebuild_data(run.trained, given, stride(config.evaluate, config.stride, block_size))
    split = {"validate": "val", "test": "test"}[command]
    if config.report and config.evaluate == "dynamic":
        raise UserError("--report is of the weights; use it with --evaluate block or sliding")
    options = [a for a in rest if a.startswith("--dynamic.")]
    if options and config.evaluate != "dynamic":
        raise UserError(f"{options[0].split('=')[0]} is for --evaluate dynamic")
    if config.evaluate == "dynamic":
        if flags := [a for a in rest if a.startswith("--trainer")]:
            raise UserError(
                f"{flags[0].split('=')[0]} is not for --evaluate dynamic, which reads one window "
                "after another without a Trainer; leave it out"
            )
        return score_dynamically(run, data, split, init.dynamic, config.baselines)
    model = CharGPT(**run.trained.arguments, gpt=run.trained.gpt)
    trainer_flags = dict(init.trainer)
    callbacks = [*(trainer_flags["callbacks"] or []), EvaluationProgressBar()]
    trainer = make_trainer(trainer_flags | {"callbacks": callbacks})
    batches = data.eval_batches(split)  # all of them, before a Trainer takes a process's share
    if trainer.is_global_zero:
        announce(run, data, batches)
    evaluate = trainer.validate if command == "validate" else trainer.test
    evaluate(model, datamodule=data, verbose=False)
    if not model.eval_metrics:
        raise UserError(f"--trainer.limit_{split}_batches leaves nothing to score; leave it out")
    if trainer.is_global_zero:
        loss = model.eval_metrics[f"{split}/loss"]
        how = f"context: {describe(config.evaluate, data)}; {trainer.precision}"
        print_metrics(loss, model.eval_loss.scored, how)
        first, last = data.bounds[split]
        if model.eval_loss.scored < last - max(first, 1):
            print("\na part of the split: no baselines, no report", file=sys.stderr)
            return 0
        if config.baselines:
            print("\n".join(["", *beside(data, split, loss)]))
        if config.report:
            # loaded again: a strategy may have shared the network out, a precision rounded it
            trained = load(run.path)
            title = f"{run.name or run.path}: {split}"
            page = report_page(
                title, trained, collect_scores(trained.gpt, batches), data.ids("train")
            )
            Path(config.report).write_text(page, encoding="utf-8")
            print(f"\nwrote {config.report}")
    return 0


def stride(evaluate: str, given: int | None, block_size: int) -> int:
    """How many characters a window scores. Raises UserError for a stride without effect."""
    if evaluate == "block":
        if given is not None:
            raise UserError("--stride is for --evaluate sliding or dynamic; block scores them all")
        return block_size
    return min(given or {"sliding": max(1, block_size // 2), "dynamic": 32}[evaluate], block_size)


def describe(evaluate: str, data: CharDataModule) -> str:
    each = "" if evaluate == "block" else f" that score {data.eval_stride} each"
    return f"{evaluate}, windows of {data.block_size}{each}"


def announce(run: LoadedRun, data: CharDataModule, batches: EvalBatches) -> None:
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
) -> int:
    batches = replace(data.eval_batches(split), batch_size=1)  # in reading order, one by one
    announce(run, data, batches)
    metric = dynamic_loss(run.trained.gpt, batches, options)
    loss = float(metric.compute())
    how = f"context: {describe('dynamic', data)}, learning rate {options.learning_rate:g}"
    print_metrics(loss, metric.scored, f"{how}; not a figure of the weights alone")
    if with_baselines:
        print("\n".join(["", *beside(data, split, loss)]))
    return 0


def beside(data: CharDataModule, split: str, loss: float) -> list[str]:
    """The figure among simple models and compressors, on the same text."""
    first, last = data.bounds[split]
    held = max(first, 1), last  # the corpus's first character is not scored
    found = cached_baselines(data.text, data.bounds["train"], held)
    heading = f"the same {found.held:,} characters, given {found.train:,} of the training split"
    if found.held < held[1] - held[0]:
        heading = f"the first {found.held:,} of these characters, given {found.train:,} before them"
    return [heading, *baseline_table(found, ("this network", loss))]
