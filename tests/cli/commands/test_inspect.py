"""Laws of inspect: a screen for people or JSON for programs, of the text that the config names."""

import json

import pytest

from tests.helpers import is_error


def test_json_has_what_the_screen_shows(folder, main):
    n = len((folder / "text.txt").read_text())
    command = ("inspect", "--data.corpus", "text.txt")
    screen, found = main(*command).out, json.loads(main(*command, "--json").out)
    assert found["characters"] == n
    assert f"{n:,} characters" in screen
    assert {b["name"] for b in found["baselines"]["results"]} >= {"uniform", "xz", "bzip2"}
    assert "uniform" in screen


def test_without_baselines_none_are_measured(folder, main):
    command = ("inspect", "--data.corpus", "text.txt", "--baselines", "false")
    assert json.loads(main(*command, "--json").out)["baselines"] is None
    assert "uniform" not in main(*command).out


def test_it_ends_with_what_fit_would_choose_for_more_and_more_minutes(folder, main):
    command = ("inspect", "--data.corpus", "text.txt", "--baselines", "false")
    plans = json.loads(main(*command, "--json").out)["plans"]
    assert list(plans) == ["3", "10", "30"]
    widths = [plan["model.n_embd"] for plan in plans.values()]
    assert widths == sorted(widths)
    lines = main(*command).out.splitlines()[-3:]
    for line, (minutes, plan) in zip(lines, plans.items(), strict=True):
        assert f"fit --minutes {minutes} " in line
        assert f"{plan['trainer.max_steps']:,} steps" in line


def test_a_text_that_is_not_split_has_no_plan(folder, main):
    command = ("inspect", "--data.corpus", "text.txt", "--baselines", "false")
    command = (*command, "--data.splits", "[1.0]")
    assert json.loads(main(*command, "--json").out)["plans"] == {}
    assert "fit --minutes" not in main(*command).out


def test_the_text_and_its_splits_come_from_the_config_of_a_run(folder, main):
    (folder / "mine.yaml").write_text(
        "data: {corpus: text.txt, splits: [0.5, 0.5], block_size: 16}\nmodel: {n_layer: 3}\n"
    )
    command = ("inspect", "--config", "mine.yaml", "--baselines", "false", "--json")
    assert boundaries(main(*command).out) == [1 / 2, 1]
    assert boundaries(main(*command, "--data.splits", "[0.25,0.25,0.5]").out) == [1 / 4, 1 / 2, 1]


def boundaries(out: str) -> list[float]:
    """Where the splits end, as fractions of the text."""
    found = json.loads(out)
    ends = dict.fromkeys(s["last"] for s in found["splits"])
    return [pytest.approx(end / found["characters"], abs=1e-3) for end in ends]


def test_a_missing_text_is_one_line(folder, main):
    is_error(main("inspect", "--data.corpus", "nope.txt"), "nope.txt")
