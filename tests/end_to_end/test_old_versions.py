"""What was made for version 0.1 still works: names of options, configs, run folders."""

import shutil
from pathlib import Path

import pytest
import torch

from lightning_app.runs.checkpoint import DATA, RAW_WEIGHTS, SECTION
from tests.helpers import SIZES, checkpoint, same, write_inputs

WINDOWS = "[[0,0.5],[0.5,1]]"
FIT = ("fit", "--config", "tiny.yaml", "--trainer.val_check_interval", 2, "--trainer.max_steps", 4)


# Names of options.


def notes(err: str) -> list[str]:
    return [line.split(" is now ")[0] for line in err.splitlines() if " is now " in line]


def test_options_under_their_old_names_train_the_same_network_and_are_reported(folder, main):
    (folder / "old.yaml").write_text(
        (folder / "tiny.yaml")
        .read_text()
        .replace("batch_size: 8", "batch_size: 8, rename: 0.7")
        .replace("warmup_steps: 2", f"warmup_steps: 2, windows: {WINDOWS}")
    )
    new = ("--data.replace_names", 0.7, "--data.window_schedule", WINDOWS)
    old = ("--data.rename", 0.7, "--schedule.windows", WINDOWS)
    by_new, by_old = main(*FIT, *new, "--run", "new"), main(*FIT, *old, "--run", "old")
    by_config = main("fit", "--config", "old.yaml", *FIT[3:], "--run", "config")
    assert notes(by_new.err) == []
    assert notes(by_old.err) == ["--data.rename", "--schedule.windows"]
    assert notes(by_config.err) == ["old.yaml: data.rename", "old.yaml: schedule.windows"]
    states = [checkpoint(folder, run) for run in ("new", "old", "config")]
    assert states[0][SECTION]["window_schedule"] == [[0, 0.5], [0.5, 1]]
    assert same(states[0]["state_dict"], states[1]["state_dict"])
    assert same(states[0]["state_dict"], states[2]["state_dict"])
    assert "replace_names: 0.7" in (folder / "logs/config/config.yaml").read_text()


def test_the_old_name_of_baselines_still_works(in_trained, main):
    done = main("validate", "--run", "tiny", "--yardsticks", "false")
    assert done.code == 0
    assert notes(done.err) == ["--yardsticks"]
    assert "this network" not in done.out


# Run folders.


def as_version_0_1(state: dict) -> dict:
    """The same checkpoint as version 0.1 wrote it."""
    arguments, section = state["hyper_parameters"], state[SECTION]
    state["hyper_parameters"] = {name: arguments[name] for name in ("alphabet", *SIZES)}
    section |= {"format": 1, "data": state.pop(DATA), "generate": arguments["generation"]}
    del section["data"]["counts"]
    for old, new in (("rename", "replace_names"), ("figures", "metrics")):
        section[old] = section.pop(new)
    section["schedule"]["windows"] = section.pop("window_schedule")
    if RAW_WEIGHTS in state:
        section["average"], state["state_dict"] = state["state_dict"], state.pop(RAW_WEIGHTS)
    for key in [k for k in state["callbacks"] if k.startswith("StopWithoutImprovement")]:
        state["callbacks"][key.replace("StopWithoutImprovement", "EarlyStopping")] = state[
            "callbacks"
        ].pop(key)
    return state


@pytest.fixture
def both(folder, main) -> tuple[str, ...]:
    """Two folders with the same run, `new` and, as version 0.1 left it, `old`; its options."""
    options = ("--early_stopping_patience", 9, "--optim.average_decay", 0.9)
    options += ("--data.window_schedule", WINDOWS, "--data.replace_names", 0.7)
    options += ("--data.corpus", folder / "text.txt")
    (folder / "new").mkdir()
    write_inputs(folder / "new")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder / "new")
        assert main(*FIT, *options).code == 0
    shutil.copytree(folder / "new", folder / "old")
    for path in (folder / "old").glob("logs/tiny/checkpoints/*.ckpt"):
        torch.save(as_version_0_1(torch.load(path, weights_only=True)), path)
    return options


def test_a_run_folder_of_version_0_1_is_resumed_bit_for_bit(folder, main, both, monkeypatch):
    for name in ("new", "old"):
        monkeypatch.chdir(folder / name)
        done = main(*FIT, *both, "--trainer.max_steps", 8)
        assert done.code == 0, done.err
        assert "resuming tiny at step 4 of 8" in done.err
    for file in ("best", "last"):
        new, old = (checkpoint(folder / name, "tiny", file) for name in ("new", "old"))
        for part in ("state_dict", RAW_WEIGHTS, "optimizer_states", "loops", "hyper_parameters"):
            assert same(new[part], old[part]), part
        assert new[SECTION]["best"] == old[SECTION]["best"]
    key = "StopWithoutImprovement{'monitor': 'val/loss', 'mode': 'min'}"
    assert same(new["callbacks"][key], old["callbacks"][key])  # the patience that is left


@pytest.mark.parametrize(
    "command",
    [
        "validate --baselines false",
        "validate --baselines false --ckpt_path last",
        "test --baselines false",
        "predict --prompt ROMEO --seed_everything 3",
        "predict --prompt ROMEO --seed_everything 3 --trainer.accelerator cpu",
        "export --to out",
    ],
)
def test_a_run_folder_of_version_0_1_gives_the_same_results(
    folder, main, both, monkeypatch, command
):
    results = []
    for name in ("new", "old"):
        monkeypatch.chdir(folder / name)
        done = main(*command.split(), "--run", "tiny")
        assert done.code == 0, done.err
        results.append((done.out, [p.read_bytes() for p in sorted(Path().glob("out/*"))]))
    assert results[0] == results[1]
