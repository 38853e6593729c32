"""Laws of stopping: a resumed run takes patience and time from today's options."""

import pytest
import torch
from lightning.pytorch import Trainer

from lightning_app.training.callbacks.stopping import StopWithoutImprovement, TimeLimit


def stop_after(patience: int, *, restored: dict | None = None) -> StopWithoutImprovement:
    callback = StopWithoutImprovement("val/loss", patience=patience)
    if restored is not None:
        callback.load_state_dict(restored)
    return callback


def validations_until_stop(callback: StopWithoutImprovement) -> int:
    for n in range(1, 100):
        stop, _ = callback._evaluate_stopping_criteria(torch.tensor(1.0))
        if stop:
            return n
    raise AssertionError


def test_patience_is_what_is_given_now_and_the_count_what_was_saved():
    old = stop_after(3)
    old._evaluate_stopping_criteria(torch.tensor(0.5))
    old._evaluate_stopping_criteria(torch.tensor(1.0))
    state = old.state_dict()
    assert state["wait_count"] == 1
    for patience in (2, 3, 9):
        assert validations_until_stop(stop_after(patience, restored=state)) == patience - 1
    assert state == old.state_dict()


@pytest.mark.parametrize("seconds", [30.0, 0.5])
def test_each_call_has_the_whole_time(seconds):
    old = TimeLimit({"seconds": seconds})
    old.on_train_start(Trainer(accelerator="cpu", logger=False), None)
    resumed = TimeLimit({"seconds": seconds})
    resumed.load_state_dict(old.state_dict() | {"time_elapsed": {"train": 1e6}})
    resumed.on_train_start(Trainer(accelerator="cpu", logger=False), None)
    assert resumed.time_remaining() == pytest.approx(seconds, abs=0.3)
