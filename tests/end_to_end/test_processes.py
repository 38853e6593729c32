"""Two processes on a CPU (gloo): the same stream, the same losses, exact figures, one writer."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_app.cli.dispatch import main
from tests.helpers import CONFIG, MAIN, sentences

pytestmark = pytest.mark.skipif(os.name != "posix", reason="gloo through Lightning's launcher")

EXACT = [
    *("--optim.name", "adamw", "--trainer.precision", "32-true", "--trainer.accelerator", "cpu"),
    *("--trainer.max_steps", "50", "--trainer.log_every_n_steps", "1"),
    *("--trainer.val_check_interval", "25", "--trainer.gradient_clip_val", "1"),
]
SHARDED = ["--trainer.strategy", "sharded", "--optim.average_decay", "0.9"]
MUON = ["--optim.name", "muon", "--trainer.max_steps", "1"]
TABLES = ["--model.ngram_rows", "[20,90]"]
TWO = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--data.batch_size", "4"]


def fit(folder: Path, run: str, *flags: str, launcher: tuple = (sys.executable,)) -> str:
    done = subprocess.run(
        [*launcher, str(MAIN), "fit", "--config", "tiny.yaml", "--run", run, *EXACT, *flags],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def fit_by_slurm(folder: Path, run: str, *flags: str) -> str:
    """Two processes as srun starts them; what both said."""
    command = [sys.executable, str(MAIN), "fit", "--config", "tiny.yaml", "--run", run]
    job = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2"}
    job |= {"SLURM_NODELIST": "localhost", "SLURM_NODEID": "0"}
    processes = [
        subprocess.Popen(
            [*command, *EXACT, *flags],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | job | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)},
        )
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], said
    return "".join(out for out, _ in said)


def fit_here(folder: Path, run: str, *flags: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["fit", "--config", "tiny.yaml", "--run", run, *EXACT, *flags]) == 0


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """The same training by one process and by two, whoever starts them; what they printed.

    That of SLURM is one step, with Muon.
    """
    folder = tmp_path_factory.mktemp("processes")
    (folder / "text.txt").write_text(sentences(150))
    (folder / "tiny.yaml").write_text(CONFIG)
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--")
    fit_here(folder, "one")
    said = {
        "two": fit(folder, "two", *TWO),
        "torchrun": fit(folder, "torchrun", *TWO, *TABLES, launcher=torchrun),
        "slurm": fit_by_slurm(folder, "slurm", *TWO, *MUON),
        "sharded": fit(folder, "sharded", *TWO, *SHARDED),
    }
    fit_here(folder, "muon", *MUON)
    fit_here(folder, "tables", *TABLES)
    return folder, said


def curve(folder: Path, run: str, tag: str) -> list[tuple[int, float]]:
    board = EventAccumulator(str(folder / "logs" / run), size_guidance={"scalars": 0})
    board.Reload()
    return [(x.step, x.value) for x in board.Scalars(tag)]


@pytest.mark.parametrize(
    ("alone", "run"), [("one", "two"), ("tables", "torchrun"), ("one", "sharded")]
)
def test_two_processes_at_half_the_batch_follow_one(runs, alone, run):
    folder, _ = runs
    one, other = (curve(folder, name, "train/loss") for name in (alone, run))
    assert [step for step, _ in other] == [step for step, _ in one] == list(range(1, 51))
    assert [x for _, x in other] == pytest.approx([x for _, x in one], abs=1e-5)


@pytest.mark.parametrize(
    ("alone", "run"), [("one", "two"), ("tables", "torchrun"), ("muon", "slurm")]
)
def test_validation_by_two_processes_counts_every_character_once(runs, alone, run):
    folder, said = runs
    one, other = (curve(folder, name, "val/loss") for name in (alone, run))
    assert [x for _, x in other] == pytest.approx([x for _, x in one], abs=1e-5)
    best = float(re.search(r"best val/loss +([\d.]+)", said[run])[1])
    assert best == pytest.approx(min(x for _, x in one), abs=1e-4)
    assert said[run].count("best val/loss") == 1  # one process speaks


def test_a_run_of_two_processes_is_used_and_resumed_by_one(runs, main, monkeypatch):
    monkeypatch.chdir(runs[0])
    done = main("predict", "--run", "two", "--prompt", "ROMEO:")
    assert done.out.startswith("ROMEO:")
    again = ("fit", "--config", "tiny.yaml", "--run", "torchrun", *EXACT, *TABLES)
    done = main(*again, "--trainer.max_steps", 60)
    assert done.code == 0
    assert "resuming torchrun at step 50 of 60" in done.err
    assert "not bit-exact: processes: 2 -> 1" in done.err


def test_a_sharded_run_is_saved_whole_resumed_and_used_by_one_process(runs, main, monkeypatch):
    folder, _ = runs
    monkeypatch.chdir(folder)
    fit(folder, "sharded", *TWO, *SHARDED, "--trainer.max_steps", "60")
    assert curve(folder, "sharded", "train/loss")[-1][0] == 60
    done = main("predict", "--run", "sharded", "--prompt", "ROMEO:")
    assert done.out.startswith("ROMEO:")
    assert main("validate", "--run", "sharded", "--baselines", "false").code == 0


def test_a_run_is_resumed_with_another_strategy(runs, main, monkeypatch):
    folder, _ = runs
    monkeypatch.chdir(folder)
    for run in ("whole", "divided"):
        shutil.copytree(folder / "logs/one", folder / "logs" / run)
    fit_here(folder, "whole", "--trainer.max_steps", "60")
    fit(folder, "divided", *TWO, "--trainer.strategy", "sharded", "--trainer.max_steps", "60")
    for run in ("whole", "divided"):
        fit_here(folder, run, "--trainer.max_steps", "70")
    whole, divided = (dict(curve(folder, run, "train/loss")) for run in ("whole", "divided"))
    assert divided == pytest.approx(whole, abs=1e-5)
    assert max(divided) == 70


def test_muon_takes_the_same_first_step(runs):
    folder, _ = runs
    paths = (folder / "logs" / run / "checkpoints" / "last.ckpt" for run in ("muon", "slurm"))
    states = [torch.load(path, weights_only=True) for path in paths]
    losses = [curve(folder, run, "train/loss") for run in ("muon", "slurm")]
    assert losses[0][0][1] == pytest.approx(losses[1][0][1], abs=1e-6)
    for one, two in zip(*(s["optimizer_states"][0]["state"].values() for s in states), strict=True):
        for name in one:  # first moments are the gradients' share
            torch.testing.assert_close(one[name], two[name], rtol=0, atol=1e-6)


def test_when_one_process_is_killed_the_others_end_and_say_so(runs):
    folder, _ = runs
    long = [*EXACT, *TWO, "--trainer.max_steps", "100000"]
    process = subprocess.Popen(
        [sys.executable, str(MAIN), "fit", "--config", "tiny.yaml", "--run", "lost", *long],
        cwd=folder,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    while "step 25/" not in process.stderr.readline():
        assert process.poll() is None
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGKILL)
    began = time.monotonic()
    _, said = process.communicate(timeout=60)
    assert time.monotonic() - began < 60
    assert process.returncode != 0
    assert "Traceback" not in said
    assert "another process of this run ended" in said.strip().split("\n")[-1]
