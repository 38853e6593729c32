"""Laws of loading: which checkpoint a command uses, and the data it rebuilds from it."""

import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from lightning_app.cli.loading import LoadedRun, load_run, rebuild_data
from lightning_app.data.datamodule import CharDataModule
from lightning_app.runs.checkpoint import DATA, TrainedModel, load
from tests.helpers import ALPHABET, refusal, save_run, small_checkpoint

TEXT = ALPHABET * 40


@pytest.fixture(autouse=True)
def in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def loaded(run: str | None = None, ckpt_path: str | None = None, *configs: Path) -> LoadedRun:
    return load_run(SimpleNamespace(run=run, ckpt_path=ckpt_path), list(configs))


def config(name: str, text: str = "") -> Path:
    path = Path(name)
    path.write_text(text)
    return path


def test_the_run_is_that_of_the_option_then_of_the_configs_key_then_of_its_name():
    for name in ("option", "key", "stem", "newest"):
        save_run(name)
    with_key, stem, other = config("a.yaml", "run: key"), config("stem.yaml"), config("b.yaml")
    for run, configs, expected in (
        ("option", [with_key, stem], "option"),
        (None, [with_key, stem], "key"),
        (None, [other, stem], "stem"),  # the last config's name
    ):
        found = loaded(run, None, *configs)
        assert found.name == expected
        assert found.path == Path(f"logs/{expected}/checkpoints/best.ckpt")


def test_without_a_run_and_a_config_it_is_the_newest_run():
    os.utime(save_run("old"), (1, 1))
    save_run("new")
    assert loaded().path == Path("logs/new/checkpoints/best.ckpt")
    assert loaded().name is None


def test_a_checkpoints_file_wins_over_the_run():
    save_run("one")
    other = save_run("two", file="any")
    assert loaded("one", str(other)).path == other
    assert "there is no run one" not in refusal(loaded, "one", "nope.ckpt")


def test_best_and_last_are_those_of_the_run():
    save_run("one", small_checkpoint() | {"global_step": 1})
    last = save_run("one", file="last")
    save_run("two")
    assert loaded("one", "last").path == last
    assert loaded("one", "best").path == last.with_name("best.ckpt")


# The data.


@pytest.fixture
def model() -> TrainedModel:
    """A network, and a checkpoint that knows the text that it was trained on."""
    Path("text.txt").write_text(TEXT, encoding="utf-8")
    data = CharDataModule("text.txt", block_size=8, batch_size=3, splits=[0.5, 0.5])
    return load(save_run("mine", small_checkpoint() | {DATA: data.state_dict()}))


def test_the_data_is_what_the_network_was_trained_on(model):
    data = rebuild_data(model, {})
    assert data.state_dict() == model.data
    assert (data.alphabet, data.eval_stride) == (ALPHABET, 8)


def test_what_is_given_replaces_what_the_checkpoint_says(model):
    given = {"splits": [0.8, 0.2], "batch_size": 7, "block_size": 4}
    data = rebuild_data(model, given, eval_stride=2)
    assert (data.batch_size, data.block_size, data.eval_stride) == (7, 4, 2)
    assert data.bounds["train"] == (0, int(0.8 * len(TEXT)))
    Path("other.txt").write_text("abc" * 50)
    assert len(rebuild_data(model, {"corpus": "other.txt"}).text.ids) == 150


def test_a_window_larger_than_the_networks_is_refused(model):
    assert "--data.block_size 9 is more than the network's 8" in refusal(
        rebuild_data, model, {"block_size": 9}
    )


def test_a_changed_text_is_refused_unless_it_is_asked_for(model):
    Path("text.txt").write_text(TEXT[:-1], encoding="utf-8")
    message = refusal(rebuild_data, model, {})
    assert "text.txt has changed since the run was trained" in message
    assert len(rebuild_data(model, {"corpus": "text.txt"}).text.ids) == len(TEXT) - 1


def test_a_text_is_found_again_after_its_folder_has_moved(tmp_path, monkeypatch):
    for place in ("old/texts", "new"):
        Path(place).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "old")
    Path("texts/a.txt").write_text(TEXT, encoding="utf-8")
    kinds = {"file": "texts/a.txt", "folder": "texts", "glob": "texts/*.txt"}
    for run, corpus in kinds.items():
        data = CharDataModule(str(Path(corpus).resolve()), block_size=8)
        save_run(run, small_checkpoint() | {DATA: data.state_dict()})
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old").rename("new/project")
    (tmp_path / "old/texts").mkdir(parents=True)
    Path("old/texts/a.txt").write_text("another text", encoding="utf-8")
    for run, corpus in kinds.items():
        found = load(tmp_path / f"new/project/logs/{run}/checkpoints/best.ckpt")
        assert found.source().corpus == str(tmp_path / "new/project" / corpus)
        assert rebuild_data(found, {}).text.fingerprint == found.data["fingerprint"]


def test_a_text_that_is_gone_is_named_with_the_option(model):
    Path("text.txt").rename("elsewhere.txt")
    message = refusal(rebuild_data, model, {})
    assert str(Path("text.txt").resolve()) in message
    assert "--data.corpus PATH" in message
    data = rebuild_data(model, {"corpus": "elsewhere.txt"})
    assert data.text.fingerprint == model.data["fingerprint"]


def test_a_text_with_characters_unknown_to_the_network_is_refused(model):
    Path("other.txt").write_text("abcω" * 50, encoding="utf-8")
    assert "U+03C9" in refusal(rebuild_data(model, {"corpus": "other.txt"}).setup)


def test_a_checkpoint_that_does_not_know_its_text_needs_one(model):
    unknown = replace(model, data={})
    assert "give --data.corpus" in refusal(rebuild_data, unknown, {})
    data = rebuild_data(unknown, {"corpus": "text.txt"})
    assert (data.block_size, data.batch_size) == (8, 32)
