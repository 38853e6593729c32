"""fit end to end: resume, refusals, the Trainer's flags, what the loggers show."""

import gc

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.helpers import checkpoint, same, scalars


def test_a_resumed_run_equals_an_unbroken_one(folder, main):
    base = ("fit", "--config", "tiny.yaml", "--checkpoint_every_steps", 5, "--model.dropout", 0.1)
    base += ("--optim.average_decay", 0.9, "--optim.final_weight_decay", 0.5)
    base += ("--model.ngram_rows", [20, 90])
    assert main(*base, "--run", "whole").code == 0
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, step=15)
        with pytest.raises(Killed):
            main(*base, "--run", "broken")
    gc.collect()  # a dead process holds no lock
    assert checkpoint(folder, "broken")["lightning_app"]["step"] == 15
    assert main(*base, "--run", "broken").code == 0
    for name in ("best", "last"):
        a, b = (checkpoint(folder, run, name) for run in ("whole", "broken"))
        assert same(a["state_dict"], b["state_dict"])
        assert same(a["current_model_state"], b["current_model_state"])
        assert same(a["optimizer_states"], b["optimizer_states"])
        assert a["lightning_app"]["best"] == b["lightning_app"]["best"]
    a, b = scalars(folder, "whole"), scalars(folder, "broken")
    for curves in (a, b):
        curves.pop("train/characters_per_second")
    assert a == b


class Killed(BaseException):
    """Stands for SIGKILL: nothing gets to run after it."""


def stop_at(patch, step: int) -> None:
    from lightning_app.training.module import CharGPT

    original = CharGPT.on_train_batch_start

    def on_train_batch_start(self, *args):
        if self.global_step == step:
            raise Killed
        original(self, *args)

    patch.setattr(CharGPT, "on_train_batch_start", on_train_batch_start)


def test_early_stopping_finishes_a_run(folder, main):
    fit = ("fit", "--config", "tiny.yaml", "--early_stopping_patience", 1, "--trainer.max_steps=90")
    stuck = ("--optim.learning_rate", 1e-12, "--optim.muon_learning_rate", 1e-12)
    done = main(*fit, *stuck)
    assert done.code == 0
    assert "stopped early" in done.out
    step = checkpoint(folder, "tiny")["lightning_app"]["step"]
    assert step < 90
    assert "stopped early" in main(*fit, *stuck).out
    assert checkpoint(folder, "tiny")["lightning_app"]["step"] == step


def test_more_patience_continues_a_run_that_stopped_early(folder, main):
    fit = ("fit", "--config", "tiny.yaml", "--trainer.max_steps", 90)
    fit += ("--optim.learning_rate", 1e-12, "--optim.muon_learning_rate", 1e-12)
    steps = []
    for patience in (1, 3):
        assert main(*fit, "--early_stopping_patience", patience).code == 0
        steps.append(checkpoint(folder, "tiny")["lightning_app"]["step"])
    assert steps[1] == steps[0] + 20  # two validations more


def test_a_run_that_time_stops_is_continued_by_the_same_command(folder, main):
    fit = ("fit", "--config", "tiny.yaml", "--trainer.val_check_interval", 10**6)
    fit += ("--trainer.max_time", "00:00:00:01", "--trainer.max_steps")
    done = main(*fit, 10**6)
    assert done.code == 0, done.err
    assert "of 1,000,000 steps" in done.out
    assert "the same command resumes it" in done.out
    steps = checkpoint(folder, "tiny")["lightning_app"]["step"]
    done = main(*fit, steps + 2)
    assert f"finished: {steps + 2:,} steps" in done.out


def test_the_users_own_checkpoints_are_written_as_well_as_the_runs(folder, main):
    own = "--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.dirpath=own"
    done = main("fit", "--config", "tiny.yaml", "--optim.average_decay", 0.9, *own)
    assert done.code == 0, done.err
    assert list((folder / "own").glob("*.ckpt"))
    assert checkpoint(folder, "tiny", "best")["current_model_state"]


def test_trainer_flags_work(folder, main):
    flags = ["limit_val_batches=1", "accumulate_grad_batches=2", "gradient_clip_val=0.5"]
    flags += ["gradient_clip_algorithm=value", "overfit_batches=1", "precision=32-true"]
    flags += ["detect_anomaly=true", "profiler=simple", "max_steps=4"]
    done = main("fit", "--config", "tiny.yaml", *(f"--trainer.{flag}" for flag in flags))
    assert done.code == 0, done.err
    facts = checkpoint(folder, "tiny")["lightning_app"]
    assert facts["global_batch"] == 16
    assert facts["precision"] == "32-true"
    assert facts["step"] == 4


def test_overfitting_one_batch_memorises_it(folder, main):
    done = main(
        *("fit", "--config", "tiny.yaml", "--trainer.overfit_batches", 1, "--data.batch_size", 1),
        *("--trainer.max_steps", 200, "--trainer.val_check_interval", 200, "--model.n_embd", 32),
    )
    assert done.code == 0
    assert scalars(folder, "tiny")["train/loss"][-1][1] < 0.2


@pytest.mark.parametrize("name", ["cosine", "linear", "constant"])
def test_learning_rates_follow_the_schedule(folder, main, name):
    flags = ("--schedule.name", name, "--optim.name", "adamw", "--trainer.log_every_n_steps", 1)
    assert main("fit", "--config", "tiny.yaml", *flags).code == 0
    rates = [value for _, value in scalars(folder, "tiny")["train/learning_rate/blocks"]]
    assert len(rates) == 20
    assert 0 < rates[0] < rates[2] == max(rates)
    assert (rates[-1] < 0.2 * max(rates)) == (name != "constant")


def test_tensorboard_shows_the_run(trained):
    board = EventAccumulator(str(trained.folder / "logs" / "tiny"))
    board.Reload()
    tags = set(board.Tags()["scalars"])
    assert {f"{s}/{f}" for s in ("train", "val") for f in ("loss", "perplexity", "bpc")} <= tags
    assert {"val/gap", "train/gradient_norm", "train/characters_per_second"} <= tags
    assert {"train/learning_rate/blocks", "train/learning_rate/embedding_and_gains"} <= tags
    assert [e.step for e in board.Scalars("val/loss")] == [10, 20]
    texts = set(board.Tags()["tensors"])
    assert {"config/text_summary", "samples/prompted/text_summary"} <= texts
    only = {p.name for p in (trained.folder / "logs").iterdir() if not p.name.startswith(".")}
    assert only == {"tiny"}  # no empty runs from validate, test or predict


def test_the_csv_logger_works_by_the_trainers_flag(folder, main):
    flags = ("--trainer.logger=CSVLogger", "--trainer.logger.save_dir=csv")
    assert main("fit", "--config", "tiny.yaml", *flags).code == 0
    (table,) = folder.glob("csv/**/metrics.csv")
    assert "val/loss" in table.read_text().split("\n")[0]


def test_wandb_is_switched_on_by_a_flag(folder, main, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    assert main("fit", "--config", "tiny.yaml", "--wandb", "true").code == 0
    assert list(folder.glob("logs/tiny/wandb/offline-run-*"))
    assert scalars(folder, "tiny")["val/loss"]  # TensorBoard is used, too
