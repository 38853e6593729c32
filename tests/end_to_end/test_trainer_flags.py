"""Every flag of Lightning's Trainer: a right value works, a wrong one is one line in our words.

So are the options of the classes that a flag names: callbacks, loggers, profilers and strategies.
"""

import inspect
import re

import pytest
import yaml
from lightning.pytorch import Trainer

from tests.helpers import is_error

# flag: a wrong value, what the line says about it, and a right value
FLAGS = {
    "accelerator": ("gpux", "use one of auto, cpu", "cpu"),
    "strategy": ("ddpp", "did you mean ddp?", "single_device"),
    "devices": ("0", "give a number of", "1"),
    "num_nodes": ("0", "give a whole number above 0", "1"),
    "precision": ("12", "give one of 32-true, bf16-mixed", "bf16-mixed"),
    "logger": ("tensorboard", "did you mean TensorBoardLogger?", "true"),
    "callbacks": ("EarlyStop", "did you mean EarlyStopping?", "LearningRateMonitor"),
    "fast_dev_run": ("-1", "give true, or a number of batches", "2"),
    "max_epochs": ("3", "--trainer.max_steps", "-1"),
    "min_epochs": ("3", "--trainer.max_steps", "0"),
    "max_steps": ("0", "at least 1", "1"),
    "min_steps": ("-5", "give a whole number, 0 or more", "1"),
    "max_time": ("5m", "such as 00:00:30:00", "00:00:30:00"),
    "limit_train_batches": ("0.5", "whole number of batches", "4"),
    "limit_val_batches": ("1.5", "a fraction such as 0.5", "0.5"),
    "limit_test_batches": ("-1", "a fraction such as 0.5", "1"),
    "limit_predict_batches": ("-1", "a fraction such as 0.5", "1"),
    "overfit_batches": ("-1", "give a whole number of batches", "2"),
    "val_check_interval": ("0.5", "give a whole number of batches", "1"),
    "check_val_every_n_epoch": ("1", "--trainer.val_check_interval", "null"),
    "num_sanity_val_steps": ("2", "--trainer.fast_dev_run true", "0"),
    "log_every_n_steps": ("0", "at least 1", "1"),
    "enable_checkpointing": ("false", "--trainer.fast_dev_run true", "true"),
    "enable_progress_bar": ("maybe", "true or false", "false"),
    "enable_model_summary": ("maybe", "true or false", "true"),
    "accumulate_grad_batches": ("0", "give a whole number above 0", "1"),
    "gradient_clip_val": ("-1", "0 for no limit", "1"),
    "gradient_clip_algorithm": ("clip", "give norm or value", "value"),
    "deterministic": ("maybe", "true or false", "warn"),
    "benchmark": ("maybe", "true or false", "true"),
    "inference_mode": ("maybe", "true or false", "false"),
    "use_distributed_sampler": ("maybe", "true or false", "true"),
    "profiler": ("fast", "give simple, advanced or pytorch", "simple"),
    "detect_anomaly": ("maybe", "true or false", "true"),
    "barebones": ("true", "benchmarks/", "false"),
    "plugins": ("AsyncCheckpointIO", "a plugin of its own", "LightningEnvironment"),
    "sync_batchnorm": ("maybe", "true or false", "true"),
    "reload_dataloaders_every_n_epochs": ("-1", "give a whole number, 0 or more", "1"),
    "default_root_dir": ("text.txt", "give a folder", "elsewhere"),
    "enable_autolog_hparams": ("maybe", "true or false", "false"),
    "model_registry": ("mine", "leave it out", "null"),
}
FIT = ("fit", "--config", "tiny.yaml", "--trainer.max_steps", 1, "--trainer.val_check_interval", 1)
TRIAL = (*FIT, "--trainer.fast_dev_run", "true")
MONITOR = ("--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor", "val/loss")
# words of jsonargparse, Lightning and Python that say nothing to a user
FOREIGN = r"give null|Namespace|NestedArg|Union|MisconfigurationException|lightning\.ai|<class|`"


def one_line(done, *words: str) -> None:
    is_error(done, *words)
    assert not re.search(FOREIGN, done.err), done.err


def test_every_flag_of_the_trainer_is_in_the_table():
    assert set(inspect.signature(Trainer).parameters) == set(FLAGS)


@pytest.mark.parametrize("name", FLAGS)
def test_a_wrong_value_is_one_line_with_the_flag_and_a_right_value(folder, main, name):
    wrong, needed, _ = FLAGS[name]
    one_line(main(*FIT, f"--trainer.{name}", wrong), f"--trainer.{name}", needed)
    assert not list(folder.glob("logs/*/checkpoints/*"))


@pytest.mark.parametrize("name", FLAGS)
def test_a_right_value_works(folder, main, name):
    done = main(*TRIAL, f"--trainer.{name}", FLAGS[name][2])
    assert done.code == 0, done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize("command", ["validate", "predict"])
@pytest.mark.parametrize(
    "name",
    [
        *("accelerator", "strategy", "devices", "num_nodes", "precision", "logger", "callbacks"),
        *("profiler", "max_time", "limit_val_batches", "limit_predict_batches", "barebones"),
    ],
)
def test_the_other_commands_give_the_same_lines(in_trained, main, command, name):
    wrong, needed, right = FLAGS[name]
    run = (command, "--run", "tiny", *(["--prompt", "o"] if command == "predict" else []))
    one_line(main(*run, f"--trainer.{name}", wrong), f"--trainer.{name}", needed)
    if name != "logger":  # it would write into the folder
        done = main(*run, f"--trainer.{name}", right)
        assert done.code == 0, done.err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ((*MONITOR, "--trainer.callbacks.patience", "abc"), ["patience is abc", "a whole number"]),
        (
            (*MONITOR, "--trainer.callbacks.patienc", 3),
            ["did you mean --trainer.callbacks.patience"],
        ),
        (MONITOR[:1], ["--trainer.callbacks.monitor is required"]),
        (("--trainer.callbacks", "EarlyStopping"), ["--trainer.callbacks.monitor is required"]),
        (
            ("--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.every_n_epochs", -3),
            ["--trainer.callbacks ModelCheckpoint", "every_n_epochs=-3"],
        ),
        (
            ("--trainer.callbacks+=LearningRateMonitor", "--trainer.callbacks.logging_interval", 3),
            ["--trainer.callbacks.logging_interval is 3", "'step', 'epoch'"],
        ),
        (("--trainer.callbacks+=torch.nn.Linear",), ["torch.nn.Linear is not a Callback"]),
        (("--trainer.callbacks+=torch.nn.Linearr",), ["there is no class torch.nn.Linearr"]),
        (("--trainer.callbacks", 3), ["there is no class 3", "EarlyStopping"]),
        (
            ("--trainer.callbacks+=StochasticWeightAveraging", "--trainer.callbacks.swa_lrs", 0.1),
            ["StochasticWeightAveraging is not supported", "--optim.average_decay"],
        ),
        (("--trainer.callbacks+=BackboneFinetuning",), ["BackboneFinetuning", "--init_from"]),
        (("--trainer.logger", "CSVLogger"), ["--trainer.logger.save_dir is required"]),
        (("--trainer.logger.save_dir", "x"), ["first give --trainer.logger"]),
        (("--trainer.plugins", "DoublePrecision"), ["DoublePrecision", "--trainer.precision"]),
        (
            ("--trainer.strategy", "fsdp", "--trainer.accelerator", "cpu"),
            ["fsdp needs a GPU", "--trainer.strategy ddp"],
        ),
        (("--trainer.max_time", "99999999999:00:00:00"), ["--trainer.max_time", "such as"]),
        (("--trainer.devices", 99999999999999999999), ["--trainer"]),
        (("--trainer.strategy", "FSDPStrategy"), ["did you mean fsdp?"]),
        (
            ("--trainer.strategy", "DDPStrategy", "--trainer.strategy.timeout", "abc"),
            ["--trainer.strategy.timeout is abc", "a time"],
        ),
        (("--trainer.min_steps", 5), ["--trainer.min_steps 5 is more than --trainer.max_steps 1"]),
        (("--trainer.max_time", "{mins: 5}"), ["--trainer.max_time", "such as 00:00:30:00"]),
        (("--trainer.max_time", "00:00:00:00"), ["--trainer.max_time", "above 0"]),
        (("--optim.learning_rate", "1e38"), ["--optim.learning_rate", "at most 100"]),
    ],
    ids=lambda x: "" if isinstance(x, list) else " ".join(map(str, x)),
)
def test_what_is_typed_by_mistake_is_one_line(folder, main, flags, words):
    one_line(main(*FIT, *flags), *words)


def test_an_error_inside_a_class_of_lightning_names_its_option(folder, main):
    flags = ("--trainer.callbacks+=ModelSummary", "--trainer.callbacks.max_depth", -5)
    is_error(main(*FIT, *flags), "--trainer.callbacks ModelSummary", "max_depth", "--debug true")


@pytest.mark.parametrize(
    "flag", ["profiler=xla", "profiler=XLAProfiler", "plugins=XLACheckpointIO"]
)
def test_a_package_that_is_missing_is_named_and_nothing_else_is_printed(folder, main, flag):
    done = main(*FIT, f"--trainer.{flag}")
    assert done.err == "error: the package torch_xla is not installed: pip install torch_xla\n"


@pytest.mark.parametrize(
    ("flag", "report"),
    [
        ("profiler=simple", "FIT Profiler Report"),
        ("profiler=advanced", "cumtime"),
        ("enable_model_summary=true", "Trainable params"),
        ("callbacks+=ModelSummary", "Trainable params"),
        ("callbacks+=RichModelSummary", "Trainable params"),
    ],
)
def test_a_report_that_is_asked_for_is_on_standard_error_and_no_other_message_is(
    folder, main, flag, report
):
    if "Rich" in flag:
        pytest.importorskip("rich")
    plain, done = main(*TRIAL), main(*TRIAL, f"--trainer.{flag}")
    assert report in done.err
    assert report not in done.out
    assert len(done.out.split("\n")) == len(plain.out.split("\n"))
    for chatter in ("GPU available", "Running in `fast_dev_run`", "stopped: `max_steps"):
        assert chatter not in done.err


@pytest.mark.parametrize("stop", ["1e5", "null", "--", "-x", "[1]", "true", "a: b"])
def test_the_text_at_which_generation_stops_is_taken_literally(folder, main, stop):
    assert main(*FIT, "--generate.stop", stop).code == 0
    config = folder / "logs/tiny/config.yaml"
    assert yaml.safe_load(config.read_text())["generate"]["stop"] == stop
    assert main("fit", "--config", config).code == 0  # read back as the same text
    assert yaml.safe_load(config.read_text())["generate"]["stop"] == stop
