"""main.py as a user runs it: in a process of its own, with its output and exit codes."""

import signal
import subprocess
import sys

import yaml

from tests.helpers import MAIN, checkpoint, main_py


def test_fit_leaves_a_run_and_reports_it(trained):
    run = trained.folder / "logs" / "tiny"
    names = {p.name for p in (run / "checkpoints").iterdir()}
    assert {"best.ckpt", "last.ckpt"} <= names <= {"best.ckpt", "last.ckpt", "previous.ckpt"}
    for word in ("best val/loss", "perplexity", "bpc", "best.ckpt", "predict --run tiny"):
        assert word in trained.out
    for word in ("corpus", "alphabet", "parameters", "cpu", "20 steps", "minute"):
        assert word in trained.err
    assert "Tip" not in trained.out + trained.err


def test_config_yaml_of_a_run_reproduces_it(in_trained, main):
    config = yaml.safe_load((in_trained / "logs/tiny/config.yaml").read_text())
    assert not {"run", "fresh", "debug", "ckpt_path", "config"} & set(config)
    assert config["data"]["block_size"] == 16
    again = main("fit", "--config", "logs/tiny/config.yaml")
    assert again.code == 0
    assert "run tiny is finished: 20 steps of 20" in again.out


def test_the_text_is_on_standard_output_and_nothing_else(trained):
    args = ("predict", "--max_new_tokens", "30", "--seed_everything", "7", "--prompt_file", "-")
    done = main_py(*args, cwd=trained.folder, input="ROMEO:\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("ROMEO:\n")
    assert len(done.stdout) == len("ROMEO:\n") + 30 + 1
    assert done.stderr == ""


def test_a_reader_that_has_enough_ends_predict_quietly(trained):
    command = f'"{sys.executable}" "{MAIN}" predict --prompt o --max_new_tokens 20000 | head -c 5'
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        cwd=trained.folder,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert len(done.stdout) == 5
    assert "Traceback" not in done.stderr
    assert "Broken" not in done.stderr


def test_ctrl_c_saves_says_where_and_exits_130(folder):
    process = subprocess.Popen(
        [sys.executable, str(MAIN), "fit", "--config", "tiny.yaml", "--trainer.max_steps=100000"],
        stderr=subprocess.PIPE,
        text=True,
    )
    while "step 10/" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "last.ckpt" in err
    assert "Traceback" not in err
    assert checkpoint(folder, "tiny")["lightning_app"]["step"] >= 10


def test_the_same_config_serves_every_command(in_trained, main, tmp_path):
    for command in ("validate", "test", "predict"):
        assert main(command, "--config", "tiny.yaml").code == 0
        assert main(command, "--config", "logs/tiny/config.yaml").code == 0
    assert main("export", "--config", "tiny.yaml", "--to", tmp_path / "out").code == 0
