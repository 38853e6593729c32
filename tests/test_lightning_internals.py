"""Laws of lightning_internals: each fails when an upgrade of Lightning moves what is used there."""

import logging
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelSummary
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.profilers import SimpleProfiler
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, model_parallel
from torch.utils.data import DataLoader

from lightning_app.lightning_internals import (
    REPORT_LOGGERS,
    batches_before_epoch,
    batches_done,
    has_trainer,
    just_stepped,
    limit_waiting,
    print_reports,
    processed_batches,
    set_callback_metrics,
    set_csv_writer,
    set_default_version,
    set_processed_batches,
    spread_data_over_processes,
    validates_now,
)

# Lightning's advice, such as more workers for data.
pytestmark = pytest.mark.filterwarnings(
    "ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"
)


class Tiny(LightningModule):
    """One weight; each epoch has 5 batches. It notes what lightning_internals says meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.done: list[int] = []  # batches, at the start of each
        self.before_epoch: list[int] = []  # batches, when an epoch's data is asked for

    def training_step(self, batch: torch.Tensor) -> torch.Tensor:
        loss = (self.weight * batch).sum()
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: torch.Tensor) -> None:
        pass

    def on_train_batch_start(self, batch: torch.Tensor, batch_idx: int) -> None:
        self.done.append(batches_done(self.trainer))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self) -> DataLoader:
        self.before_epoch.append(batches_before_epoch(self.trainer))
        return DataLoader([torch.ones(1)] * 5)

    def val_dataloader(self) -> DataLoader:
        return DataLoader([torch.ones(1)])


def fit(module: Tiny, *callbacks: Callback, ckpt_path: Path | None = None, **flags) -> Trainer:
    flags = {"max_steps": 12, "limit_val_batches": 0} | flags
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        reload_dataloaders_every_n_epochs=1,
        log_every_n_steps=1,
        callbacks=list(callbacks),
        **flags,
    )
    trainer.fit(module, ckpt_path=ckpt_path, weights_only=True)
    return trainer


def test_a_module_has_a_trainer_from_the_fit_on():
    module = Tiny()
    assert not has_trainer(module)
    fit(module, max_steps=1)
    assert has_trainer(module)


def test_metrics_for_callbacks_stay_until_the_end_next_to_those_that_are_logged():
    seen = []

    class Watch(Callback):
        def on_train_start(self, trainer, module):
            set_callback_metrics(trainer, {"val/loss": torch.tensor(2.0)})

        def on_train_batch_end(self, trainer, module, *args):
            seen.append(float(trainer.callback_metrics["val/loss"]))

    trainer = fit(Tiny(), Watch(), max_steps=7)
    assert seen == [2.0] * 7
    assert set(trainer.callback_metrics) == {"val/loss", "train/loss"}


@pytest.mark.parametrize("accumulate", [1, 2, 5])
def test_a_step_was_just_taken_when_the_number_of_steps_has_grown(accumulate):
    class Watch(Callback):
        def __init__(self):
            self.steps, self.said, self.grown = 0, [], []

        def on_train_batch_end(self, trainer, module, *args):
            self.said.append(just_stepped(trainer))
            self.grown.append(trainer.global_step > self.steps)
            self.steps = trainer.global_step

    watch = Watch()
    fit(Tiny(), watch, max_steps=4, accumulate_grad_batches=accumulate)
    assert watch.said == watch.grown
    assert (False in watch.said) == (accumulate > 1)
    assert sum(watch.said) == 4


def test_validation_follows_the_batches_of_which_it_is_said():
    class Watch(Callback):
        def __init__(self):
            self.said, self.validated = [], []

        def on_train_batch_end(self, trainer, module, *args):
            if validates_now(trainer):
                self.said.append(trainer.global_step)

        def on_validation_start(self, trainer, module):
            self.validated.append(trainer.global_step)

    watch = Watch()
    interval = {"val_check_interval": 3, "check_val_every_n_epoch": None}
    fit(Tiny(), watch, max_steps=10, limit_val_batches=1, **interval)
    assert watch.said == watch.validated == [3, 6, 9]


def test_batches_are_counted_over_epochs_and_before_each():
    module = Tiny()
    fit(module)
    assert module.done == list(range(12))
    assert module.before_epoch == [0, 5, 10]


def saved_at(step: int, path: Path) -> dict:
    """A checkpoint of Tiny after so many steps."""

    class Save(Callback):
        def on_train_batch_end(self, trainer, module, *args):
            if trainer.global_step == step:
                trainer.save_checkpoint(path)

    fit(Tiny(), Save())
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize(("step", "before_epoch"), [(3, [0, 5, 10]), (7, [5, 10])])
def test_a_resumed_run_knows_its_batches_before_the_first(tmp_path, step, before_epoch):
    state = saved_at(step, tmp_path / "a.ckpt")
    assert processed_batches(state) == step
    module = Tiny()
    fit(module, ckpt_path=tmp_path / "a.ckpt")
    assert module.done == list(range(step, 12))
    assert module.before_epoch == before_epoch


def test_a_resumed_run_counts_from_the_number_that_was_set(tmp_path):
    state = saved_at(3, tmp_path / "a.ckpt")
    set_processed_batches(state, 6)
    assert processed_batches(state) == 6
    torch.save(state, tmp_path / "b.ckpt")
    module = Tiny()
    fit(module, ckpt_path=tmp_path / "b.ckpt", max_steps=5)
    assert module.done[0] == 6


def test_a_checkpoint_without_the_counters_raises():
    with pytest.raises(KeyError):
        processed_batches({"loops": {}})


def test_a_csv_table_has_the_default_version_and_the_writer_that_it_is_given(tmp_path):
    logger = CSVLogger(tmp_path)
    set_default_version(logger, "mine")
    assert Path(logger.log_dir) == tmp_path / "lightning_logs/mine"
    given = CSVLogger(tmp_path, version=3)
    set_default_version(given, "mine")
    assert given.version == 3
    writer = ExperimentWriter(str(tmp_path))
    set_csv_writer(logger, writer)
    assert logger.experiment is writer


def test_every_process_of_a_sharded_run_reads_its_own_data(monkeypatch):
    """By default those of one machine would read the same data."""
    meshes = []
    monkeypatch.setattr(model_parallel, "_setup_device_mesh", lambda *sizes: meshes.append(sizes))
    monkeypatch.setattr(ModelParallelStrategy, "_setup_distributed", lambda self: None)
    monkeypatch.setattr(ModelParallelStrategy, "world_size", 6)
    monkeypatch.setattr(ModelParallelStrategy, "root_device", torch.device("cpu"))
    for spread in (False, True):
        strategy = ModelParallelStrategy(tensor_parallel_size=1)
        strategy.parallel_devices, strategy.num_nodes = [torch.device("cpu")] * 3, 2
        strategy.accelerator = strategy._lightning_module = torch.nn.Module()
        strategy.accelerator.setup_device = lambda device: None
        if spread:
            spread_data_over_processes(strategy)
        strategy.setup_environment()
    assert [sizes[0] for sizes in meshes] == [2, 6]


def test_lightning_cli_seeds_by_the_method_that_fit_overrides():
    assert callable(LightningCLI._set_seed)


def test_the_limit_of_waiting_reaches_the_process_group(monkeypatch):
    given = []
    monkeypatch.setattr(
        "lightning.pytorch.strategies.ddp._init_dist_connection", lambda *a, **kw: given.append(kw)
    )
    trainer = Trainer(
        accelerator="cpu", devices=1, num_nodes=2, strategy=DDPStrategy(), logger=False
    )
    limit_waiting(trainer, timedelta(seconds=7))
    trainer.strategy.setup_distributed()
    assert given[0]["timeout"] == timedelta(seconds=7)


def test_reports_are_printed_although_logging_is_switched_off(capsys, monkeypatch):
    for name in REPORT_LOGGERS:
        monkeypatch.setattr(logging.getLogger(name), "info", print)  # undone afterwards
    print_reports()
    logging.disable(logging.WARNING)
    try:
        profiler = SimpleProfiler()
        profiler.setup("fit")
        profiler.describe()
        ModelSummary.summarize([("Name", ["gpt"])], 1, 1, 0.0, {"train": 0, "eval": 0}, 0)
    finally:
        logging.disable(logging.NOTSET)
    out, err = capsys.readouterr()
    assert "Profiler Report" in err
    assert "Trainable params" in err
    assert not out
