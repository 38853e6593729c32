"""What `fit` can be told: its options, by LightningCLI, and the run they are about."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse import Namespace
from jsonargparse.typing import PositiveFloat, PositiveInt
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from lightning_app.cli.configs import config_arguments, read_configs, run_name
from lightning_app.cli.parsing import FriendlyErrors, Seed
from lightning_app.cli.trainer_flags import check_flags
from lightning_app.data.datamodule import CharDataModule
from lightning_app.generation.sampling import GenerateOptions
from lightning_app.runs.folders import LOGS
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
    "use_distributed_sampler": False,  # batches know their process themselves
}
# Arguments of the classes that follow from other options.
DERIVED_DATA = {"seed", "alphabet", "eval_stride"}
DERIVED_MODEL = {
    *("alphabet", "block_size", "unit", "counts", "seed", "gpt"),
    *("optim", "schedule", "generation", "num_samples", "compile_network"),
}
OF_ONE_CALL = ("config", "run", "fresh", "debug", "ckpt_path")  # not part of a run's config.yaml


class FitParser(FriendlyErrors, LightningArgumentParser):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs | {"prog": "main.py fit", "description": DESCRIPTION})


class FitCLI(LightningCLI):
    """The parser of `fit` and what it parsed; nothing is built here."""

    def __init__(self, configs: list[Path], args: list[str]) -> None:
        super().__init__(
            CharGPT,
            CharDataModule,
            save_config_callback=None,  # written where the run's folder is known
            trainer_defaults=TRAINER_DEFAULTS,
            parser_class=FitParser,
            args=[*config_arguments(configs), *args],
            run=False,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        add = parser.add_argument
        add("--run", type=str | None, help="The run's name; its folder is logs/NAME.")
        add("--fresh", type=bool, default=False, help="Move the run's folder aside, start anew.")
        add("--ckpt_path", type=str | None, help="Resume from this file, in this run.")
        add("--init_from", type=str | None, help="Start a new run from this file's weights.")
        add(
            "--seed_everything",
            type=Seed,
            default=1337,
            help="Decides everything random: initial weights, order of windows, dropout.",
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
            help="Compile the network: auto where a compiler is found and the run is long enough.",
        )
        add(
            "--checkpoint_every_steps",
            type=PositiveInt | None,
            help="Steps between two writings of last.ckpt (default: by time).",
        )
        add(
            "--checkpoint_every_seconds",
            type=PositiveFloat | None,
            help="Seconds between two writings of last.ckpt (default: 30, or more where saving is "
            "slow).",
        )
        add(
            "--early_stopping_patience",
            type=PositiveInt | None,
            help="Stop after so many validations in a row without a better val/loss.",
        )
        add("--wandb", type=bool, default=False, help="Log to Weights & Biases as well.")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.config = parser.parse_args(args)

    def _set_seed(self) -> None:
        """The network is built later, from the seed."""

    def instantiate_classes(self) -> None:
        """See `fit_build`."""


@dataclass(frozen=True)
class FitRequest:
    """What was asked for: the options, and the run they are about."""

    parser: LightningArgumentParser
    config: Namespace
    run: str

    @property
    def folder(self) -> Path:
        return LOGS / self.run

    @property
    def dev_run(self) -> bool:
        """Whether to try everything once, without a trace."""
        return bool(self.config.trainer.fast_dev_run)

    def config_yaml(self) -> str:
        """The run's config.yaml, from which the same command resumes it."""
        values = yaml.safe_load(self.parser.dump(self.config, skip_validation=True))
        values = {k: v for k, v in values.items() if k not in OF_ONE_CALL}
        return yaml.safe_dump(values, sort_keys=False)


def parse(configs: list[Path], args: list[str]) -> FitRequest:
    """Raises UserError for what cannot be meant."""
    read_configs(configs)  # broken YAML is best explained before the parser sees it
    cli = FitCLI(configs, args)
    check_flags(cli.config.trainer)
    run = run_name(cli.config.run, configs)
    assert run is not None  # there is always a config
    return FitRequest(cli.parser, cli.config, run)
