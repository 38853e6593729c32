"""Laws of text samples: the same two starts at each validation, to TensorBoard and nowhere else."""

from types import SimpleNamespace

import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_app.training.callbacks.text_samples import TextSamples
from lightning_app.training.module import CharGPT

TEXT = "ROMEO:\nwhat light is that\n"


@pytest.fixture
def model() -> CharGPT:
    alphabet = "".join(sorted(set(TEXT)))
    counts = [1] * len(alphabet)
    return CharGPT(alphabet, block_size=16, n_layer=1, n_head=1, n_embd=8, counts=counts)


def sample(model: CharGPT, *loggers, fn: str = "fit", step: int = 5) -> None:
    trainer = SimpleNamespace(
        loggers=loggers,
        state=SimpleNamespace(fn=fn),
        global_step=step,
    )
    TextSamples("ROMEO:\n", max_new_tokens=12).on_validation_end(trainer, model)


def texts(folder) -> dict[str, list[tuple[int, str]]]:
    board = EventAccumulator(str(folder))
    board.Reload()
    return {
        tag.removesuffix("/text_summary"): [
            (x.step, x.tensor_proto.string_val[0].decode()) for x in board.Tensors(tag)
        ]
        for tag in board.Tags()["tensors"]
    }


def test_two_texts_are_written_as_they_are_at_each_validation(model, tmp_path):
    board = TensorBoardLogger(tmp_path, "run", version="")
    for step in (5, 10):
        sample(model, board, step=step)
    board.experiment.flush()
    found = texts(tmp_path / "run")
    assert set(found) == {"samples/unprompted", "samples/prompted"}
    for name, start in (("samples/unprompted", ""), ("samples/prompted", "ROMEO:\n")):
        assert [step for step, _ in found[name]] == [5, 10]
        (_, one), (_, other) = found[name]
        assert one == other  # the same network writes the same text: the seed is fixed
        lines = one.removesuffix("\n").split("\n")
        assert all(line.startswith("    ") for line in lines)  # Markdown code
        text = "\n".join(line.removeprefix("    ") for line in lines)
        assert text.startswith(start)
        assert len(text) == len(start) + 12


@pytest.mark.parametrize("fn", ["validate", "test"])
def test_only_fit_writes_samples(model, tmp_path, fn):
    board = TensorBoardLogger(tmp_path, "run", version="")
    sample(model, board, fn=fn)
    board.experiment.flush()
    assert texts(tmp_path / "run") == {}


def test_without_tensorboard_nothing_is_generated(model, tmp_path, monkeypatch):
    monkeypatch.setattr(model, "gpt", None)
    sample(model)
    sample(model, CSVLogger(tmp_path))
