"""Laws of resuming: the table "fit is idempotent", line by line."""

import copy
from pathlib import Path

import pytest

from lightning_app.runs.checkpoint import (
    CHECKPOINT_FORMAT,
    SECTION,
    read_checkpoint,
    write_checkpoint,
)
from lightning_app.runs.resume import (
    BUILT_IN_STOP,
    INEXACT,
    MAY_CHANGE,
    MUST_MATCH,
    Start,
    compare_facts,
    find_start,
    finished_reason,
    refusal,
    resume_point,
)
from tests.helpers import refusal as refusal_of

FACTS = {
    "format": 2,
    "network": {"vocab_size": 3, "n_layer": 4, "n_head": 2, "n_embd": 192, "tie_embeddings": False},
    "corpus": "/texts/a.txt",
    "fingerprint": "0123456789ab",
    "alphabet": "\n ab",
    "splits": [0.9, 0.05, 0.05],
    "hold_out": "characters",
    "unit": "char",
    "seed": 1337,
    "block_size": 128,
    "global_batch": 32,
    "optimizer": "muon",
    "schedule": {"name": "linear", "warmup_steps": 20, "decay_fraction": 0.6},
    "max_steps": 2000,
    "window_schedule": [[0, 1]],
    "replace_names": 0.5,
    "dropout": 0.2,
    "optim": {"learning_rate": 3e-3, "muon_learning_rate": 0.03, "weight_decay": 0.05},
    "intervals": {"val_check_interval": 500, "checkpoint_every_steps": None},
    "logger": "TensorBoardLogger",
    "patience": None,
    "patience_of": BUILT_IN_STOP,
    "device": "cpu",
    "precision": "bf16-mixed",
    "torch": "2.13.0",
    "threads": 2,
    "compile": True,
    "processes": 1,
    "accumulate": 1,
}
# What a checkpoint adds when it is written.
STATE = {"step": 1000, "stopped_early": False}


def changed(where: str, value, facts: dict = FACTS) -> dict:
    """The facts with one of them, `key` or `key.key`, changed."""
    facts = copy.deepcopy(facts)
    *outer, key = where.split(".")
    into = facts
    for name in outer:
        into = into[name]
    into[key] = value
    return facts


def old(**state) -> dict:
    return {**FACTS, **STATE, **state}


def lines(where: str, value) -> tuple[list[str], list[str], list[str]]:
    differences = compare_facts(old(), changed(where, value))
    return differences.refused, differences.applied, differences.inexact


def test_a_run_that_is_the_same_differs_in_nothing():
    differences = compare_facts(old(), copy.deepcopy(FACTS))
    assert (differences.refused, differences.applied, differences.inexact) == ([], [], [])


def test_facts_are_the_same_after_a_checkpoint(tmp_path):
    path = tmp_path / "last.ckpt"
    write_checkpoint({SECTION: old()}, path)
    differences = compare_facts(read_checkpoint(path)[SECTION], FACTS)
    assert (differences.refused, differences.applied, differences.inexact) == ([], [], [])


@pytest.mark.parametrize(
    ("where", "value", "line"),
    [
        ("network.n_layer", 5, "model.n_layer: 4 -> 5"),
        ("network.tie_embeddings", True, "model.tie_embeddings: False -> True"),
        (
            "fingerprint",
            "ba9876543210",
            "data.corpus: /texts/a.txt (01234567) -> /texts/a.txt (ba987654)",
        ),
        ("splits", [0.9, 0.1], "data.splits: [0.9, 0.05, 0.05] -> [0.9, 0.1]"),
        ("hold_out", "files", "data.hold_out: characters -> files"),
        ("unit", "byte", "data.unit: char -> byte"),
        ("seed", 7, "seed_everything: 1337 -> 7"),
        ("block_size", 256, "data.block_size: 128 -> 256"),
        ("global_batch", 64, "data.batch_size x accumulation x processes: 32 -> 64"),
        ("optimizer", "adamw", "optim.name: muon -> adamw"),
        ("schedule.name", "cosine", "schedule.name: linear -> cosine"),
        ("schedule.warmup_steps", 10, "schedule.warmup_steps: 20 -> 10"),
        ("schedule.decay_fraction", 0.5, "schedule.decay_fraction: 0.6 -> 0.5"),
    ],
)
def test_another_network_other_data_or_another_path_is_refused_with_both_values(where, value, line):
    assert lines(where, value) == ([line], [], [])


def test_another_alphabet_is_refused():
    refused, applied, inexact = lines("alphabet", "\n abc")
    assert len(refused) == 1
    assert refused[0].startswith("alphabet: ")
    assert (applied, inexact) == ([], [])


@pytest.mark.parametrize(
    ("where", "value", "line"),
    [
        ("max_steps", 3000, "max_steps: 2000 -> 3000"),
        ("replace_names", 0.7, "replace_names: 0.5 -> 0.7"),
        ("dropout", 0.1, "dropout: 0.2 -> 0.1"),
        ("optim.learning_rate", 1e-3, "optim.learning_rate: 0.003 -> 0.001"),
        ("optim.muon_learning_rate", 0.02, "optim.muon_learning_rate: 0.03 -> 0.02"),
        ("optim.weight_decay", 0.1, "optim.weight_decay: 0.05 -> 0.1"),
        ("intervals.val_check_interval", 100, "intervals.val_check_interval: 500 -> 100"),
        ("intervals.checkpoint_every_steps", 50, "intervals.checkpoint_every_steps: None -> 50"),
        ("logger", "none", "logger: TensorBoardLogger -> none"),
    ],
)
def test_what_may_change_is_applied_with_one_line(where, value, line):
    assert lines(where, value) == ([], [line], [])


@pytest.mark.parametrize(
    ("where", "value", "line"),
    [
        ("device", "cuda", "device: cpu -> cuda"),
        ("precision", "32-true", "precision: bf16-mixed -> 32-true"),
        ("torch", "2.14.0", "torch: 2.13.0 -> 2.14.0"),
        ("threads", 4, "threads: 2 -> 4"),
        ("compile", False, "compile: True -> False"),
        ("processes", 2, "processes: 1 -> 2"),
        ("accumulate", 2, "accumulate: 1 -> 2"),
    ],
)
def test_another_machine_goes_on_not_bit_for_bit(where, value, line):
    assert lines(where, value) == ([], [], [line])


def test_no_fact_is_in_two_rows_of_the_table():
    names = [*(name for name, _ in MUST_MATCH), *MAY_CHANGE, *INEXACT]
    assert len(names) == len(set(names))


def test_every_difference_has_its_line():
    new = changed("network.n_layer", 5, changed("network.n_head", 4, changed("seed", 7)))
    new = changed("threads", 1, changed("dropout", 0.3, new))
    differences = compare_facts(old(), new)
    assert len(differences.refused) == 3
    assert len(differences.applied) == 1
    assert len(differences.inexact) == 1


def test_the_same_text_may_lie_elsewhere():
    assert lines("corpus", "/other/b.txt") == ([], [], [])


def test_an_option_that_only_one_of_the_two_knows_is_a_difference():
    assert lines("network.n_expert", 8)[0] == ["model.n_expert: None -> 8"]
    new = copy.deepcopy(FACTS)
    del new["optim"]["weight_decay"]
    assert compare_facts(old(), new).applied == ["optim.weight_decay: 0.05 -> None"]


@pytest.mark.parametrize(
    ("where", "one", "other"),
    [
        ("optim.learning_rate", 0.00123456, 0.001234561),
        ("alphabet", "".join(map(chr, range(32, 95))), "".join(map(chr, range(32, 94))) + "é"),
        ("alphabet", "\n abc", "\r abc"),
        ("fingerprint", "a" * 64, "b" * 64),
    ],
    ids=["numbers", "alphabets", "line ends", "texts"],
)
def test_two_values_that_differ_look_different(where, one, other):
    differences = compare_facts(changed(where, one, old()), changed(where, other))
    [line] = differences.refused + differences.applied
    before, after = line.partition(": ")[2].split(" -> ")
    # Messages are printed as one line, white space run together.
    assert before.split() != after.split()


def test_a_long_value_is_shortened():
    [line] = lines("alphabet", "".join(map(chr, range(0x4E00, 0x4E00 + 5000))))[0]
    assert len(line) < 300
    assert "5000 characters" in line


def test_a_refusal_names_the_run_the_differences_and_both_remedies():
    message = str(refusal("mine", ["a: 1 -> 2", "b: 3 -> 4"]))
    assert "mine" in message
    assert "a: 1 -> 2; b: 3 -> 4" in message
    assert "--run OTHER" in message
    assert "--fresh true" in message
    assert "\n" not in message


# Finished or not.


@pytest.mark.parametrize(("step", "max_steps"), [(0, 1), (999, 1000), (1000, 1001)])
def test_a_run_below_its_length_goes_on(step, max_steps):
    assert finished_reason(old(step=step), changed("max_steps", max_steps)) is None


@pytest.mark.parametrize(
    ("step", "max_steps", "more"), [(2000, 2000, 3000), (2000, 500, 3000), (1, 1, 2)]
)
def test_a_run_at_or_beyond_its_length_finished_reason_and_says_how_to_go_on(step, max_steps, more):
    message = finished_reason(old(step=step), changed("max_steps", max_steps))
    assert message.startswith(f"finished: {step:,} steps of {max_steps:,}")
    assert f"--trainer.max_steps {more}" in message
    assert finished_reason(old(step=step), changed("max_steps", more)) is None  # the remedy works


@pytest.mark.parametrize("patience", [3, 2, 1])
def test_a_run_that_stopped_early_finished_reason_and_says_how_to_go_on(patience):
    stopped = old(stopped_early=True, patience=3)
    message = finished_reason(stopped, changed("patience", patience))
    assert "stopped early at step 1,000" in message
    assert "--early_stopping_patience 6" in message


def test_a_run_that_a_callback_of_the_users_stopped_says_which():
    stopped = old(stopped_early=True, patience=3)
    new = changed("patience_of", "EarlyStopping", changed("patience", 3))
    message = finished_reason(stopped, new)
    assert "stopped early at step 1,000 by EarlyStopping" in message
    assert "--early_stopping_patience" not in message


@pytest.mark.parametrize("patience", [4, 6, None])
def test_more_patience_or_none_at_all_goes_on(patience):
    stopped = old(stopped_early=True, patience=3)
    assert finished_reason(stopped, changed("patience", patience)) is None


def test_longer_training_alone_does_not_go_on_after_an_early_stop():
    stopped = old(stopped_early=True, patience=3)
    assert finished_reason(stopped, changed("max_steps", 9000, changed("patience", 3))) is not None


def test_patience_that_is_left_does_not_end_a_run():
    assert finished_reason(old(patience=3), changed("patience", 3)) is None


def test_a_run_at_its_length_finished_reason_however_much_patience_is_left():
    stopped = old(step=2000, stopped_early=True, patience=3)
    assert finished_reason(stopped, changed("patience", 9)).startswith("finished")


# From which checkpoint.


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """An empty working folder; `logs` is relative to it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def saved(name: str, step: int = 1, run: str = "mine", origin: str | None = "") -> Path:
    """A checkpoint of a run that was begun from the file `origin`."""
    path = Path(f"logs/{run}/checkpoints/{name}.ckpt")
    section = {"format": CHECKPOINT_FORMAT, "step": step, "origin": origin}
    write_checkpoint({SECTION: section}, path)
    return path


def test_a_run_without_checkpoints_has_no_resume_point(folder):
    assert resume_point("mine") is None
    Path("logs/mine/checkpoints").mkdir(parents=True)
    assert resume_point("mine") is None


def test_a_run_is_resumed_from_last_without_a_note(folder):
    saved("previous", 1)
    path = saved("last", 2)
    found, state, note = resume_point("mine")
    assert found == path
    assert state[SECTION]["step"] == 2
    assert note is None


@pytest.mark.parametrize("content", [b"", b"garbage", None])
def test_with_a_damaged_last_the_one_before_is_used_and_named(folder, content):
    path = saved("previous", 1)
    last = saved("last", 2)
    last.write_bytes(last.read_bytes()[:-200] if content is None else content)
    found, state, note = resume_point("mine")
    assert found == path
    assert state[SECTION]["step"] == 1
    assert str(last) in note
    assert str(path) in note
    assert "\n" not in note


def test_with_a_missing_last_the_one_before_is_used_and_named(folder):
    # A kill between the two renames leaves it like this.
    path = saved("previous", 1)
    found, state, note = resume_point("mine")
    assert found == path
    assert state[SECTION]["step"] == 1
    assert str(path) in note


def test_when_no_checkpoint_can_be_read_nothing_is_started_over_it(folder):
    for name in ("last", "previous"):
        saved(name).write_text("garbage")
    message = refusal_of(resume_point, "mine")
    assert "last.ckpt" in message
    assert "--fresh true" in message


# What `fit` starts from.

OTHER = "logs/other/checkpoints/last.ckpt"  # a checkpoint of another run, at step 5


def begin(**given) -> Start:
    options = {"ckpt_path": None, "init_from": None, "fresh": False, "dev_run": False}
    return find_start("mine", **options | given)


@pytest.mark.parametrize(
    ("origin", "given", "path", "step", "begun_from"),
    [
        # a run without checkpoints
        (None, {}, None, 0, ""),
        (None, {"fresh": True}, None, 0, ""),
        (None, {"ckpt_path": OTHER}, OTHER, 5, OTHER),
        (None, {"init_from": OTHER}, None, 0, OTHER),
        # a run that was begun from nothing, at step 9
        ("", {}, "logs/mine/checkpoints/last.ckpt", 9, ""),
        ("", {"ckpt_path": "best"}, "logs/mine/checkpoints/best.ckpt", 7, ""),
        ("", {"ckpt_path": "logs/mine/checkpoints/best.ckpt"}, None, 7, ""),
        ("", {"fresh": True}, None, 0, ""),
        ("", {"fresh": True, "init_from": OTHER}, None, 0, OTHER),
        ("", {"dev_run": True}, None, 0, ""),
        ("", {"dev_run": True, "ckpt_path": OTHER}, OTHER, 5, OTHER),
        # a run that was begun from that file, at step 9: the same command resumes it
        (OTHER, {"ckpt_path": OTHER}, "logs/mine/checkpoints/last.ckpt", 9, OTHER),
        (OTHER, {"init_from": OTHER}, "logs/mine/checkpoints/last.ckpt", 9, OTHER),
        (OTHER, {}, "logs/mine/checkpoints/last.ckpt", 9, OTHER),
        # a run of which this is not known
        ("unknown", {"ckpt_path": OTHER}, "logs/mine/checkpoints/last.ckpt", 9, None),
    ],
)
def test_fit_starts_from(folder, origin, given, path, step, begun_from):
    saved("last", 5, run="other")
    if origin is not None:
        of_run = None if origin == "unknown" else origin
        saved("best", 7, origin=of_run)
        saved("last", 9, origin=of_run)
    start = begin(**given)
    assert (start.step, start.origin) == (step, begun_from)
    expected = path if path or not step else given["ckpt_path"]
    assert start.path == (expected and Path(expected))
    assert (start.state is None) == (start.path is None)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"ckpt_path": OTHER}, ["run mine already has checkpoints", OTHER, "--run OTHER"]),
        ({"init_from": OTHER}, ["run mine already has checkpoints", OTHER, "--fresh true"]),
        ({"ckpt_path": OTHER, "fresh": True}, ["--fresh and --ckpt_path contradict"]),
        ({"ckpt_path": OTHER, "init_from": OTHER}, ["--init_from and --ckpt_path contradict"]),
        ({"ckpt_path": "nope.ckpt", "dev_run": True}, ["nope.ckpt does not exist"]),
    ],
)
def test_fit_does_not_start(folder, given, words):
    saved("last", 5, run="other")
    saved("last", 9)
    message = refusal_of(begin, **given)
    assert all(word in message for word in words), message


def test_the_note_about_a_damaged_checkpoint_is_kept(folder):
    saved("last").write_text("garbage")
    saved("previous", 3)
    start = begin()
    assert start.step == 3
    assert "last.ckpt" in start.note
