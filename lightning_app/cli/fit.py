"""fit: train a run, resume it, extend it, or fine-tune another one's weights."""

import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import yaml
from jsonargparse.typing import PositiveFloat, PositiveInt
from lightning.fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from lightning_app.cli.configs import find_config, read_configs, run_name, split_configs
from lightning_app.cli.explain import explain
from lightning_app.cli.parsing import FriendlyErrors, Seed
from lightning_app.cli.screens import after, before
from lightning_app.cli.trainer_flags import check_flags, make_trainer
from lightning_app.data.datamodule import CharDataModule
from lightning_app.data.tokenizer import Tokenizer
from lightning_app.errors import UserError
from lightning_app.files import atomic_write
from lightning_app.generation.sampling import GenerateOptions
from lightning_app.hardware import (
    can_compile,
    choose_accelerator,
    choose_precision,
    seconds_per_flop,
)
from lightning_app.runs.checkpoint import CHECKPOINT_FORMAT, SECTION, load, read_checkpoint
from lightning_app.runs.finetuning import inherit, take_network
from lightning_app.runs.folders import LOGS, find_checkpoint, lock_run, resume_point, set_aside
from lightning_app.runs.resume import check_state, compare_facts, is_finished, refusal
from lightning_app.training.callbacks.progress_bar import TrainingProgressBar
from lightning_app.training.callbacks.run_checkpoints import RunCheckpoints
from lightning_app.training.callbacks.stopping import StopWithoutImprovement, TimeLimit
from lightning_app.training.callbacks.text_samples import TextSamples
from lightning_app.training.callbacks.training_log import TrainingLog
from lightning_app.training.callbacks.weight_average import WeightAverage
from lightning_app.training.checkpoint_io import AtomicCheckpointIO
from lightning_app.training.module import CharGPT
from lightning_app.training.optimizer import OptimOptions
from lightning_app.training.schedules import ScheduleOptions, window_size
from lightning_app.training.signals import Interrupted, Signals

TRAINER_DEFAULTS = {
    "max_steps": 2000,
    "val_check_interval": 500,
    "check_val_every_n_epoch": None,  # steps, not epochs
    "log_every_n_steps": 10,
    "num_sanity_val_steps": 0,
    "enable_model_summary": False,
    "use_distributed_sampler": False,  # batches know their process themselves
}
OF_ONE_CALL = ("config", "run", "fresh", "debug", "ckpt_path")  # not part of a run's config.yaml
DAMAGE = (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError)
COMPILE_SECONDS = 15  # with the cache cold 20 to 60, warm 3
EAGER = 2  # how much longer a step takes that is not compiled


class Parser(FriendlyErrors, LightningArgumentParser):
    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs | {"prog": "main.py fit", "description": __doc__})


class FitCLI(LightningCLI):
    """The configuration, and all it describes: data, network, run folder, Trainer.

    LightningCLI parses and instantiates; the hooks below settle which run is meant and whether it
    may go on. `finished` is why there is nothing to train, or None.
    """

    def __init__(self, configs: list[Path], args: list[str]) -> None:
        self.began = time.perf_counter()
        self.configs = configs
        self.is_main = rank_zero_only.rank == 0  # of torchrun's, SLURM's or Lightning's processes
        super().__init__(
            CharGPT,
            CharDataModule,
            save_config_callback=None,  # `save_config` knows the run's folder
            trainer_defaults=TRAINER_DEFAULTS,
            parser_class=Parser,
            args=[*(f"--config={path}" for path in configs if read_configs([path])), *args],
            run=False,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    def say(self, *lines: str) -> None:
        if self.is_main:
            print(*lines, sep="\n", file=sys.stderr, flush=True)

    # What can be said on the command line

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        add = parser.add_argument
        add("--run", type=str | None, help="The run's name; its folder is logs/NAME.")
        add("--fresh", type=bool, default=False, help="Move the run's folder aside, start anew.")
        add("--ckpt_path", type=str | None, help="Resume from this file, in this run.")
        add("--init_from", type=str | None, help="Start a new run from this file's weights.")
        add("--seed_everything", type=Seed, default=1337, help="Decides all randomness.")
        add("--debug", type=bool, default=False, help="Show tracebacks.")

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
            help="Write last.ckpt every so many steps (default: by time).",
        )
        add(
            "--checkpoint_every_seconds",
            type=PositiveFloat | None,
            help="Write last.ckpt this often (default: 30, or more where saving is slow).",
        )
        add(
            "--early_stopping_patience",
            type=PositiveInt | None,
            help="Stop after so many validations in a row without a better val/loss.",
        )
        add("--wandb", type=bool, default=False, help="Log to Weights & Biases as well.")
        parser.link_arguments("seed_everything", "data.seed")
        parser.link_arguments("data.block_size", "model.block_size")
        parser.link_arguments("data.alphabet", "model.alphabet", apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: list[str]) -> None:
        self.config = parser.parse_args(args)

    def _set_seed(self) -> None:
        torch.manual_seed(self.config.seed_everything)  # initial weights; steps seed themselves

    # Which run, and whether it may go on

    def before_instantiate_classes(self) -> None:
        check_flags(self.config.trainer)
        self.run = run_name(self.config.run, self.configs)
        self.folder = LOGS / self.run
        self.dev_run = bool(self.config.trainer.fast_dev_run)  # leaves no trace
        self.lock = None
        self.point = None  # path, contents and a note of the checkpoint to go on from
        if self.config.ckpt_path and (self.config.fresh or self.config.init_from):
            other = "--fresh" if self.config.fresh else "--init_from"
            raise UserError(f"{other} and --ckpt_path contradict each other; leave one out")
        if not self.dev_run and self.is_main:
            self.lock = lock_run(self.run)
        self.find_point()
        self.source = None
        if self.config.init_from and self.point:
            try:
                network = self.point[1]["hyper_parameters"]
                self.say(*take_network(self.config.model, network))
            except DAMAGE as error:
                raise damaged(self.point[0], error) from None
        elif self.config.init_from:
            self.source = load(find_checkpoint(self.config.init_from, None))
            network = self.source.hyper_parameters
            self.say(*take_network(self.config.model, network))

    def find_point(self) -> None:
        """Set `point`, the checkpoint to go on from, and `origin`, the file that --ckpt_path or
        --init_from named when the run was started ("" for none, None where that is not known).

        Raises UserError where another file is given to a run that has checkpoints of its own.
        """
        given, path, own = self.config.ckpt_path or self.config.init_from or "", None, False
        if self.config.ckpt_path:
            path = find_checkpoint(self.config.ckpt_path, self.run)
            own = path.resolve().is_relative_to(self.folder.resolve())
        if own:
            self.point = (path, read_checkpoint(path), None)
        elif not self.dev_run and not self.config.fresh:
            self.point = resume_point(self.run)
        if self.point is None:  # a new run
            self.origin = given
            if path:
                self.point = (path, read_checkpoint(path), None)
            return
        self.origin = self.point[1][SECTION]["origin"]
        if given and not own and self.origin not in (given, None):
            raise UserError(
                f"run {self.run} has checkpoints of its own and was not started from {given}; "
                "start another run with --run OTHER, or move this one aside with --fresh true"
            )

    # Everything described, built

    def instantiate_classes(self) -> None:
        self.config_init = self.parser.instantiate_classes(self.config)
        self.datamodule: CharDataModule = self.config_init.data
        self.datamodule.check_trainable()
        self.model: CharGPT = self.config_init.model
        self.model.tokenizer = Tokenizer(self.datamodule.alphabet, self.datamodule.unit)
        self.model.optim = self.config_init.optim
        self.model.schedule = self.config_init.schedule
        self.model.generate = self.config_init.generate
        self.config_init.generate.resolve()  # contradictions are found before training
        window_size(0, 1, self.datamodule.block_size, self.model.schedule)
        if self.source:
            self.say(*inherit(self.model, self.source))
        self.trainer = self.instantiate_trainer()
        self.finished = None
        if self.point:
            self.finished = self.go_on(*self.point)

    def instantiate_trainer(self) -> Trainer:
        config = dict(self.config_init.trainer)
        self.accelerator = choose_accelerator(str(config["accelerator"]))
        if config["precision"] is None:
            config["precision"] = choose_precision(self.accelerator)
        self.model.compile_network, self.seconds = self.plan(str(config["precision"]))
        if config["deterministic"] is None and self.accelerator == "cpu":
            config["deterministic"] = True  # bit-exact resume; on a CPU it costs nothing
        config["logger"] = [] if self.dev_run else self.loggers(config["logger"])
        plugins = config["plugins"] or []
        plugins = plugins if isinstance(plugins, list) else [plugins]
        if SLURMEnvironment.detect() and not TorchElasticEnvironment.detect():
            plugins = [*plugins, SLURMEnvironment(auto_requeue=False)]  # it would save its own
        config["plugins"] = [*plugins, AtomicCheckpointIO()]
        self.signals = Signals()
        log = TrainingLog()
        self.checkpoints = RunCheckpoints(
            self.folder / "checkpoints",
            {},  # filled in below: some facts only the Trainer knows
            self.signals,
            self.config.checkpoint_every_steps,
            self.config.checkpoint_every_seconds,
        )
        given = config["callbacks"] or []
        given = given if isinstance(given, list) else [given]
        callbacks = [self.checkpoints, *given, log, TextSamples()]  # the Trainer calls it last
        if config["enable_progress_bar"] is not False:
            callbacks.append(TrainingProgressBar(log))
        if decay := self.model.optim.average_decay:
            callbacks.append(WeightAverage(decay))
        if patience := self.config.early_stopping_patience:
            callbacks.append(StopWithoutImprovement("val/loss", patience=patience))
        if config["max_time"] is not None:
            callbacks.append(TimeLimit(config["max_time"]))
        trainer = make_trainer(config | {"callbacks": callbacks})
        self.facts = self.checkpoints.facts = self.describe(trainer)
        return trainer

    def plan(self, precision: str) -> tuple[bool, float]:
        """Whether to compile, and about how many seconds the whole run takes."""
        wanted = self.config.compile
        if wanted is True and not can_compile(self.accelerator):
            raise UserError(
                "--compile true finds no C++ compiler with Python's headers (Debian: apt install "
                "g++ python3-dev); install them, or leave --compile at auto"
            )
        c, gpt = self.config, self.model.gpt.config
        characters = c.trainer.max_steps * c.trainer.accumulate_grad_batches
        characters *= c.data.batch_size * c.data.block_size
        per_flop = seconds_per_flop(self.accelerator, precision, gpt.n_embd)
        compiled = characters * gpt.flops_per_character() * per_flop
        compiles = wanted is True or (
            wanted == "auto"
            and not self.dev_run
            and can_compile(self.accelerator)
            and EAGER * compiled > 10 * COMPILE_SECONDS
        )
        return compiles, compiled if compiles else EAGER * compiled

    def loggers(self, given: Logger | list[Logger] | bool | None) -> list[Logger]:
        """TensorBoard in the run's folder, unless the Trainer's flag says otherwise."""
        if given is False:
            chosen = []
        elif given in (None, True):
            step = self.point[1][SECTION]["step"] + 1 if self.point else 0
            # purge_step: points after the checkpoint are trained, and logged, again
            chosen = [
                TensorBoardLogger(
                    LOGS, self.run, version="", default_hp_metric=False, purge_step=step
                )
            ]
        else:
            chosen = list(given) if isinstance(given, (list, tuple)) else [given]
        if self.config.wandb:
            try:
                from lightning.pytorch.loggers import WandbLogger

                chosen.append(WandbLogger(name=self.run, save_dir=self.folder, project="char-gpt"))
            except ModuleNotFoundError:
                raise UserError("--wandb true needs wandb: pip install -e '.[wandb]'") from None
        return chosen

    def describe(self, trainer: Trainer) -> dict:
        """The facts of this run as checkpoints keep them; see `resume`."""
        c, data, model = self.config, self.datamodule, self.model
        counts = data.counts()
        model.unigram = np.array(counts) / sum(counts)
        optim = asdict(model.optim)
        network = {
            k: v for k, v in asdict(model.gpt.config).items() if k not in ("dropout", "block_size")
        }
        return {
            "format": CHECKPOINT_FORMAT,
            "data": data.describe(),
            "counts": counts,
            "network": network,
            "corpus": data.name,
            "fingerprint": data.text.fingerprint,
            "alphabet": data.alphabet,
            "splits": data.splits,
            "hold_out": data.hold_out,
            "unit": data.unit,
            "seed": c.seed_everything,
            "block_size": data.block_size,
            "global_batch": data.batch_size * trainer.accumulate_grad_batches * trainer.world_size,
            "optimizer": optim.pop("name"),
            "schedule": asdict(model.schedule),
            "max_steps": trainer.max_steps,
            "rename": data.rename,
            "dropout": model.gpt.config.dropout,
            "optim": optim,
            "intervals": {
                "val_check_interval": c.trainer.val_check_interval,
                "log_every_n_steps": trainer.log_every_n_steps,
                "checkpoint_every_steps": c.checkpoint_every_steps,
                "checkpoint_every_seconds": c.checkpoint_every_seconds,
            },
            "logger": ", ".join(type(x).__name__ for x in trainer.loggers) or "none",
            "patience": c.early_stopping_patience,
            "generate": asdict(model.generate),
            "origin": self.origin,
            "device": self.accelerator,
            "precision": str(trainer.precision),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "compile": model.compile_network,
            "processes": trainer.world_size,
            "accumulate": trainer.accumulate_grad_batches,
        }

    def go_on(self, path: Path, state: dict, note: str | None) -> str | None:
        """Say what differs from the run so far; the reason when nothing is left to train."""
        old = state[SECTION]
        try:
            differences = compare_facts(old, self.facts)
            finished = is_finished(old, self.facts)
            if differences.refused:
                raise refusal(self.run, differences.refused)
            check_state(state, self.model.gpt, self.model.optim)
        except DAMAGE as error:
            raise damaged(path, error) from None
        if note:
            self.say(note)
        if finished:
            return finished
        self.say(f"resuming {self.run} at step {old['step']:,} of {self.trainer.max_steps:,}")
        self.say(*(f"  changed: {line}" for line in differences.applied))
        if differences.inexact:
            self.say(f"  not bit-exact: {', '.join(differences.inexact)}")
        return None

    def save_config(self) -> None:
        """The run's config.yaml, from which the same command resumes it."""
        values = yaml.safe_load(self.parser.dump(self.config, skip_validation=True))
        values = {k: v for k, v in values.items() if k not in OF_ONE_CALL}
        with atomic_write(self.folder / "config.yaml") as file:
            file.write(yaml.safe_dump(values, sort_keys=False).encode())
        for logger in self.trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                text = "".join(f"    {x}\n" for x in yaml.safe_dump(values).split("\n"))
                logger.experiment.add_text("config", text, 0)


def damaged(path: Path, error: Exception) -> UserError:
    first = str(error).strip().split("\n")[0][:120] or type(error).__name__
    return UserError(f"{path} is damaged: {first}; --fresh true starts anew")


def main(argv: list[str]) -> int:
    configs, rest = split_configs(argv)
    configs = configs or [find_config("gpt_char")]
    read_configs(configs)  # broken YAML is best explained before the parser sees it
    cli = FitCLI(configs, rest)
    if cli.finished:
        info = cli.point[1][SECTION]
        print(f"run {cli.run} is {cli.finished}")
        if info["best"]:
            print(f"best val/loss {info['best']['loss']:.4f} at step {info['best']['step']:,}")
        return 0
    cli.say(*before(cli))
    if not cli.dev_run and cli.is_main:
        if cli.config.fresh and (aside := set_aside(cli.run)):
            cli.say(f"           what was there is now {aside}")
        cli.save_config()
    path = cli.point[0] if cli.point else None
    try:
        with cli.signals:
            cli.trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=path, weights_only=True)
    except DAMAGE as error:
        if path is None or cli.checkpoints.started or explain(error):
            raise
        raise damaged(path, error) from error  # Lightning could not restore its part
    except Interrupted:
        saved = cli.folder / "checkpoints" / "last.ckpt"
        step = cli.trainer.global_step
        cli.say(f"saved {saved} at step {step:,}; the same command goes on from there")
        raise
    if cli.is_main and not cli.dev_run:
        print("\n".join(after(cli)))
    return 0
