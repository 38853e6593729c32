"""Laws of the progress bars: on standard error only, a line for each validation, time left."""

import io
import re
from types import SimpleNamespace

import pytest
import torch

from lightning_app.training.callbacks import progress_bar
from lightning_app.training.callbacks.progress_bar import EvaluationProgressBar, TrainingProgressBar
from lightning_app.training.module import CharGPT

METRICS = {"val/loss": 1.5, "val/perplexity": 4.4817, "val/bpc": 2.164}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    """Time that passes only when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress_bar, "time", clock)
    return clock


@pytest.fixture
def terminal(monkeypatch) -> Terminal:
    terminal = Terminal()
    monkeypatch.setattr(progress_bar, "sys", SimpleNamespace(stderr=terminal))
    return terminal


@pytest.fixture
def model() -> CharGPT:
    return CharGPT("ab", block_size=4, n_layer=1, n_head=1, n_embd=4)


def trainer(**given) -> SimpleNamespace:
    """As much of a Trainer as the bars look at; each batch completes a step."""
    values = {
        "max_steps": 100,
        "global_step": 0,
        "callback_metrics": {},
        "accumulate_grad_batches": 1,
        "val_check_batch": 50,
        "state": SimpleNamespace(fn="fit"),
        "fit_loop": SimpleNamespace(_should_accumulate=lambda: False),
        "is_global_zero": True,
        "num_val_batches": [2, 1],
        "num_test_batches": [3],
    }
    return SimpleNamespace(**values | given)


def train(bar: TrainingProgressBar, t, model: CharGPT, steps: int, clock: Clock, seconds: float):
    for _ in range(steps):
        clock.now += seconds
        t.global_step += 1
        bar.on_train_batch_end(t, model, {"loss": torch.tensor(2.0)}, None, 0)


def validate(bar: TrainingProgressBar, t, model: CharGPT, clock: Clock, seconds: float) -> None:
    bar.on_validation_start(t, model)
    clock.now += seconds
    t.callback_metrics |= {name: torch.tensor(value) for name, value in METRICS.items()}
    bar.on_validation_end(t, model)


def test_time_left_is_that_of_the_steps_and_validations_to_come(model, clock):
    bar, t = TrainingProgressBar(), trainer()
    bar.on_train_start(t, model)
    assert bar.seconds_left(t) is None
    train(bar, t, model, 1, clock, seconds=60)  # compiles
    assert bar.seconds_left(t) is None
    train(bar, t, model, 49, clock, seconds=2)
    assert bar.seconds_left(t) == pytest.approx(50 * 2)
    validate(bar, t, model, clock, seconds=30)
    assert bar.seconds_left(t) == pytest.approx(50 * 2 + 30)
    train(bar, t, model, 50, clock, seconds=2)
    assert bar.seconds_left(t) == 0


def test_a_resumed_run_counts_its_own_steps(model, clock):
    bar, t = TrainingProgressBar(), trainer(global_step=90, val_check_batch=None)
    bar.on_train_start(t, model)
    train(bar, t, model, 6, clock, seconds=3)
    assert bar.seconds_left(t) == pytest.approx(4 * 3)


def test_without_a_terminal_each_validation_is_one_line(model, clock, capsys):
    bar, t = TrainingProgressBar(), trainer(max_steps=2000, val_check_batch=1000)
    bar.on_train_start(t, model)
    t.callback_metrics["train/characters_per_second"] = torch.tensor(12345.6)
    train(bar, t, model, 1001, clock, seconds=0.125)
    assert capsys.readouterr() == ("", "")
    validate(bar, t, model, clock, seconds=5)
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (
        "step 1,001/2,000  val loss 1.5000  perplexity 4.482  bpc 2.1640  "
        "(val 1.5000  12,346 characters/s  2:10 left)\n"
    )
    t.callback_metrics["val/gap"] = torch.tensor(0.25)
    bar.on_validation_end(t, model)
    assert "gap +0.2500" in capsys.readouterr().err


def test_on_a_terminal_there_is_a_bar_and_lines_above_it(model, clock, terminal, capsys):
    bar, t = TrainingProgressBar(), trainer()
    model.compile_network = True
    bar.on_train_start(t, model)
    assert "compiling" in terminal.getvalue()
    train(bar, t, model, 2, clock, seconds=1)
    assert "2/100 steps" in terminal.getvalue()
    assert "loss 2.000" in terminal.getvalue()
    validate(bar, t, model, clock, seconds=1)
    assert re.search(r"step 2/100  val loss 1\.5000 .*\n", terminal.getvalue())
    bar.on_train_end(t, model)
    assert bar.bar is None
    bar.on_exception(t, model, KeyboardInterrupt())  # closed already
    assert capsys.readouterr().out == ""


def test_a_disabled_bar_is_silent(model, clock, terminal):
    bar, t = TrainingProgressBar(), trainer()
    bar.disable()
    bar.on_train_start(t, model)
    train(bar, t, model, 2, clock, seconds=1)
    validate(bar, t, model, clock, seconds=1)
    assert terminal.getvalue() == ""
    bar.enable()
    validate(bar, t, model, clock, seconds=1)
    assert terminal.getvalue()


def test_other_processes_than_the_first_show_nothing(model, terminal):
    for bar in (TrainingProgressBar(), EvaluationProgressBar()):
        bar.setup(trainer(is_global_zero=False), model, "fit")
        assert not bar.enabled


@pytest.mark.parametrize(("split", "total"), [("validation", 3), ("test", 3)])
def test_scoring_counts_the_batches_of_all_its_loaders(model, terminal, split, total):
    bar, t = EvaluationProgressBar(), trainer()
    getattr(bar, f"on_{split}_start")(t, model)
    assert bar.bar.total == total
    for i in range(total):
        getattr(bar, f"on_{split}_batch_end")(t, model, None, None, i)
    assert bar.bar.n == total
    getattr(bar, f"on_{split}_end")(t, model)
    assert bar.bar is None
    assert terminal.getvalue().strip() == ""  # it took less than two seconds


def test_scoring_without_a_terminal_shows_nothing(model, capsys):
    bar, t = EvaluationProgressBar(), trainer()
    bar.on_test_start(t, model)
    bar.on_test_batch_end(t, model, None, None, 0)
    bar.on_test_end(t, model)
    assert capsys.readouterr() == ("", "")
