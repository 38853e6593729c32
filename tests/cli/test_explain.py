"""Laws of explained errors: what a user can correct has one line, a defect has none."""

import errno
import os

import pytest
import torch
from jsonargparse import Namespace
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import ModelSummary, Timer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_app.cli.explain import explain
from lightning_app.data.tokenizer import Tokenizer
from lightning_app.errors import UserError


def test_a_user_error_is_its_own_line():
    assert explain(UserError("--run x does not exist; see logs/")) == (
        "--run x does not exist; see logs/"
    )


@pytest.mark.parametrize("error", [ValueError("x"), KeyError("x"), RuntimeError("x"), Exception()])
def test_a_defect_is_not_explained(error):
    assert explain(error) is None


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"),
    ],
)
def test_every_way_to_run_out_of_memory_has_the_same_remedy(error):
    line = explain(error)
    assert line.startswith("out of memory; ")
    assert "--data.batch_size" in line
    assert "--trainer.accumulate_grad_batches" in line


@pytest.mark.parametrize(
    "text",
    ["Connection closed by peer [127.0.0.1]", "Connection reset by peer", "remote process exited"],
)
def test_the_end_of_another_process_says_that_the_checkpoint_is_complete(text):
    line = explain(RuntimeError(f"[gloo] {text}"))
    assert line.startswith("another process of this run ended")
    assert "the same command resumes" in line


def test_lightnings_refusals_name_the_trainer():
    assert explain(MisconfigurationException("no such thing")) == "--trainer: no such thing"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "logs/x/last.ckpt"),
        OSError("write failed: No space left on device"),
    ],
)
def test_a_full_disk_says_what_to_do(error):
    line = explain(error)
    assert line.startswith("the disk is full")
    assert line.endswith("; free some space and run the same command again")


def test_an_error_of_the_system_names_the_file(tmp_path):
    with pytest.raises(OSError, match="No such file") as error:
        (tmp_path / "a.txt").open()
    line = explain(error.value)
    assert line == (
        f"no such file or directory ({tmp_path / 'a.txt'}); check the path and its permissions"
    )


def test_an_error_of_the_system_without_a_text_has_a_line():
    assert explain(OSError()).startswith("an operation on a file failed; ")


def test_an_error_inside_a_class_of_lightning_names_its_option():
    with pytest.raises(ValueError, match="max_depth") as error:
        ModelSummary(max_depth=-5).on_fit_start(Namespace(strategy=None), LightningModule())
    assert explain(error.value) == (
        "--trainer.callbacks ModelSummary: `max_depth` can be -1, 0 or > 0, got -5; "
        "--debug true shows where"
    )


class Calling(Timer):
    """A callback of Lightning, as far as its module says, that calls a function."""

    __module__ = "lightning.pytorch.callbacks.timer"

    def __init__(self) -> None:
        """Without a duration."""

    def call(self, function, *args) -> None:
        function(*args)


def test_an_error_in_this_program_is_a_defect_even_if_a_class_of_lightning_called_it():
    with pytest.raises(TypeError) as error:
        Calling().call(Tokenizer("ab").decode, None)
    assert explain(error.value) is None
