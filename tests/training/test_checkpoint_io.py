"""Laws of the Trainer's checkpoint files: complete or not at all, and the one before is kept."""

import pytest
import torch
from lightning.pytorch.plugins.io import CheckpointIO

from lightning_app.errors import UserError
from lightning_app.runs.checkpoint import SECTION
from lightning_app.training.checkpoint_io import AtomicCheckpointIO
from tests.helpers import random_network, small_checkpoint


@pytest.fixture
def io() -> AtomicCheckpointIO:
    return AtomicCheckpointIO()


def step(io: CheckpointIO, path) -> int:
    return io.load_checkpoint(path)[SECTION]["step"]


def at_step(step: int) -> dict:
    checkpoint = small_checkpoint(random_network(step))
    checkpoint[SECTION] |= {"step": step}
    return checkpoint


@pytest.mark.parametrize("kind", [str, lambda path: path])
def test_what_is_saved_is_read_back(io, tmp_path, kind):
    path = kind(tmp_path / "deep" / "last.ckpt")
    checkpoint = at_step(3)
    io.save_checkpoint(checkpoint, path)
    read = io.load_checkpoint(path)
    assert read[SECTION] == checkpoint[SECTION]
    for name, weight in checkpoint["state_dict"].items():
        assert torch.equal(read["state_dict"][name], weight)


def test_the_last_checkpoint_but_one_is_kept_and_others_are_replaced(io, tmp_path):
    for i in (1, 2, 3):
        io.save_checkpoint(at_step(i), tmp_path / "last.ckpt")
        io.save_checkpoint(at_step(i), tmp_path / "best.ckpt")
    assert {p.name: step(io, p) for p in tmp_path.iterdir()} == {
        "last.ckpt": 3,
        "previous.ckpt": 2,
        "best.ckpt": 3,
    }


def test_a_save_that_fails_leaves_the_file_from_before_and_nothing_else(io, tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    io.save_checkpoint(at_step(1), path)

    def save(state, file) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(OSError, match="No space left"):
        io.save_checkpoint(at_step(2), path)
    assert list(tmp_path.iterdir()) == [path]
    assert step(io, path) == 1


def test_a_file_of_another_program_is_refused(io, tmp_path):
    path = tmp_path / "a.ckpt"
    torch.save({"weight": torch.zeros(1)}, path)
    with pytest.raises(UserError, match=r"a\.ckpt"):
        io.load_checkpoint(path)
