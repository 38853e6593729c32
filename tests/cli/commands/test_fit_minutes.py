"""Laws of --minutes: a run is planned once, with what was given, and resumes exactly."""

import time
from pathlib import Path

import pytest
import yaml

from lightning_app.cli.commands import fit_minutes
from lightning_app.cli.commands.fit_minutes import Measured, measure, planned
from lightning_app.cli.commands.fit_options import FitRequest, parse
from lightning_app.training import recipe
from lightning_app.training.recipe import SIZES
from tests.helpers import refusal

TEXT = ("--data.corpus", "text.txt")
TINY = ("--model.n_embd", "16", "--data.block_size", "32", "--compile", "false")


@pytest.fixture
def speed(monkeypatch):
    """Sets what the trial steps seem to take: speed(seconds of a step). The text may be read any
    number of times."""
    monkeypatch.setattr(recipe, "MAX_PASSES", 1e9)

    def speed(seconds: float, seconds_to_start: float = 0.0) -> None:
        monkeypatch.setattr(
            fit_minutes, "measure", lambda request: Measured(seconds, seconds_to_start)
        )

    return speed


def plan(*args: str, began: float = 0.0) -> FitRequest:
    request = parse([], [*TEXT, *args])
    return planned(request, time.perf_counter() - began)[0]


@pytest.mark.parametrize("compiled", [True, False])
def test_the_steps_are_as_many_as_the_rest_of_the_time_allows(speed, folder, monkeypatch, compiled):
    speed(0.05, seconds_to_start=20)
    monkeypatch.setattr(fit_minutes, "has_compiled_code", lambda: compiled)
    config = plan("--minutes", "5", began=30).config
    left = 5 * 60 - 30 - 20 - fit_minutes.FINISH_SECONDS
    left -= 0 if compiled else fit_minutes.GENERATION_COMPILES
    assert 0.05 * config.trainer.max_steps == pytest.approx(left, rel=0.01)


def test_a_slower_machine_trains_less_and_a_given_value_is_kept(speed, folder):
    speed(0.05)
    fast = plan("--minutes", "5", "--model.n_embd", "48").config
    speed(0.2)
    slow = plan("--minutes", "5", "--model.n_embd", "48", "--model.dropout", "0.45").config
    assert fast.trainer.max_steps == pytest.approx(4 * slow.trainer.max_steps, rel=0.01)
    assert fast.model.n_embd == slow.model.n_embd == 48
    assert slow.model.dropout == 0.45


def test_a_network_that_suits_the_measured_speed_is_measured_too(folder, monkeypatch):
    """Steps of a slow machine, on which the network of the expected speed would be too large."""
    seen = []

    def measure_slowly(request: FitRequest) -> Measured:
        assert request.config.compile is False
        seen.append(request.config.model.n_embd)
        return Measured(0.01 * request.config.model.n_embd, 0)

    monkeypatch.setattr(recipe, "MAX_PASSES", 1e9)
    monkeypatch.setattr(fit_minutes, "measure", measure_slowly)
    chosen = plan("--minutes", "10", "--compile", "false").config.model.n_embd
    assert 1 < len(seen) == len(set(seen)) <= fit_minutes.MAX_MEASURED
    assert chosen == seen[-1] < seen[0]
    seen.clear()
    given = plan("--minutes", "10", "--compile", "false", "--model.n_embd", "96")
    assert given.config.model.n_embd == 96
    assert seen == [96]


def test_only_the_chosen_network_is_compiled(folder, monkeypatch):
    seen = []

    def record(request: FitRequest) -> Measured:
        seen.append((request.config.model.n_embd, request.config.compile))
        return Measured(0.05, 0)

    monkeypatch.setattr(recipe, "can_compile", lambda accelerator: True)
    monkeypatch.setattr(fit_minutes, "measure", record)
    chosen = plan("--minutes", "10").config.model.n_embd
    assert [compiled for _, compiled in seen] == [False] * (len(seen) - 1) + [True]
    assert seen[-1][0] == chosen


def test_too_little_time_is_refused_with_enough(speed, folder, monkeypatch):
    speed(0.05, seconds_to_start=100)
    monkeypatch.setattr(fit_minutes, "has_compiled_code", lambda: True)
    assert "--minutes 2 is too short" in refusal(plan, "--minutes", "2")
    plan("--minutes", "3")


@pytest.mark.parametrize("flag", [("--trainer.devices", "2"), ("--trainer.num_nodes", "2")])
def test_several_processes_are_refused(flag, folder):
    assert "plans for one process" in refusal(plan, "--minutes", "5", *flag)


def test_of_several_devices_one_is_used(speed, folder):
    speed(0.05)
    assert plan("--minutes", "5").config.trainer.devices == 1
    assert plan("--minutes", "5", "--trainer.devices", "[0]").config.trainer.devices == [0]


def test_what_was_chosen_is_not_called_given(speed, folder):
    speed(0.05)
    request = parse([], [*TEXT, "--minutes", "5"])
    lines = dict(planned(request, time.perf_counter())[1])
    assert "given" not in "".join(lines.values())
    request = parse([], [*TEXT, "--minutes", "5", "--trainer.max_steps", "50"])
    assert dict(planned(request, time.perf_counter())[1])["steps"].endswith("given")


def test_one_of_several_processes_is_refused(folder, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "plans for one process" in refusal(plan, "--minutes", "5")


def test_the_run_is_named_after_the_text_and_the_minutes(folder):
    for corpus, name in (("my text.txt", "my-text-1.5min"), ("data/*.*", "text-1.5min")):
        assert parse([], ["--data.corpus", corpus, "--minutes", "1.5"]).run == name


def test_trial_steps_are_timed_for_every_size_of_windows_and_leave_no_files(folder):
    schedule = "[[0,0.5],[0.5,1]]"
    before = sorted(Path().rglob("*"))
    request = parse([], [*TEXT, *TINY, "--minutes", "1", "--data.window_schedule", schedule])
    measured = measure(request)
    assert 0 < measured.seconds_per_step < 5
    assert 0 < measured.seconds_to_start < 30
    new = [path for path in sorted(Path().rglob("*")) if path not in before]
    assert not [path for path in new if path.parts[0] != "data"]  # the encoded text


def test_a_run_is_planned_once(folder, main, monkeypatch):
    """The same command resumes it, also on a machine of another speed; another time is refused."""
    command = ["fit", *TEXT, "--minutes", "1", *TINY, "--generate.stop", "1e5"]
    command += ["--trainer.max_steps", "20"]
    done = main(*command)
    assert done.code == 0, done.err
    assert "over the training text" in done.err
    run = folder / "logs" / "text-1min"
    plan = yaml.safe_load((run / "config.yaml").read_text())
    assert plan["minutes"] == 1
    assert plan["trainer"]["max_steps"] == 20
    assert plan["model"]["n_embd"] == 16
    assert plan["model"]["ngram_rows"]

    monkeypatch.delattr(fit_minutes, "measure")
    assert "finished: 20 steps" in main(*command).out
    command[-1] = "30"
    extended = main(*command)
    assert extended.code == 0
    assert "resuming text-1min at step 20 of 30" in extended.err
    after = yaml.safe_load((run / "config.yaml").read_text())
    assert plan["generate"]["stop"] == "1e5"
    plan["trainer"]["max_steps"] = 30
    assert after == plan

    command[command.index("1")] = "2"
    other = main(*command, "--run", "text-1min")
    assert other.code == 2
    assert "was started with --minutes 1" in other.err


def test_the_network_of_init_from_is_kept(folder, main):
    assert main("fit", "--config", "tiny.yaml").code == 0
    source = ["--init_from", "logs/tiny/checkpoints/best.ckpt"]
    command = ["fit", *TEXT, "--minutes", "1", "--compile", "false", "--trainer.max_steps", "20"]
    done = main(*command, *source)
    assert done.code == 0, done.err
    plan = yaml.safe_load((folder / "logs" / "text-1min" / "config.yaml").read_text())
    assert {name: plan["model"][name.removeprefix("model.")] for name in SIZES} == dict(
        zip(SIZES, (16, 1, 2), strict=True)
    )
