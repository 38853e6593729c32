"""main.py end to end: what a user types, and what happens."""

import json
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from lightning_app.cli.fit_options import FitCLI
from tests.helpers import MAIN, checkpoint, is_error, main_py, sentences

CONFIGS = sorted((MAIN.parent / "configs").glob("*.yaml"))


# fit, as a subprocess


def test_fit_leaves_a_run_and_says_how_good_it_is(trained):
    run = trained.folder / "logs" / "tiny"
    names = {p.name for p in (run / "checkpoints").iterdir()}
    assert {"best.ckpt", "last.ckpt"} <= names <= {"best.ckpt", "last.ckpt", "previous.ckpt"}
    for word in ("best val/loss", "perplexity", "bpc", "best.ckpt", "predict --run tiny"):
        assert word in trained.out
    for word in ("corpus", "alphabet", "parameters", "cpu", "20 steps", "minute"):
        assert word in trained.err
    assert "Tip" not in trained.out + trained.err


def test_config_yaml_of_a_run_reproduces_it(trained):
    config = yaml.safe_load((trained.folder / "logs/tiny/config.yaml").read_text())
    assert not {"run", "fresh", "debug", "ckpt_path", "config"} & set(config)
    assert config["data"]["block_size"] == 16
    again = main_py("fit", "--config", "logs/tiny/config.yaml", cwd=trained.folder)
    assert again.returncode == 0
    assert "run tiny is finished: 20 steps of 20" in again.stdout


def test_validate_and_test_score_each_character_once(trained):
    n = len((trained.folder / "text.txt").read_text())
    bounds = [int(n * 0.9), int(n * 0.95), n]
    for command, first, last in (("validate", *bounds[:2]), ("test", *bounds[1:])):
        done = main_py(command, "--run", "tiny", cwd=trained.folder)
        assert done.returncode == 0, done.stderr
        values = dict(re.findall(r"^(\w+) +([\d.]+)", done.stdout, re.M))
        loss = float(values["loss"])
        assert int(values["characters"]) == last - first
        assert float(values["perplexity"]) == pytest.approx(math.exp(loss), rel=1e-5)
        assert float(values["bpc"]) == pytest.approx(loss / math.log(2), rel=1e-5)


def test_predict_prints_prompt_and_text_and_one_newline(trained):
    args = ("predict", "--prompt", "ROMEO:\n", "--max_new_tokens", "30", "--seed_everything", "7")
    done = main_py(*args, cwd=trained.folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("ROMEO:\n")
    assert len(done.stdout) == len("ROMEO:\n") + 30 + 1
    assert done.stdout.endswith("\n")
    assert done.stderr == ""
    assert main_py(*args, cwd=trained.folder).stdout == done.stdout
    by_trainer = main_py(*args, "--trainer.accelerator", "cpu", cwd=trained.folder)
    assert by_trainer.stdout == done.stdout


def test_predict_reports_passages_of_the_training_text(trained):
    text = (trained.folder / "text.txt").read_text()
    new = ("--max_new_tokens", "1", "--seed_everything", "1", "--check_overlap", "true")
    done = main_py("predict", "--prompt", text[100:180], *new, cwd=trained.folder)
    assert re.search(r"characters 0 to 8\d occur in the training text at 100:", done.stderr)
    assert repr(text[100:180])[1:-1] in done.stderr
    done = main_py("predict", "--prompt", text[100:120], *new, cwd=trained.folder)
    assert "no passage of 50 characters occurs in the training text" in done.stderr


def test_predict_does_not_import_lightning(trained):
    code = (
        "import sys; from lightning_app.cli import main; "
        "assert main(['predict', '--prompt', 'o', '--max_new_tokens', '3']) == 0; "
        "print([m for m in sys.modules if m.startswith(('lightning.', 'torchmetrics'))])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=trained.folder,
        env=os.environ | {"PYTHONPATH": str(MAIN.parent)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("[]")


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


# validate, test, predict, export: their other ways


def test_another_text_is_scored_with_the_networks_alphabet(trained, main, monkeypatch):
    monkeypatch.chdir(trained.folder)
    Path("some.txt").write_text("NURSE:\nthe sun is up, 1\n\n" * 40)
    done = main("validate", "--run", "tiny", "--data.corpus", "some.txt")
    assert done.code == 0, done.err
    Path("greek.txt").write_text("Ω" * 2000)
    is_error(main("validate", "--run", "tiny", "--data.corpus", "greek.txt"), "Ω", "U+03A9")


def test_a_changed_corpus_is_not_scored_silently(folder, main):
    assert main("fit", "--config", "tiny.yaml").code == 0
    (folder / "text.txt").write_text(sentences(151))
    is_error(main("validate", "--run", "tiny"), "changed", "--data.corpus")
    is_error(main("fit", "--config", "tiny.yaml"), "data.corpus", "--fresh")


def test_sliding_scores_the_same_characters_with_more_context(trained, main, monkeypatch):
    monkeypatch.chdir(trained.folder)
    block, sliding = (
        main("validate", "--run", "tiny", "--evaluate", mode).out for mode in ("block", "sliding")
    )
    count = r"characters +(\d+)"
    assert re.search(count, block)[1] == re.search(count, sliding)[1]
    assert "context: sliding, windows of 16 that score 8 each" in sliding
    assert re.search(r"loss +(\S+)", block)[1] != re.search(r"loss +(\S+)", sliding)[1]
    narrow = main("validate", "--run", "tiny", "--evaluate", "sliding", "--stride", 3).out
    assert "that score 3 each" in narrow
    whole = main("validate", "--run", "tiny", "--evaluate", "sliding", "--stride", 99).out
    assert re.search(r"loss +(\S+)", block)[1] == re.search(r"loss +(\S+)", whole)[1]
    is_error(main("validate", "--run", "tiny", "--stride", 3), "--stride", "sliding")


def test_validations_longer_than_training_are_said(folder, main):
    fit = ("fit", "--config", "tiny.yaml", "--trainer.max_steps", 2, "--data.splits", "[0.5,0.5]")
    often, line = ("--trainer.val_check_interval", 2), "each validation takes longer"
    assert line in main(*fit, *often).err
    assert line not in main(*fit, "--run", "seldom", "--trainer.val_check_interval", 99).err
    some = ("--run", "some", "--trainer.limit_val_batches", 1)
    assert line not in main(*fit, *often, *some).err


def test_the_text_is_found_where_the_run_kept_it(folder, main):
    assert main("fit", "--config", "tiny.yaml", "--data.data_dir", "elsewhere").code == 0
    assert main("validate", "--run", "tiny", "--baselines", "false").code == 0
    assert main("predict", "--run", "tiny", "--prompt", "R", "--check_overlap", "true").code == 0
    assert (folder / "elsewhere").is_dir()
    assert not (folder / "data").exists()


def test_nothing_is_set_beside_a_part_of_the_split(trained, main, monkeypatch):
    monkeypatch.chdir(trained.folder)
    validate = ("validate", "--run", "tiny", "--data.batch_size", 1)
    done = main(*validate, "--trainer.limit_val_batches", 2)
    assert done.code == 0
    assert "characters  32 " in done.out
    assert "the same" not in done.out
    is_error(main(*validate, "--trainer.limit_val_batches", 0), "limit_val_batches")
    dynamic = ("--evaluate", "dynamic", "--trainer.limit_val_batches", 2)
    is_error(main(*validate, *dynamic), "--trainer.limit_val_batches", "dynamic")
    is_error(main(*validate, "--dynamic.decay", 0.5), "--dynamic.decay", "--evaluate dynamic")


def test_an_empty_test_split_names_validate(folder, main):
    assert main("fit", "--config", "tiny.yaml", "--data.splits", "[0.9,0.1]").code == 0
    is_error(main("test", "--config", "tiny.yaml"), "test split is empty", "validate")


def test_samples_are_separated_and_do_not_depend_on_their_number(trained, main, monkeypatch):
    monkeypatch.chdir(trained.folder)
    args = ("predict", "--prompt", "o", "--max_new_tokens", 20, "--seed_everything", 3)
    one, three = main(*args), main(*args, "--num_samples", 3)
    texts = three.out.removesuffix("\n").split("\n---\n")
    assert len(texts) == 3
    assert texts[0] + "\n" == one.out
    assert len(set(texts)) > 1


def test_prompts_come_from_a_file_or_standard_input(trained, main, monkeypatch, tmp_path):
    monkeypatch.chdir(trained.folder)
    file = tmp_path / "prompts.txt"
    file.write_bytes("\ufeffROMEO:\r\ngood\r\n".encode())
    args = ("predict", "--max_new_tokens", 5, "--seed_everything", 1, "--prompt_file", file)
    assert main(*args).out.startswith("ROMEO:\ngood\n")
    lines = main(*args, "--prompt_lines", "true").out.removesuffix("\n").split("\n---\n")
    assert [x[:4] for x in lines] == ["ROME", "good"]
    piped = main_py(*map(str, args[:-1]), "-", cwd=trained.folder, input="NURSE:\n")
    assert piped.stdout.startswith("NURSE:\n")


def test_the_seed_used_is_said_and_gives_the_same_text(trained, main, monkeypatch):
    monkeypatch.chdir(trained.folder)
    first = main("predict", "--prompt", "o")
    seed = re.search(r"--seed_everything (\d+)", first.err)[1]
    assert main("predict", "--prompt", "o", "--seed_everything", seed).out == first.out


def test_a_prompt_with_unknown_characters_gets_one_line_and_no_seed(trained, main, monkeypatch):
    monkeypatch.chdir(trained.folder)
    done = main("predict", "--prompt", "\u4e16")
    assert done.code == 2
    assert not done.out
    assert done.err.startswith("error: the prompt has characters the model never saw")
    assert done.err.count("\n") == 1


def test_predict_takes_the_runs_generate_group(trained, main, monkeypatch):
    monkeypatch.chdir(trained.folder)
    done = main("predict", "--run", "tiny", "--prompt", "ROMEO", "--seed_everything", 1)
    assert len(done.out) == len("ROMEO") + 40 + 1
    bare = ("predict", "--run", "tiny", "--prompt", "ROMEO", "--seed_everything", 1)
    same = main(*bare, "--sampling", "top_k", "--top_k", 3)
    assert same.out == done.out


def test_predict_takes_the_configs_generate_group(trained, main, monkeypatch):
    monkeypatch.chdir(trained.folder)
    assert len(main("predict", "--config", "tiny.yaml", "--prompt", "o").out) == 1 + 40 + 1
    shorter = main("predict", "--config", "tiny.yaml", "--prompt", "o", "--max_new_tokens", 4)
    assert len(shorter.out) == 1 + 4 + 1
    other = main("predict", "--config", "tiny.yaml", "--prompt", "o", "--sampling", "argmax")
    assert other.code == 0


@pytest.mark.parametrize(
    ("group", "words"),
    [
        ("{temperature: hot}", ["temperature is 'hot'"]),
        ("{max_new_tokens: 1.5}", ["max_new_tokens is 1.5", "whole number"]),
        ("{top_kk: 3}", ["no option top_kk", "top_k"]),
    ],
)
def test_predict_refuses_wrong_values_in_a_configs_generate_group(
    trained, main, monkeypatch, tmp_path, group, words
):
    monkeypatch.chdir(trained.folder)
    (tmp_path / "wrong.yaml").write_text(f"generate: {group}\n")
    is_error(main("predict", "--config", tmp_path / "wrong.yaml", "--run", "tiny"), *words)


def test_the_same_config_serves_every_command(trained, main, monkeypatch, tmp_path):
    monkeypatch.chdir(trained.folder)
    for command in ("validate", "test", "predict"):
        assert main(command, "--config", "tiny.yaml").code == 0
        assert main(command, "--config", "logs/tiny/config.yaml").code == 0
    assert main("export", "--config", "tiny.yaml", "--to", tmp_path / "out").code == 0


def test_the_exported_network_has_the_loss_that_validate_says(trained, tmp_path):
    import numpy as np
    from transformers import AutoModelForCausalLM, AutoTokenizer

    to = str(tmp_path / "exported")
    done = main_py("export", "--run", "tiny", "--to", to, cwd=trained.folder)
    assert done.returncode == 0, done.stderr
    model, tokenizer = AutoModelForCausalLM.from_pretrained(to), AutoTokenizer.from_pretrained(to)
    text = (trained.folder / "text.txt").read_text()
    first, last = int(len(text) * 0.9), int(len(text) * 0.95)
    ids = torch.tensor(tokenizer(text)["input_ids"])
    total = 0.0
    with torch.no_grad():
        for at in range(first, last, 16):
            targets = ids[at : min(at + 16, last)]
            logits = model(ids[at - 1 : at - 1 + len(targets)][None]).logits[0]
            total += torch.nn.functional.cross_entropy(logits, targets, reduction="sum").item()
    said = main_py("validate", "--run", "tiny", cwd=trained.folder).stdout
    loss = float(re.search(r"^loss +([\d.]+)", said, re.M)[1])
    assert np.isclose(total / (last - first), loss, atol=2e-6)
    assert json.loads((tmp_path / "exported/config.json").read_text())["model_type"] == "qwen3"


# Help, configs, texts as they are


@pytest.mark.parametrize("command", ["", "fit", "validate", "predict", "export"])
def test_help_teaches(command, capfd):
    from lightning_app.cli.dispatch import main

    with pytest.raises(SystemExit, match=r"^0$"):  # by the parser itself, or as main.py does
        raise SystemExit(main([*command.split(), "--help"]))
    out = capfd.readouterr().out
    assert "--help" in out or "fit" in out
    if command == "fit":
        assert "Width of the network" in out
    if command == "predict":
        assert "Below 1 gives more predictable text" in out


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_shipped_config_parses(path, folder):
    cli = FitCLI([path], [])
    assert cli.config.trainer.max_steps > 0
    assert yaml.safe_load(path.read_text())["data"]["corpus"] == cli.config.data.corpus


@pytest.mark.parametrize("prompt", ["-x", "--prompt", "1", "null", "true", "a: b", "[1]", "{", "#"])
def test_a_prompt_is_taken_as_it_is(folder, main, prompt):
    (folder / "text.txt").write_text("-x --prompt 1 null true a: b [1] { # ab\n" * 100)
    assert main("fit", "--config", "tiny.yaml", "--trainer.max_steps", 1).code == 0
    done = main("predict", "--prompt", prompt, "--max_new_tokens", 0, "--seed_everything", 1)
    assert done.out == prompt + "\n", done.err
