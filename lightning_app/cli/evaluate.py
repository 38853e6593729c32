"""validate, test: the exact loss of a trained network on a held-out split."""

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

from jsonargparse.typing import PositiveInt

from lightning_app.cli.configs import read_configs, run_name, split_configs
from lightning_app.cli.parsing import Parser
from lightning_app.cli.trainer_flags import add_trainer_flags, make_trainer
from lightning_app.data.datamodule import CharDataModule
from lightning_app.data.splits import HoldOut
from lightning_app.errors import UserError
from lightning_app.evaluation.baselines import baseline_table, cached_baselines
from lightning_app.evaluation.dynamic import DynamicOptions, dynamic_loss
from lightning_app.evaluation.metrics import loss_metrics
from lightning_app.evaluation.report import collect_scores, report_page
from lightning_app.runs.checkpoint import TrainedModel, checkpoint_summary, load
from lightning_app.runs.folders import find_checkpoint
from lightning_app.training.callbacks.progress_bar import EvaluationProgressBar
from lightning_app.training.module import CharGPT


@dataclass
class DataOptions:
    """What to score, where it is not what the checkpoint was trained with.

    Args:
        corpus: Another text: a UTF-8 file, a folder, a glob, or a name.
        splits: Other shares for training, validation and test.
        hold_out: Whether these are cut between characters, or where the nearest file begins.
        block_size: Characters in a window, at most the network's.
        batch_size: Windows in a batch.
        data_dir: Where corpora and their encoded form are kept now.
    """

    corpus: str | None = None
    splits: list[float] | None = None
    hold_out: HoldOut | None = None
    block_size: PositiveInt | None = None
    batch_size: PositiveInt | None = None
    data_dir: str | None = None


class EvaluateParser(Parser):
    def __init__(self, command: str) -> None:
        super().__init__(prog=f"main.py {command}", description=__doc__)
        add = self.add_argument
        add("--run", type=str | None, help="The run (default: the config's, else the newest).")
        add("--ckpt_path", type=str | None, help="A checkpoint file, or best or last of the run.")
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
            "--yardsticks",
            type=bool,
            default=True,
            help="Print beside it what n-grams and compressors make of the same characters.",
        )
        add("--debug", type=bool, default=False, help="Show tracebacks.")
        add("--seed_everything", type=int | None, help="Accepted for symmetry; scoring is exact.")
        self.add_class_arguments(DataOptions, "data")
        add_trainer_flags(self)


def main(argv: list[str]) -> int:
    command, rest = argv[0], argv[1:]
    configs, rest = split_configs(rest)
    parser = EvaluateParser(command)
    config = parser.parse_args(rest)
    name = run_name(config.run or read_configs(configs).get("run"), configs)
    path = find_checkpoint(config.ckpt_path, name)
    trained = load(path)
    init = parser.instantiate_classes(config)
    data = rebuild_data(trained, init.data)
    data.eval_stride = stride(config.evaluate, config.stride, data.block_size)
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
        return score_dynamically(path, trained, data, split, init.dynamic, config.yardsticks)
    model = CharGPT(**trained.hyper_parameters)
    model.gpt = trained.gpt
    flags = dict(init.trainer)
    trainer = make_trainer(
        flags | {"callbacks": [*(flags["callbacks"] or []), EvaluationProgressBar()]}
    )
    if trainer.is_global_zero:
        announce(path, trained, data, split)
    run = trainer.validate if command == "validate" else trainer.test
    run(model, datamodule=data, verbose=False)
    if not model.figures:
        raise UserError(f"--trainer.limit_{split}_batches leaves nothing to score; leave it out")
    if trainer.is_global_zero:
        how = f"context: {describe(config.evaluate, data)}; {trainer.precision}"
        print_figures(model.figures[f"{split}/loss"], model.eval_loss.scored, how)
        first, last = data.bounds[split]
        if model.eval_loss.scored < last - max(first, 1):
            print("\na part of the split: no yardsticks, no report", file=sys.stderr)
            return 0
        if config.yardsticks:
            print("\n".join(["", *beside(data, split, model.figures[f"{split}/loss"])]))
        if config.report:
            # read once more: a strategy may have shared the network out, a precision rounded it
            trained = load(path)
            write_report(Path(config.report), name or path, trained, data, split)
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


def read_alone(data: CharDataModule) -> None:
    """Make the data's batches all of them, not one process's share."""
    data.trainer = SimpleNamespace(world_size=1, global_rank=0)


def write_report(
    file: Path, name: str | Path, trained: TrainedModel, data: CharDataModule, split: str
) -> None:
    read_alone(data)
    scores = collect_scores(trained.gpt, data.eval_batches(split))
    train = data.split("train") if data.ids_of is None else data.ids_of[data.split("train")]
    file.write_text(report_page(f"{name}: {split}", trained, scores, train), encoding="utf-8")
    print(f"\nwrote {file}")


def announce(path: Path, trained: TrainedModel, data: CharDataModule, split: str) -> None:
    first, last = data.eval_batches(split).first, data.eval_batches(split).last
    print(
        f"scoring {path} ({checkpoint_summary(trained.info)}) on characters "
        f"{first:,} to {last:,} of {data.corpus}",
        file=sys.stderr,
    )


def print_figures(loss: float, scored: int, how: str) -> None:
    f = loss_metrics(loss)
    print(f"loss        {f['loss']:.6f} nats per character")
    print(f"perplexity  {f['perplexity']:.6f}")
    print(f"bpc         {f['bpc']:.6f}")
    print(f"characters  {scored} ({how})")


def score_dynamically(
    path: Path,
    trained: TrainedModel,
    data: CharDataModule,
    split: str,
    options: DynamicOptions,
    with_yardsticks: bool,
) -> int:
    announce(path, trained, data, split)
    data.batch_size = 1
    read_alone(data)
    metric = dynamic_loss(trained.gpt, data.eval_batches(split), options)
    loss = float(metric.compute())
    how = f"context: {describe('dynamic', data)}, learning rate {options.learning_rate:g}"
    print_figures(loss, metric.scored, f"{how}; not a figure of the weights alone")
    if with_yardsticks:
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


def rebuild_data(trained: TrainedModel, options: DataOptions) -> CharDataModule:
    """The data a network was trained on, from its checkpoint, with the options given now.

    Raises UserError when the text is not the same any more, or has characters unknown to it.
    """
    then = trained.info["data"]
    given = {k: v for k, v in asdict(options).items() if v is not None}
    names = ("corpus", "splits", "hold_out", "unit", "block_size", "batch_size", "data_dir")
    kept = {k: then[k] for k in names}
    data = CharDataModule(**kept | given)
    if data.block_size > trained.gpt.config.block_size:
        raise UserError(
            f"--data.block_size {data.block_size} is more than the network's "
            f"{trained.gpt.config.block_size}"
        )
    data.setup()
    if options.corpus is None and data.text.fingerprint != then["fingerprint"]:
        raise UserError(
            f"the corpus {data.corpus} has changed since the run was trained; to score it as it is "
            f"now: --data.corpus {data.corpus}"
        )
    data.read_as(trained.tokenizer.alphabet)
    return data
