"""What people type after --trainer: it works as in Lightning, or one line says what to do."""

import os
import subprocess
import sys
from datetime import timedelta

import pytest
import yaml
from lightning.fabric.plugins.environments.lightning import find_free_network_port

from lightning_app.cli.commands import fit
from tests.helpers import MAIN, is_error

FIT = ("fit", "--config", "tiny.yaml", "--trainer.max_steps", 2, "--trainer.val_check_interval", 2)
MONITOR = "--trainer.callbacks.monitor"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--trainer.callbacks+=EarlyStopping", MONITOR, "val_loss"), ["did you mean val/loss?"]),
        (("--trainer.callbacks+=ModelCheckpoint", MONITOR, "nope"), ["monitors nope", "val/loss"]),
        (("--trainer.callbacks+=LearningRateFinder",), ["LearningRateFinder", "learning_rate"]),
        (("--trainer.callbacks+=BatchSizeFinder",), ["BatchSizeFinder", "--data.batch_size"]),
        (
            (
                "--trainer.callbacks+=GradientAccumulationScheduler",
                "--trainer.callbacks.scheduling={0: 2}",
            ),
            ["--trainer.accumulate_grad_batches"],
        ),
        (("--trainer.logger", "MLFlowLogger"), ["mlflow", "pip install"]),
        (("--trainer.precision", "transformer-engine"), ["transformer_engine", "pip install"]),
        (("--trainer.strategy", "ddp_spawn", "--trainer.devices", 2), ["--trainer.strategy ddp"]),
        (("--trainer.strategy", "ddp_notebook"), ["--trainer.strategy ddp"]),
        (("--trainer.limit_train_batches", 0.5), ["limit_train_batches is 0.5", "max_steps"]),
        (("--trainer.limit_train_batches", 0), ["limit_train_batches is 0", "max_steps"]),
        (("--trainer.barebones", "true"), ["barebones"]),
    ],
    ids=lambda x: "" if isinstance(x, list) else " ".join(map(str, x)),
)
def test_a_flag_that_cannot_work_is_one_line_with_the_remedy(folder, main, flags, words):
    is_error(main(*FIT, *flags), *words)
    assert not list(folder.glob("logs/*/checkpoints/*"))


def test_a_run_on_two_machines_says_what_it_waits_for_and_gives_up(folder, main, monkeypatch):
    monkeypatch.setattr(fit, "MEETING_LIMIT", timedelta(seconds=1))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")  # restored afterwards: Lightning sets both
    monkeypatch.setenv("MASTER_PORT", str(find_free_network_port()))
    done = main(*FIT, "--trainer.num_nodes", 2)
    assert "until 2 processes on 2 machines have connected to 127.0.0.1" in done.err
    is_error(done, "did not find each other", "--trainer.num_nodes")


@pytest.mark.parametrize(
    "flags",
    [
        ("--trainer.callbacks+=EarlyStopping", MONITOR, "val/loss"),
        ("--trainer.callbacks+=Timer", "--trainer.callbacks.duration", "00:00:00:30"),
        ("--trainer.callbacks+=TQDMProgressBar",),
        ("--trainer.fast_dev_run", "true", "--trainer.callbacks+=LearningRateMonitor"),
    ],
    ids=lambda x: " ".join(map(str, x)),
)
def test_lightnings_own_callbacks_work_by_their_short_names(folder, main, flags):
    done = main(*FIT, *flags)
    assert done.code == 0, done.err
    for config in folder.glob("logs/*/config.yaml"):
        yaml.safe_load(config.read_text())
        assert main("fit", "--config", config).code == 0  # the run's own config resumes it


@pytest.mark.parametrize(("limit", "characters"), [("1", 32), ("2", 64), ("1.0", 185)])
def test_a_whole_number_of_validation_batches_is_a_number_and_1_0_is_all(
    folder, main, limit, characters
):
    assert main(*FIT).code == 0
    few = ("--data.batch_size", 2, "--trainer.limit_val_batches", limit)
    done = main("validate", *few, "--baselines", "false")
    assert int(done.out.split("characters ")[1].split()[0]) == characters


@pytest.mark.skipif(os.name != "posix", reason="a locale of POSIX systems")
@pytest.mark.parametrize("option", ["--prompt", "--run"])
def test_arguments_are_utf8_in_every_locale(trained, option):
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, str(MAIN), "predict", option, "é"],
        cwd=trained.folder,
        env=os.environ | locale,
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert "é" in done.stderr.decode()


@pytest.mark.skipif(os.name != "posix", reason="closed by a POSIX shell")
def test_a_prompt_from_a_closed_standard_input_is_one_line(trained):
    done = subprocess.run(
        f"{sys.executable} {MAIN} predict --prompt_file - <&-",
        cwd=trained.folder,
        shell=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: --prompt_file -: there is no standard input")


@pytest.mark.parametrize("module", ["lightning_app", "lightning_app.cli"])
def test_the_package_is_a_command_too(trained, module):
    done = subprocess.run(
        [sys.executable, "-m", module, "--help"],
        env=os.environ | {"PYTHONPATH": str(MAIN.parent)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0
    assert "usage" in done.stdout
