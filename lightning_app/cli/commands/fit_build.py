"""Builds what `fit` needs from its options: data, network, callbacks, Trainer."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from jsonargparse import Namespace
from lightning.fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, EarlyStopping, ProgressBar
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.loggers.logger import DummyLogger

from lightning_app import hardware
from lightning_app.cli.commands.fit_options import FitRequest
from lightning_app.cli.parsing import instantiate
from lightning_app.cli.trainer_flags import as_list, check_callbacks, make_trainer
from lightning_app.data.datamodule import CharDataModule
from lightning_app.data.windows import mean_window_size
from lightning_app.errors import UserError
from lightning_app.lightning_internals import set_default_version
from lightning_app.model.gpt import GPTConfig
from lightning_app.runs.checkpoint import TrainedModel
from lightning_app.runs.finetuning import inherit
from lightning_app.runs.folders import LOGS
from lightning_app.runs.resume import Start
from lightning_app.training.callbacks.progress_bar import TrainingProgressBar
from lightning_app.training.callbacks.run_checkpoints import RunCheckpoints
from lightning_app.training.callbacks.stopping import StopWithoutImprovement, TimeLimit
from lightning_app.training.callbacks.text_samples import TextSamples
from lightning_app.training.checkpoint_io import AtomicCheckpointIO
from lightning_app.training.module import CharGPT
from lightning_app.training.signals import Signals

COMPILE_SECONDS = 15  # 20 to 60 the first time, then 3
TRIAL_CHARACTERS = 1_000_000  # whose n-grams a trial of a few batches counts


@dataclass(frozen=True)
class Plan:
    """Whether the network is compiled, and how long training is expected to take."""

    compiled: bool
    seconds: float  # of all steps
    processor_share: float  # see `hardware.MatmulSpeed`


@dataclass(frozen=True)
class Job:
    """Everything that is needed to train a run."""

    data: CharDataModule
    model: CharGPT
    trainer: Trainer
    checkpoints: RunCheckpoints
    signals: Signals
    facts: dict[str, Any]  # about the run, stored in its checkpoints; see `runs.resume`
    plan: Plan
    lines: list[str]  # messages about weights taken from another run


def build(
    request: FitRequest,
    start: Start,
    source: TrainedModel | None,
    more_callbacks: Sequence[Callback] = (),
) -> Job:
    """Build the job; a new run starts with the weights of `source`, if given.

    Raises UserError for an unusable text, network, device or Trainer option.
    """
    config = instantiate(request.parser, request.config)
    tables = bool(config.model.ngram_rows)
    data = CharDataModule(**config.data, seed=config.seed_everything, with_begins=tables)
    data.check_train_split()
    data.eval_batches("val")  # raises if the validation split is empty
    config.generate.resolve()  # finds contradictions before training
    accelerator = hardware.choose_accelerator(str(config.trainer.accelerator))
    precision = config.trainer.precision or hardware.choose_precision(accelerator)
    network = GPTConfig(vocab_size=len(data.alphabet), block_size=data.block_size, **config.model)
    planned = plan(config, network, accelerator, str(precision), request.dev_run)
    torch.manual_seed(config.seed_everything)  # initial weights; steps seed themselves
    model = CharGPT(
        alphabet=data.alphabet,
        block_size=data.block_size,
        **config.model,
        unit=data.unit,
        counts=data.counts(),
        optim=config.optim,
        schedule=config.schedule,
        generation=config.generate,
        seed=config.seed_everything,
        compile_network=planned.compiled,
    )
    if model.gpt.ngrams is not None:
        text = data.ids("train")
        model.gpt.ngrams.count(text[:TRIAL_CHARACTERS] if request.dev_run else text)
    lines = inherit(model.gpt, model.tokenizer, source) if source else []
    signals = Signals()
    describe = describer(config, data, model, accelerator, start.origin)
    checkpoints = RunCheckpoints(
        request.folder / "checkpoints",
        describe,
        signals,
        config.checkpoint_every_steps,
        config.checkpoint_every_seconds,
    )
    flags = dict(config.trainer)
    flags["precision"] = precision
    if flags["deterministic"] is None and accelerator == "cpu":
        flags["deterministic"] = True  # bit-exact resume; on a CPU it costs nothing
    if request.dev_run:
        flags["logger"] = [DummyLogger()]  # some callbacks need one
    else:
        flags["logger"] = loggers(request, flags["logger"], start.step)
    flags["plugins"] = [*as_list(flags["plugins"]), *plugins()]
    flags["callbacks"] = [checkpoints, *callbacks(config, data, model), *more_callbacks]
    trainer = make_trainer(flags)
    return Job(data, model, trainer, checkpoints, signals, describe(trainer), planned, lines)


def plan(
    config: Namespace, network: GPTConfig, accelerator: str, precision: str, dev_run: bool
) -> Plan:
    """Whether to compile, and how long that will take.

    With --compile auto, the network is compiled if that saves ten times the time of compiling on
    an otherwise idle machine. Raises UserError for --compile true without a compiler.
    """
    can_compile = hardware.can_compile(accelerator)
    if config.compile is True and not can_compile:
        raise UserError(
            "--compile true finds no C++ compiler with Python's headers (Debian: apt install "
            "g++ python3-dev); install them, or leave --compile at auto"
        )
    characters = config.trainer.max_steps * config.trainer.accumulate_grad_batches
    characters *= config.data.batch_size * config.data.block_size
    speed = hardware.matmul_speed(accelerator, precision)
    per_flop = hardware.seconds_per_flop(accelerator, speed, network.n_embd)
    window = mean_window_size(config.data.block_size, config.data.window_schedule)
    seconds = characters * network.flops_per_character(window) * per_flop  # compiled
    worthwhile = hardware.UNCOMPILED_TIME * seconds * speed.processor_share > 10 * COMPILE_SECONDS
    compiled = config.compile is True or (
        config.compile == "auto" and not dev_run and can_compile and worthwhile
    )
    seconds *= 1 if compiled else hardware.UNCOMPILED_TIME
    return Plan(compiled, seconds, speed.processor_share)


def loggers(request: FitRequest, given: Any, step: int) -> list[Logger]:
    """The loggers of --trainer.logger (default: TensorBoard in the run's folder), and wandb's.

    Raises UserError if wandb is wanted and not installed.
    """
    chosen: list[Logger] = [] if given in (None, True, False) else as_list(given)
    for logger in chosen:
        if isinstance(logger, CSVLogger):
            set_default_version(logger, request.run)
    if given in (None, True):
        # steps after the checkpoint are trained again, and logged again
        purge = step + 1 if step else 0
        board = TensorBoardLogger(
            LOGS, request.run, version="", default_hp_metric=False, purge_step=purge
        )
        chosen = [board]
    if request.config.wandb:
        try:
            from lightning.pytorch.loggers import WandbLogger

            chosen.append(
                WandbLogger(name=request.run, save_dir=request.folder, project="char-gpt")
            )
        except ModuleNotFoundError:
            raise UserError("--wandb true needs wandb: pip install -e '.[wandb]'") from None
    return chosen


def plugins() -> list[Any]:
    """AtomicCheckpointIO, and under SLURM its environment without automatic requeueing, which would
    save other checkpoints than ours."""
    slurm = SLURMEnvironment.detect() and not TorchElasticEnvironment.detect()
    return [*([SLURMEnvironment(auto_requeue=False)] if slurm else []), AtomicCheckpointIO()]


def callbacks(config: Namespace, data: CharDataModule, model: CharGPT) -> list[Callback]:
    """The user's callbacks, then ours; a progress bar of the user's takes the place of ours."""
    given: list[Callback] = as_list(config.trainer.callbacks)
    check_callbacks(given)
    chosen = [*given, TextSamples(first_line(data, model))]
    own_bar = any(isinstance(callback, ProgressBar) for callback in given)
    if config.trainer.enable_progress_bar is not False and not own_bar:
        chosen.append(TrainingProgressBar())
    if patience := config.early_stopping_patience:
        chosen.append(StopWithoutImprovement("val/loss", patience=patience))
    if config.trainer.max_time is not None:
        chosen.append(TimeLimit(config.trainer.max_time))
    return chosen


def first_line(data: CharDataModule, model: CharGPT) -> str:
    """The prompt of the samples: the first line of the validation text, at most 40 characters."""
    tokenizer = model.tokenizer
    head = data.ids("val")[: min(40, data.block_size)]
    line = tokenizer.drop_invalid(tokenizer.decode(head)).split("\n")[0]
    return line + "\n" if "\n" in tokenizer.ids else line


def describer(
    config: Namespace, data: CharDataModule, model: CharGPT, accelerator: str, origin: str | None
) -> Callable[[Trainer], dict[str, Any]]:
    """A function that returns, for a Trainer, the facts about this run for its checkpoints."""
    optim = asdict(model.optim)
    optimizer = optim.pop("name")
    network = {
        f.name: getattr(model.gpt.config, f.name)
        for f in fields(GPTConfig)
        if f.name not in ("dropout", "block_size")
    }
    network["ngram_rows"] = list(network["ngram_rows"]) or None  # as older checkpoints have it

    def describe(trainer: Trainer) -> dict[str, Any]:
        accumulate = trainer.accumulate_grad_batches
        stops = [c for c in trainer.early_stopping_callbacks if isinstance(c, EarlyStopping)]
        first = min(stops, key=lambda stop: stop.patience, default=None)
        return {
            "network": network,
            "corpus": data.split_text.corpus.name,
            "fingerprint": data.text.fingerprint,
            "alphabet": data.alphabet,
            "splits": data.source.splits,
            "hold_out": data.source.hold_out,
            "unit": data.unit,
            "seed": config.seed_everything,
            "block_size": data.block_size,
            "global_batch": data.batch_size * accumulate * trainer.world_size,
            "optimizer": optimizer,
            "schedule": asdict(model.schedule),
            "window_schedule": data.window_schedule,
            "max_steps": trainer.max_steps,
            "replace_names": data.replace_names,
            "dropout": model.gpt.config.dropout,
            "optim": optim,
            "intervals": {
                "val_check_interval": config.trainer.val_check_interval,
                "log_every_n_steps": config.trainer.log_every_n_steps,
                "checkpoint_every_steps": config.checkpoint_every_steps,
                "checkpoint_every_seconds": config.checkpoint_every_seconds,
            },
            "logger": ", ".join(type(x).__name__ for x in trainer.loggers) or "none",
            "patience": first and first.patience,
            "patience_of": type(first).__name__ if first else None,
            "origin": origin,
            "device": accelerator,
            "precision": str(trainer.precision),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "compile": model.compile_network,
            "processes": trainer.world_size,
            "accumulate": accumulate,
        }

    return describe
