"""Laws of fit: the same command again resumes, extends, refuses, or says that nothing is left."""

from pathlib import Path

import pytest

from lightning_app.runs.folders import lock_run
from tests.helpers import checkpoint, is_error

FIT = ("fit", "--config", "tiny.yaml", "--trainer.max_steps", 4, "--trainer.val_check_interval", 2)


def step(folder: Path, run: str = "tiny", name: str = "last") -> int:
    return checkpoint(folder, run, name)["lightning_app"]["step"]


def test_the_same_command_again_says_that_the_run_is_finished(folder, main):
    assert main(*FIT).code == 0
    before = {p: p.read_bytes() for p in folder.glob("logs/tiny/checkpoints/*")}
    for fewer in ((), ("--trainer.max_steps", 3)):
        done = main(*FIT, *fewer)
        assert done.code == 0
        assert "run tiny is finished: 4 steps" in done.out
        assert "best val/loss" in done.out
    assert {p: p.read_bytes() for p in folder.glob("logs/tiny/checkpoints/*")} == before


def test_more_steps_and_other_rates_extend_a_run_and_are_reported(folder, main):
    assert main(*FIT).code == 0
    done = main(*FIT, "--trainer.max_steps", 6, "--optim.learning_rate", 0.001)
    assert done.code == 0
    assert "resuming tiny at step 4 of 6" in done.err
    assert "changed: max_steps: 4 -> 6" in done.err
    assert "changed: optim.learning_rate: 0.003 -> 0.001" in done.err
    assert step(folder) == 6
    state = checkpoint(folder, "tiny")
    groups = {g["name"]: g for g in state["optimizer_states"][0]["param_groups"]}
    assert groups["head"]["peak_lr"] == 0.001
    assert "learning_rate: 0.001" in (folder / "logs/tiny/config.yaml").read_text()


def test_another_number_of_threads_or_precision_is_reported_as_not_bit_exact(folder, main):
    assert main(*FIT, "--trainer.precision", "32-true").code == 0
    done = main(*FIT, "--trainer.precision", "64-true", "--trainer.max_steps", 5)
    assert done.code == 0
    assert "not bit-exact: precision: 32-true -> 64-true" in done.err


def test_a_run_that_was_trained_with_something_else_is_refused_and_kept(folder, main):
    assert main(*FIT).code == 0
    before = (folder / "logs/tiny/checkpoints/last.ckpt").read_bytes()
    is_error(main(*FIT, "--data.block_size", 8), "data.block_size: 16 -> 8", "--run", "--fresh")
    is_error(main(*FIT, "--model.n_layer", 2), "model.n_layer: 1 -> 2")
    is_error(main(*FIT, "--seed_everything", 3), "seed_everything: 1337 -> 3")
    assert (folder / "logs/tiny/checkpoints/last.ckpt").read_bytes() == before


def test_fresh_moves_the_old_run_aside_and_starts_anew(folder, main):
    assert main(*FIT).code == 0
    before = (folder / "logs/tiny/checkpoints/best.ckpt").read_bytes()
    done = main(*FIT, "--trainer.max_steps", 3, "--fresh", "true", "--data.block_size", 8)
    assert done.code == 0
    assert step(folder) == 3
    (aside,) = folder.glob("logs/tiny.*")
    assert aside.name in done.err
    assert (aside / "checkpoints/best.ckpt").read_bytes() == before


def test_a_damaged_last_checkpoint_is_replaced_by_the_one_before(folder, main):
    assert main(*FIT, "--checkpoint_every_steps", 1).code == 0
    last = folder / "logs/tiny/checkpoints/last.ckpt"
    last.write_bytes(last.read_bytes()[:1000])
    done = main(*FIT)
    assert done.code == 0
    assert "damaged" in done.err
    assert "previous.ckpt" in done.err
    assert "resuming tiny at step 3 of 4" in done.err
    assert step(folder) == 4


def test_a_run_in_use_is_refused_and_free_afterwards(folder, main):
    held = lock_run("tiny")
    is_error(main(*FIT), "tiny", "another process", "--run")
    held.release()
    is_error(main(*FIT, "--data.corpus", "nope.txt"), "nope.txt")
    lock_run("tiny").release()  # a command that fails does not keep it


def test_fast_dev_run_touches_no_run_folder(folder, main):
    assert main(*FIT, "--trainer.fast_dev_run", "true").code == 0
    assert not list(folder.glob("logs/*"))


def test_every_fit_ends_with_a_validation_however_short(folder, main):
    assert main(*FIT, "--trainer.max_steps", 3).code == 0
    assert step(folder, name="best") in (2, 3)
    assert main(*FIT, "--run", "one", "--trainer.max_steps", 1).code == 0
    assert step(folder, "one", "best") == 1


def test_a_run_may_start_from_another_runs_file_but_is_not_overwritten_by_it(folder, main):
    for run in ("one", "other"):
        assert main(*FIT, "--run", run).code == 0
    before = (folder / "logs/one/checkpoints/last.ckpt").read_bytes()
    on = (*FIT, "--trainer.max_steps", 6, "--ckpt_path", "logs/other/checkpoints/last.ckpt")
    is_error(main(*on, "--run", "one"), "run one already has checkpoints", "--run OTHER")
    assert main(*on, "--run", "one", "--trainer.fast_dev_run", "true").code == 0
    assert (folder / "logs/one/checkpoints/last.ckpt").read_bytes() == before
    done = main(*on, "--run", "third")
    assert done.code == 0
    assert "resuming third at step 4 of 6" in done.err
    assert "run third is finished" in main(*on, "--run", "third").out  # the same command again
    done = main(*on, "--run", "third", "--trainer.max_steps", 7)
    assert "resuming third at step 6 of 7" in done.err


@pytest.mark.parametrize("option", ["--ckpt_path", "--init_from"])
def test_a_file_that_is_no_checkpoint_starts_nothing(folder, main, option):
    is_error(main(*FIT, option, "text.txt"), "text.txt", "not a checkpoint")
    assert not (folder / "logs/tiny").exists()
