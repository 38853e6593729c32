"""What a user can do wrong: one line that names the thing and the remedy, and nothing is lost."""

import os

import pytest
import torch

from lightning_app.runs import checkpoint
from tests.helpers import CONFIG, is_error
from tests.helpers import checkpoint as read_run


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ("fit --config nope", ["nope"]),
        ("fit --config tiny.yaml --model.n_layers 3", ["--model.n_layers", "--model.n_layer?"]),
        ("fit --config tiny.yaml --n_layer 3", ["--n_layer", "--model.n_layer?"]),
        ("fit --config tiny.yaml --model.n_lay 3", ["--model.n_lay", "--model.n_layer?"]),
        ("fit --config tiny.yaml --model.n_layer 0", ["model.n_layer", "0"]),
        ("fit --config tiny.yaml --model.n_layer two", ["model.n_layer", "two"]),
        ("fit --config tiny.yaml --model.n_embd 18", ["n_embd 18", "multiple of 4"]),
        ("fit --config tiny.yaml --model.n_kv_head 3", ["n_kv_head"]),
        ("fit --config tiny.yaml --model.dropout 1.5", ["dropout"]),
        ("fit --config tiny.yaml --data.batch_size -1", ["data.batch_size", "-1"]),
        ("fit --config tiny.yaml --data.block_size 0", ["data.block_size", "0"]),
        ("fit --config tiny.yaml --data.block_size 9000", ["too short", "block_size"]),
        ("fit --config tiny.yaml --data.splits [0.5,0.6]", ["splits", "add up to 1"]),
        ("fit --config tiny.yaml --data.splits [1.1,-0.1]", ["splits", "negative"]),
        ("fit --config tiny.yaml --data.splits [0,0,1]", ["train split is empty"]),
        ("fit --config tiny.yaml --data.corpus nope.txt", ["nope.txt"]),
        ("fit --config tiny.yaml --data.corpus empty.txt", ["empty"]),
        ("fit --config tiny.yaml --data.corpus latin1.txt", ["latin1.txt", "line 2", "offset 6"]),
        ("fit --config tiny.yaml --trainer.max_epochs 3", ["max_epochs", "--trainer.max_steps"]),
        ("fit --config tiny.yaml --trainer.max_steps 0", ["max_steps"]),
        ("fit --config tiny.yaml --trainer.num_sanity_val_steps 2", ["num_sanity_val_steps"]),
        ("fit --config tiny.yaml --trainer.log_every_n_steps 0", ["log_every_n_steps", "logger"]),
        ("fit --config tiny.yaml --seed_everything 99999999999999999999", ["seed_everything"]),
        ("fit --config tiny.yaml --model.rope_theta 1e10", ["rope_theta", "below 1e9"]),
        ("fit --config tiny.yaml --trainer.val_check_interval 00:00:10:00", ["val_check_interval"]),
        ("fit --config tiny.yaml --trainer.val_check_interval 0.5", ["val_check_interval"]),
        ("fit --config tiny.yaml --trainer.accelerator gpux", ["accelerator"]),
        ("fit --config tiny.yaml --trainer.precision 12", ["precision"]),
        ("fit --config tiny.yaml --optim.name sgd", ["optim.name", "muon", "adamw", "sgd"]),
        ("fit --config tiny.yaml --optim.learning_rate -1", ["optim.learning_rate"]),
        (
            "fit --config tiny.yaml --optim.learning_rate inf",
            ["optim.learning_rate", "at most 100"],
        ),
        ("fit --config tiny.yaml --optim.beta1 1", ["--optim.beta1 is 1", "from 0 to below 1"]),
        ("fit --config tiny.yaml --compile maybe", ["'auto' or true or false"]),
        ("fit --config tiny.yaml --trainer.gradient_clip_val -1", ["gradient_clip_val is -1"]),
        ("fit --config tiny.yaml --model.n_layer null", ["--model.n_layer takes a whole number"]),
        ("fit --config tiny.yaml --run a/b", ["a/b", "name"]),
        ("fit --config tiny.yaml --run ..", ["..", "name"]),
        ("fit --config tiny.yaml --ckpt_path nope.ckpt", ["nope.ckpt"]),
        ("fit --config tiny.yaml --init_from nope.ckpt", ["nope.ckpt"]),
        ("fit --config tiny.yaml --generate.top_k 3 --generate.top_p 0.5", ["top_k", "top_p"]),
        ("fit --config broken.yaml", ["broken.yaml"]),
        ("fit --config unknown.yaml", ["n_layers", "model.n_layer"]),
        ("fit --config group.yaml", ["--modle.n_layer; did you mean --model.n_layer?"]),
        ("fit --config three.yaml", ["three.yaml: model: 3: model is a group of options"]),
        ("fit --config class.yaml", ["--trainer.callbacks", "nowhere.Thing", "No module named"]),
        ("fit --config argument.yaml", ["logging_interval is stepp; give 'step', 'epoch' or null"]),
        ("fit --data text.txt", ["did you mean --data.corpus?"]),
        ("fit extra", ["extra"]),
        ("fit --config", ["--config"]),
        ("validate --run nope", ["nope"]),
        ("predict --ckpt_path nope.ckpt", ["nope.ckpt"]),
        ("predict --ckpt_path https://example.org/x.ckpt", ["URL"]),
        ("predict --ckpt_path text.txt", ["text.txt", "not a checkpoint"]),
        ("predict --ckpt_path foreign.ckpt", ["foreign.ckpt", "not written by this program"]),
        ("predict --ckpt_path newer.ckpt", ["newer.ckpt", "newer", "update"]),
        ("predict", ["no trained run", "fit"]),
        ("predict --sampling bogus", ["--sampling is bogus; give 'argmax', 'prob', ", " or null"]),
        ("predict --top_p 2", ["--top_p is 2; give a number from 0 to 1 or null"]),
        ("predict --num_samples 1.5", ["--num_samples is 1.5; give a whole number above 0"]),
        ("predict --run", ["--run needs a value"]),
        ("fit --config tiny.yaml --trainer.logger CSVLoger", ["there is no class CSVLoger"]),
        ("fit --trainer.logger CSVLogger --trainer.logger.nme x", ["--trainer.logger.nme"]),
        ("predict --sampling top5 --top_k 3", ["top5", "top_k"]),
        ("predict --sampling argmax --top_p 0.5", ["argmax", "top_p"]),
        ("predict --tempreature 1", ["--tempreature", "--temperature?"]),
        ("predict --temperature -1", ["temperature", "-1"]),
        ("predict --max_new_tokens -5", ["max_new_tokens"]),
        ("predict --prompt_file nope.txt", ["nope.txt"]),
        ("predict --prompt a --prompt_file text.txt", ["--prompt_file", "contradict"]),
        ("export", ["--to", "required"]),
        ("predict --config number.yaml", ["no run 2024"]),
        ("inspect --config list.yaml", ["data:"]),
        ("train", ["train", "fit"]),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing_behind(folder, main, args, words):
    (folder / "empty.txt").write_text("")
    (folder / "latin1.txt").write_bytes(b"abc\nd \xe9 f\n" * 100)
    (folder / "broken.yaml").write_text("data: {corpus: [")
    (folder / "unknown.yaml").write_text(CONFIG.replace("n_layer", "n_layers"))
    torch.save({"weight": torch.zeros(1)}, folder / "foreign.ckpt")
    torch.save({"lightning_app": {"format": 99}}, folder / "newer.ckpt")
    (folder / "number.yaml").write_text("run: 2024")
    (folder / "list.yaml").write_text("data: [text.txt]")
    (folder / "group.yaml").write_text("modle: {n_layer: 1}")
    (folder / "three.yaml").write_text("model: 3")
    (folder / "class.yaml").write_text("trainer: {callbacks: [{class_path: nowhere.Thing}]}")
    monitor = "{class_path: LearningRateMonitor, init_args: {logging_interval: stepp}}"
    (folder / "argument.yaml").write_text(f"trainer: {{callbacks: [{monitor}]}}")
    is_error(main(*args.split()), *words)
    assert not [p for p in folder.glob("logs/*") if p.name != ".locks"]


def test_a_config_without_a_line_changes_nothing(folder, main):
    (folder / "empty.yaml").write_text("# nothing yet\n")
    fit = ("fit", "--config", "tiny.yaml", "--config", "empty.yaml", "--trainer.max_steps", 1)
    assert main(*fit).code == 0
    assert read_run(folder, "empty")["lightning_app"]["network"]["n_embd"] == 16


def test_a_prompt_does_not_switch_tracebacks_on(folder, main):
    is_error(main("predict", "--prompt", "now --debug true"), "no trained run")


def test_a_loss_that_is_not_finite_says_what_to_change_and_keeps_the_last_read_run(folder, main):
    fit = ("fit", "--config", "tiny.yaml", "--checkpoint_every_steps", 5)
    assert main(*fit, "--trainer.max_steps", 10).code == 0
    before = (folder / "logs/tiny/checkpoints/last.ckpt").read_bytes()
    huge = ("--optim.learning_rate", 100, "--optim.weight_decay", 1000)
    late = ("--trainer.max_steps", 60, "--trainer.val_check_interval", 60)
    done = main(*fit, *huge, *late, "--checkpoint_every_steps", 60)
    is_error(done, "loss is nan", "--optim.learning_rate", "kept")
    assert (folder / "logs/tiny/checkpoints/last.ckpt").read_bytes() == before


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root writes anywhere")
def test_a_read_only_folder_is_one_line(folder, main):
    folder.chmod(0o500)
    is_error(main("fit", "--config", "tiny.yaml"), "ermission")
    folder.chmod(0o700)


def test_a_full_disk_is_one_line_and_keeps_the_old_files(folder, main, monkeypatch):
    fit = ("fit", "--config", "tiny.yaml", "--checkpoint_every_steps", 5)
    assert main(*fit).code == 0
    before = {p: p.read_bytes() for p in folder.glob("logs/tiny/checkpoints/*")}

    def save(state, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.torch, "save", save)
    is_error(main(*fit, "--trainer.max_steps", 40), "disk is full")
    assert {p: p.read_bytes() for p in folder.glob("logs/tiny/checkpoints/*")} == before
