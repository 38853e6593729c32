"""Laws of a run's checkpoints: when best.ckpt and last.ckpt are written, and what is in them."""

import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from lightning_app.cli.commands.fit_build import Job, build
from lightning_app.cli.commands.fit_options import parse
from lightning_app.errors import UserError
from lightning_app.lightning_internals import processed_batches
from lightning_app.runs.checkpoint import SECTION, read_checkpoint
from lightning_app.runs.resume import Start
from lightning_app.training.callbacks.run_checkpoints import RunCheckpoints
from lightning_app.training.module import CharGPT
from lightning_app.training.signals import Interrupted, Signals


@pytest.fixture
def job(folder, monkeypatch):
    """A run of 8 steps that is validated every 3, and what it saved: job(options) -> Job, saved.

    `losses` are those of its validations.
    """

    def prepare(*args: str, losses: tuple[float, ...] = (3.0, 2.0, 1.0)) -> tuple[Job, list]:
        flags = ("--trainer.max_steps=8", "--trainer.val_check_interval=3", "--data.val_gap=false")
        made = build(parse([Path("tiny.yaml")], [*flags, *args]), Start(), None)
        saved: list[tuple[str, int]] = []
        save, given = made.checkpoints.save, iter(losses)

        def record(trainer, module, name: str) -> None:
            saved.append((name, trainer.global_step))
            save(trainer, module, name)

        def end_validation(model: CharGPT) -> None:
            model.log_evaluation({"val/loss": next(given), "val/perplexity": 1.0, "val/bpc": 1.0})

        monkeypatch.setattr(made.checkpoints, "save", record)
        monkeypatch.setattr(CharGPT, "on_validation_epoch_end", end_validation)
        return made, saved

    return prepare


def fit(job: Job, ckpt_path: str | None = None) -> None:
    with job.signals:
        job.trainer.fit(job.model, datamodule=job.data, ckpt_path=ckpt_path, weights_only=True)


def section(name: str) -> dict:
    return read_checkpoint(Path(f"logs/tiny/checkpoints/{name}.ckpt"))[SECTION]


pytestmark = pytest.mark.filterwarnings(
    "ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"
)


def test_best_is_saved_at_improvements_and_last_at_the_end(job):
    made, saved = job(losses=(3.0, 4.0, 2.0))
    fit(made)
    assert saved == [("best", 3), ("best", 8), ("last", 8)]
    assert section("best")["best"] == {"loss": 2.0, "step": 8}
    assert section("last")["best"] == {"loss": 2.0, "step": 8}


def test_last_is_saved_at_the_interval_and_after_the_validation_of_the_same_step(job):
    made, saved = job("--checkpoint_every_steps=2", losses=(3.0, 2.0, 1.0))
    fit(made)
    assert saved == [
        *[("last", 2), ("best", 3), ("last", 4)],
        *[("best", 6), ("last", 6), ("best", 8), ("last", 8)],
    ]


def test_an_interval_in_seconds_saves_when_it_has_passed(job):
    made, saved = job("--checkpoint_every_seconds=1e-9")
    fit(made)
    assert [step for name, step in saved if name == "last"] == list(range(1, 9))


def test_what_was_trained_is_counted_in_characters(job):
    made, _ = job()
    fit(made)
    assert section("last")["step"] == 8
    assert section("last")["characters"] == 8 * 8 * 16
    assert section("last")["stopped_early"] is False


def test_a_run_that_something_else_stops_is_saved(job):
    made, saved = job("--trainer.val_check_interval=100")
    original = CharGPT.training_step

    def stop(model, *args):
        model.trainer.should_stop = model.global_step == 4
        return original(model, *args)

    made.model.training_step = stop.__get__(made.model)
    fit(made)
    assert saved[-1] == ("last", 5)


def test_a_dev_run_saves_nothing(job):
    made, _ = job("--trainer.fast_dev_run=true")
    fit(made)
    assert not Path("logs").exists()


def test_nothing_is_saved_after_a_loss_that_is_not_finite(job):
    made, saved = job("--checkpoint_every_steps=2")
    losses = made.model.losses

    def diverge(*batch):
        return losses(*batch) * (float("nan") if made.model.global_step == 4 else 1.0)

    made.model.losses = diverge
    with pytest.raises(UserError, match="the loss is nan at step 5: training diverged"):
        fit(made)
    assert saved == [("last", 2), ("best", 3), ("last", 4)]
    assert section("last")["step"] == 4


def test_nothing_is_saved_over_good_weights_by_a_step_that_went_too_far(job):
    # Its loss, from before the step, was finite, and the file was overwritten.
    made, saved = job("--checkpoint_every_steps=2")
    step = made.model.optimizer_step

    def too_far(*args):
        step(*args)
        if made.model.global_step == 3:  # of the fourth step, which is not counted yet
            made.model.gpt.norm.weight.data[0] = float("inf")

    made.model.optimizer_step = too_far
    with pytest.raises(UserError, match="a weight is not a finite number at step 4"):
        fit(made)
    assert saved == [("last", 2), ("best", 3), ("last", 4)]
    assert section("last")["step"] == 2


def test_with_other_micro_batches_the_same_batches_are_counted(job):
    made, _ = job("--checkpoint_every_steps=4", "--trainer.max_steps=4")
    fit(made)
    last = "logs/tiny/checkpoints/last.ckpt"
    assert processed_batches(read_checkpoint(Path(last))) == 4
    halved = ("--trainer.accumulate_grad_batches=2", "--data.batch_size=4")
    made, _ = job(*halved, "--trainer.max_steps=6", "--trainer.val_check_interval=100")
    fit(made, last)
    state = read_checkpoint(Path(last))
    assert (state["global_step"], processed_batches(state)) == (6, 12)


# When last.ckpt is due.


def due(
    *, step: int = 5, force: bool = False, received: int | None = None, ago: float = 0.0, **options
) -> bool:
    """Whether last.ckpt is saved now, when it was saved `ago` seconds before."""
    signals = Signals()
    signals.received = received
    saving = options.pop("save_seconds", 0.0)
    checkpoints = RunCheckpoints(Path("x"), lambda trainer: {}, signals, **options)
    checkpoints.saved_at, checkpoints.save_seconds = time.perf_counter() - ago, saving
    saved = []
    checkpoints.save = lambda trainer, module, name: saved.append(name)
    trainer = SimpleNamespace(global_rank=0, world_size=1, global_step=step)
    if received is None:
        checkpoints.save_last_if_due(trainer, None, force=force)
    else:
        with pytest.raises(Interrupted) as stopped:
            checkpoints.save_last_if_due(trainer, None, force=force)
        assert stopped.value.signum == received
    return saved == ["last"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, False),
        ({"ago": 31}, True),
        ({"ago": 31, "save_seconds": 2}, False),  # 1 % of the time at most
        ({"ago": 201, "save_seconds": 2}, True),
        ({"ago": 31, "every_seconds": 60}, False),
        ({"ago": 61, "every_seconds": 60}, True),
        ({"every_steps": 5}, True),
        ({"every_steps": 4}, False),
        ({"every_steps": 4, "ago": 1000}, False),  # in steps, or by time
        ({"every_steps": 4, "every_seconds": 60, "force": True}, True),
        ({"force": True}, True),
        ({"received": signal.SIGINT}, True),
        ({"received": signal.SIGTERM, "every_steps": 4}, True),
    ],
)
def test_last_is_due(given, expected):
    assert due(**given) is expected
