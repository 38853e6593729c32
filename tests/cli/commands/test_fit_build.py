"""Laws of what fit builds: when it compiles, what a checkpoint says of the run, which callbacks."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loggers.logger import DummyLogger

from lightning_app import hardware
from lightning_app.cli.commands import fit_build
from lightning_app.cli.commands.fit_build import (
    COMPILE_SECONDS,
    Job,
    Plan,
    as_list,
    build,
    first_line,
    plan,
)
from lightning_app.cli.commands.fit_options import parse
from lightning_app.model.gpt import GPTConfig
from lightning_app.runs.resume import INEXACT, MAY_CHANGE, MUST_MATCH, Start
from lightning_app.training.callbacks.progress_bar import TrainingProgressBar
from lightning_app.training.callbacks.stopping import StopWithoutImprovement, TimeLimit
from tests.helpers import refusal

NETWORK = GPTConfig(vocab_size=11, block_size=16, n_layer=1, n_head=2, n_embd=16)


def built(*args: str, start: Start | None = None) -> Job:
    return build(parse([Path("tiny.yaml")], list(args)), start or Start(), None)


# Compiling.


@pytest.fixture
def planned(monkeypatch):
    """The plan of a run whose steps take so many seconds, compiled: planned(seconds, compile)."""

    def planned(seconds: float, compile="auto", can_compile=True, dev_run=False, share=1.0):
        flops = 100 * 8 * 16 * NETWORK.flops_per_character()
        monkeypatch.setattr(hardware, "can_compile", lambda accelerator: can_compile)
        speed = hardware.MatmulSpeed(1e11, share)
        monkeypatch.setattr(hardware, "matmul_speed", lambda *args: speed)
        monkeypatch.setattr(hardware, "seconds_per_flop", lambda *args: seconds / flops)
        config = SimpleNamespace(
            compile=compile,
            trainer=SimpleNamespace(max_steps=50, accumulate_grad_batches=2),
            data=SimpleNamespace(batch_size=8, block_size=16, window_schedule=[[0, 1]]),
        )
        return plan(config, NETWORK, "cpu", "32-true", dev_run)

    return planned


PAYS = (
    10 * COMPILE_SECONDS / hardware.UNCOMPILED_TIME
)  # seconds from which compiling wins ten times what it takes


@pytest.mark.parametrize(
    ("seconds", "options", "compiled"),
    [
        (1.01 * PAYS, {}, True),
        (0.99 * PAYS, {}, False),
        (9 * PAYS, {"can_compile": False}, False),
        (9 * PAYS, {"dev_run": True}, False),
        (9 * PAYS, {"compile": False}, False),
        (0.01 * PAYS, {"compile": True}, True),
        (2 * PAYS, {"share": 0.49}, False),  # the same arithmetic on a busy machine
    ],
)
def test_a_run_is_compiled_where_it_pays_or_is_asked_for(planned, seconds, options, compiled):
    expected = seconds if compiled else hardware.UNCOMPILED_TIME * seconds
    assert planned(seconds, **options) == Plan(
        compiled, pytest.approx(expected), options.get("share", 1.0)
    )


def test_compiling_without_a_compiler_is_refused_if_asked_for(planned):
    assert "--compile true finds no C++ compiler" in refusal(
        planned, 1.0, compile=True, can_compile=False
    )


# What a checkpoint says.


def test_the_same_command_has_the_same_facts(folder):
    assert built().facts == built().facts


def test_every_fact_that_is_compared_is_there(folder):
    facts = built().facts
    names = {name for name, _ in MUST_MATCH} | {*MAY_CHANGE, *INEXACT}
    assert names <= set(facts)
    assert {"corpus", "fingerprint", "origin", "patience_of"} == set(facts) - names


@pytest.mark.parametrize(
    ("args", "changed"),
    [
        (["--model.n_layer", "2"], {"network"}),
        (["--model.dropout", "0.1"], {"dropout"}),
        (["--data.block_size", "8"], {"block_size"}),
        (["--data.batch_size", "4", "--trainer.accumulate_grad_batches", "2"], {"accumulate"}),
        (["--optim.name", "adamw"], {"optimizer"}),
        (["--optim.learning_rate", "1"], {"optim"}),
        (["--schedule.name", "cosine"], {"schedule"}),
        (["--trainer.logger", "false"], {"logger"}),
        (["--trainer.precision", "64-true"], {"precision"}),
        (["--seed_everything", "5"], {"seed"}),
        (["--early_stopping_patience", "5"], {"patience", "patience_of"}),
        (["--checkpoint_every_steps", "5"], {"intervals"}),
        (["--run", "other", "--debug", "true", "--generate.top_k", "2"], set()),
    ],
)
def test_an_option_changes_its_fact_and_no_other(folder, args, changed):
    one, other = built().facts, built(*args).facts
    assert {name for name in one if one[name] != other[name]} == changed


def test_the_initial_weights_follow_from_the_seed(folder):
    one, same, other = (built("--seed_everything", seed).model.gpt for seed in ("1", "1", "2"))
    weights = [gpt.embedding.weight for gpt in (one, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_on_a_cpu_a_run_is_deterministic_unless_asked_otherwise(folder):
    for args, expected in (([], True), (["--trainer.deterministic", "false"], False)):
        built("--trainer.accelerator", "cpu", *args)
        assert torch.are_deterministic_algorithms_enabled() is expected
    torch.use_deterministic_algorithms(False)


def test_what_cannot_be_trained_on_is_refused_before_a_run_is_begun(folder):
    assert "train split is empty" in refusal(built, "--data.splits", "[0,1]")
    assert "val split is empty" in refusal(built, "--data.splits", "[1]")
    assert "top_k" in refusal(built, "--generate.sampling", "argmax")
    assert not list(folder.glob("logs/*"))


# Callbacks and loggers.


def kinds(job: Job) -> set[type]:
    return {type(callback) for callback in job.trainer.callbacks}


def test_callbacks_follow_from_the_options(folder):
    optional = {TrainingProgressBar, StopWithoutImprovement, TimeLimit}
    assert kinds(built()) & optional == {TrainingProgressBar}
    job = built("--early_stopping_patience", "3", "--trainer.max_time", "00:00:00:01")
    assert kinds(job) & optional == optional
    assert not kinds(built("--trainer.enable_progress_bar", "false")) & optional


def test_checkpoints_are_in_the_runs_folder_at_the_interval_that_is_asked_for(folder):
    job = built("--run", "mine", "--checkpoint_every_steps", "7")
    assert job.checkpoints.folder == Path("logs/mine/checkpoints")
    assert (job.checkpoints.every_steps, job.checkpoints.every_seconds) == (7, None)
    assert job.checkpoints in job.trainer.callbacks


def test_tensorboard_is_the_logger_unless_the_flag_says_otherwise(folder):
    (board,) = built("--run", "mine").trainer.loggers
    assert isinstance(board, TensorBoardLogger)
    assert Path(board.log_dir) == Path("logs/mine")
    csv = built("--trainer.logger=CSVLogger", "--trainer.logger.save_dir=csv").trainer.loggers
    assert [type(x) for x in csv] == [CSVLogger]
    assert csv[0].log_dir == "csv/lightning_logs/tiny"  # one table a run
    assert built("--trainer.logger=false").trainer.loggers == []
    (nothing,) = built("--trainer.fast_dev_run=true").trainer.loggers
    assert isinstance(nothing, DummyLogger)  # writes nothing; some callbacks need a logger


@pytest.mark.parametrize(("given", "expected"), [(None, []), ([], []), (3, [3]), ((1, 2), [1, 2])])
def test_one_thing_several_or_none_is_a_list(given, expected):
    assert as_list(given) == expected


def test_the_samples_prompt_is_the_validation_texts_first_line(folder):
    line = "first line, longer than a block\n"
    (folder / "text.txt").write_text("ab\n" + "x" * 197 + line + "x" * (200 - len(line)))
    job = built("--data.splits", "[0.5,0.5]")
    assert first_line(job.data, job.model) == "first line, long\n"  # a block is 16 characters


def test_slurm_does_not_requeue_by_itself(monkeypatch):
    monkeypatch.setattr(fit_build.SLURMEnvironment, "detect", lambda: True)
    monkeypatch.setattr(fit_build.TorchElasticEnvironment, "detect", lambda: False)
    slurm, _ = fit_build.plugins()
    assert slurm.auto_requeue is False


@pytest.mark.parametrize(("rows", "fact"), [("null", None), ("[20]", [20])])
def test_n_gram_tables_are_a_fact_and_have_counted_the_training_text(folder, rows, fact):
    job = built("--model.ngram_rows", rows)
    assert job.facts["network"]["ngram_rows"] == fact
    if fact:
        assert int(job.model.gpt.ngrams.counts.sum()) == len(job.data.ids("train")) - 2
