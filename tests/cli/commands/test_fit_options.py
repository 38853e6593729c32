"""Laws of fit's options: every config is understood, and a run's config.yaml means the same run."""

import os
from pathlib import Path

import pytest
import torch
import yaml

from lightning_app.cli.commands.fit_options import (
    DERIVED_DATA,
    DERIVED_MODEL,
    NOT_SAVED,
    TRAINER_DEFAULTS,
    FitCLI,
    FitRequest,
    parse,
)
from lightning_app.cli.configs import shipped_configs
from tests.helpers import refusal


def request(*args: str, configs: tuple[str, ...] = ("tiny.yaml",)) -> FitRequest:
    return parse([Path(name) for name in configs], list(args))


@pytest.mark.parametrize("path", shipped_configs(), ids=lambda p: p.stem)
def test_every_shipped_config_is_understood(path):
    config = FitCLI([path], []).config
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    for group in ("data", "model", "optim", "schedule"):
        for name, value in values.get(group, {}).items():
            assert getattr(config[group], name) == value, f"{group}.{name}"
    assert config.trainer.max_steps > 0


def plain(asked: FitRequest) -> dict:
    values = yaml.safe_load(asked.parser.dump(asked.config, skip_validation=True))
    return {name: value for name, value in values.items() if name not in NOT_SAVED}


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["--model.n_layer", "3", "--optim.final_weight_decay", "0.5"],
        ["--data.window_schedule", "[[0,0.5],[0.5,1]]", "--data.splits", "[0.9,0.1]"],
        ["--generate.stop", "END", "--compile", "false", "--seed_everything", "0"],
        ["--trainer.callbacks+=LearningRateMonitor", "--trainer.logger", "false"],
    ],
)
def test_config_yaml_of_a_request_is_the_same_request(folder, args):
    asked = request(*args)
    (folder / "again.yaml").write_text(asked.config_yaml())
    again = request(configs=("again.yaml",))
    assert plain(again) == plain(asked)
    assert again.config_yaml() == asked.config_yaml()


def test_config_yaml_has_nothing_that_concerns_one_call(folder):
    asked = request("--run", "mine", "--fresh", "true", "--debug", "true", "--ckpt_path", "a.ckpt")
    assert not set(NOT_SAVED) & set(yaml.safe_load(asked.config_yaml()))


def test_the_run_is_the_option_or_the_last_configs_name(folder):
    (folder / "more.yaml").write_text("optim: {beta1: 0.8}")
    assert request().run == "tiny"
    assert request(configs=("tiny.yaml", "more.yaml")).run == "more"
    asked = request("--run", "mine")
    assert (asked.run, asked.folder) == ("mine", Path("logs/mine"))


def test_later_options_win_over_earlier_and_the_command_line_over_all(folder):
    (folder / "more.yaml").write_text("model: {n_layer: 5, n_embd: 32}\ndata: {block_size: 8}")
    config = request("--model.n_embd", "64", configs=("tiny.yaml", "more.yaml")).config
    assert (config.model.n_layer, config.model.n_embd, config.data.block_size) == (5, 64, 8)
    assert config.data.batch_size == 8  # of the first config


def test_what_follows_from_other_options_is_none_of_its_own(folder):
    config = request().config
    assert not DERIVED_DATA & set(vars(config.data))
    assert not DERIVED_MODEL & set(vars(config.model))
    for name in ("alphabet", "unit", "compile_network"):
        assert f"--model.{name}" in refusal(request, f"--model.{name}", "x")


def test_training_is_counted_in_steps(folder):
    (folder / "empty.yaml").write_text("# nothing\n")
    trainer = request(configs=("empty.yaml",)).config.trainer
    assert {name: trainer[name] for name in TRAINER_DEFAULTS} == TRAINER_DEFAULTS
    assert trainer.max_epochs is None


def test_parsing_does_not_seed_the_process(folder, monkeypatch):
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    before = torch.get_rng_state()
    request("--seed_everything", "5")
    assert torch.equal(torch.get_rng_state(), before)
    assert "PL_GLOBAL_SEED" not in os.environ


def test_the_trainers_flags_are_checked(folder):
    assert "--trainer.max_steps" in refusal(request, "--trainer.max_epochs", "3")


@pytest.mark.parametrize(("flag", "dev"), [("false", False), ("true", True), ("3", True)])
def test_a_dev_run_is_recognised(folder, flag, dev):
    assert request("--trainer.fast_dev_run", flag).dev_run is dev
