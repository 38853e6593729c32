"""The options of `fit`, parsed by LightningCLI, and the run that they select."""

import re
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse import Namespace
from jsonargparse.typing import PositiveFloat, PositiveInt
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from lightning_app.cli.configs import (
    config_arguments,
    dump_yaml,
    find_config,
    read_configs,
    run_name,
)
from lightning_app.cli.parsing import FriendlyErrors, Seed, take_texts
from lightning_app.cli.trainer_flags import check_flags
from lightning_app.data.datamodule import CharDataModule
from lightning_app.errors import program
from lightning_app.generation.sampling import GenerateOptions
from lightning_app.runs.folders import LOGS, check_run_name
from lightning_app.training.module import CharGPT
from lightning_app.training.optimizer import OptimOptions
from lightning_app.training.schedules import ScheduleOptions

DESCRIPTION = "fit: train a run, resume it, extend it, or fine-tune another run's weights."
TRAINER_DEFAULTS = {
    "max_steps": 2000,
    "val_check_interval": 500,
    "check_val_every_n_epoch": None,  # steps, not epochs
    "log_every_n_steps": 10,
    "num_sanity_val_steps": 0,
    "enable_model_summary": False,
    "use_distributed_sampler": False,  # CharDataModule gives each process its own batches
}
# Arguments of the classes that are not options: they follow from other options.
DERIVED_DATA = {"seed", "alphabet", "eval_stride", "with_begins"}
DERIVED_MODEL = {
    *("alphabet", "block_size", "unit", "counts", "seed", "gpt"),
    *("optim", "schedule", "generation", "num_samples", "compile_network"),
}
TEXT_OPTIONS = ["--generate.stop"]  # see `take_texts`
NOT_SAVED = ("config", "run", "fresh", "debug", "ckpt_path")  # left out of a run's config.yaml


class FitParser(FriendlyErrors, LightningArgumentParser):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs | {"prog": f"{program()} fit", "description": DESCRIPTION})


class FitCLI(LightningCLI):
    """The parser of `fit` and the parsed options; `fit_build` builds the objects."""

    def __init__(self, configs: list[Path], args: list[str]) -> None:
        super().__init__(
            CharGPT,
            CharDataModule,
            save_config_callback=None,  # `fit` itself writes config.yaml
            trainer_defaults=TRAINER_DEFAULTS,
            parser_class=FitParser,
            args=[*config_arguments(configs), *args],
            run=False,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        add = parser.add_argument
        add(
            "--run",
            type=str | None,
            help="Name of the run (default: that of the config); its folder is logs/NAME.",
        )
        add("--fresh", type=bool, default=False, help="Rename the run's folder and start again.")
        add("--ckpt_path", type=str | None, help="Checkpoint file from which this run resumes.")
        add(
            "--init_from",
            type=str | None,
            help="Checkpoint file whose weights a new run starts with.",
        )
        add(
            "--seed_everything",
            type=Seed,
            default=1337,
            help="Determines the initial weights, the order of windows, and dropout.",
        )
        add(
            "--minutes",
            type=PositiveFloat | None,
            help="Choose every option that is not given for this text, this machine and this time, "
            "from the start of the program to its end.",
        )
        add("--debug", type=bool, default=False, help="Show tracebacks.")

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_class_arguments(Trainer, "trainer", instantiate=False)
        parser.set_defaults({f"trainer.{k}": v for k, v in TRAINER_DEFAULTS.items()})
        parser.add_class_arguments(CharGPT, "model", instantiate=False, skip=DERIVED_MODEL)
        parser.add_class_arguments(CharDataModule, "data", instantiate=False, skip=DERIVED_DATA)
        parser.set_defaults({"data.val_gap": True})

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_class_arguments(OptimOptions, "optim")
        parser.add_class_arguments(ScheduleOptions, "schedule")
        parser.add_class_arguments(GenerateOptions, "generate")
        add = parser.add_argument
        add(
            "--compile",
            type=Literal["auto"] | bool,
            default="auto",
            help="Compile the network; auto: if a compiler is found and the run is long enough.",
        )
        add(
            "--checkpoint_every_steps",
            type=PositiveInt | None,
            help="Save last.ckpt at this interval of steps (default: by time).",
        )
        add(
            "--checkpoint_every_seconds",
            type=PositiveFloat | None,
            help="Save last.ckpt at this interval (default: 30, or more if saving is slow).",
        )
        add(
            "--early_stopping_patience",
            type=PositiveInt | None,
            help="Stop after this number of consecutive validations without a better val/loss.",
        )
        add("--wandb", type=bool, default=False, help="Also log to Weights & Biases.")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.config = parser.parse_args(args)

    def _set_seed(self) -> None:
        """A private hook of LightningCLI: it would seed the process with --seed_everything, and
        print a line. The network is built later, from the seed, and each step seeds itself."""

    def instantiate_classes(self) -> None:
        """Does nothing: see `fit_build`."""


@dataclass(frozen=True)
class FitRequest:
    """The options, and the run that they select."""

    parser: LightningArgumentParser
    configs: list[Path]
    args: list[str]
    config: Namespace
    run: str

    @property
    def folder(self) -> Path:
        return LOGS / self.run

    @property
    def dev_run(self) -> bool:
        """Whether this is only a trial of a few batches, which writes no files."""
        return bool(self.config.trainer.fast_dev_run)

    def given(self) -> dict[str, Any]:
        """The values of the options that were given, by their dotted names."""
        texts, rest = take_texts(self.args, TEXT_OPTIONS)
        arguments = [*config_arguments(self.configs), *rest]
        given = self.parser.parse_args(arguments, defaults=False)
        return {name: value for name, value in given.items() if name != "config"} | texts

    def on_top_of(self, path: Path) -> "FitRequest":
        """The same options, given after those of a config."""
        return parse([path, *self.configs], self.args)

    def config_yaml(self) -> str:
        """The run's config.yaml, from which the same command resumes it."""
        config = plain_values(self.config.clone())
        values = yaml.safe_load(self.parser.dump(config, skip_validation=True))
        values = {k: v for k, v in values.items() if k not in NOT_SAVED}
        return dump_yaml(values)


def plain_values(value: Any) -> Any:
    """The same, with text in place of members of text enumerations: some defaults of Lightning's
    callbacks are such members, which YAML cannot write."""
    if isinstance(value, Namespace):
        for key, inner in vars(value).items():
            setattr(value, key, plain_values(inner))
    elif isinstance(value, list):
        return [plain_values(x) for x in value]
    return str.__str__(value) if isinstance(value, str) and isinstance(value, Enum) else value


def parse(configs: list[Path], args: list[str]) -> FitRequest:
    """Parse the options of `fit`. Without a config it is gpt_char, unless --minutes is given.

    Raises UserError for options that do not exist, contradict each other or are out of range.
    """
    timed = any(argument.split("=")[0] == "--minutes" for argument in args)
    if not configs and not timed:
        configs = [find_config("gpt_char")]
    read_configs(configs)  # its errors about broken YAML are clearer than the parser's
    texts, rest = take_texts(args, TEXT_OPTIONS)
    cli = FitCLI(configs, rest)
    for option, text in texts.items():
        cli.config[option] = text
    check_flags(cli.config.trainer)
    run = run_name(cli.config.run, configs) or timed_run_name(cli.config)
    return FitRequest(cli.parser, configs, args, cli.config, run)


def timed_run_name(config: Namespace) -> str:
    """The name of a run without a config: that of its text, and the minutes."""
    words = re.findall(r"[\w.+=@-]+", Path(config.data.corpus).stem)
    return check_run_name(f"{'-'.join(words) or 'text'}-{config.minutes:g}min")
