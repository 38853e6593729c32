"""Laws of fit's screens: the run, its data, machine and length before; its figures after."""

import math
import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger

from lightning_app import hardware
from lightning_app.cli.commands import screens
from lightning_app.cli.commands.predict import TEXT_OPTIONS, make_parser
from lightning_app.cli.commands.screens import example_prompt, next_commands
from lightning_app.cli.parsing import take_texts
from lightning_app.data.corpora import Corpus
from lightning_app.data.datamodule import CharDataModule
from lightning_app.data.splits import TextSource
from lightning_app.evaluation.baselines import best_compressor
from lightning_app.runs.checkpoint import SECTION, load
from lightning_app.runs.resume import Start
from tests.helpers import sentences


def said_before(**given) -> list[str]:
    """The screen before training, of 100 steps that take 600 seconds, with some of it changed."""
    options = {"device": "cpu", "precision": "32-true", "compile": False, "dev_run": False}
    options |= {"unit": "char", "step": 0, "bounds": {"train": (0, 900), "val": (900, 1000)}}
    options |= {"share": 1.0, "rows": (), "minutes": None, "given": {}}
    options |= {"interval": 50, "limit": 1.0, "notes": (), "starts": None, "board": True} | given
    o = SimpleNamespace(**options)
    gpt = torch.nn.Module()
    gpt.config = SimpleNamespace(n_layer=3, n_head=2, n_embd=16, block_size=8, ngram_rows=o.rows)
    gpt.weights = torch.nn.Parameter(torch.zeros(1_230_000))
    corpus = Corpus("/texts/my.txt", (), snap=o.starts is not None)
    text = SimpleNamespace(ids=range(1000), notes=o.notes, starts=o.starts)
    facts = {"device": o.device, "precision": o.precision, "compile": o.compile}
    job = SimpleNamespace(
        data=SimpleNamespace(
            source=TextSource("my.txt"),
            split_text=SimpleNamespace(corpus=corpus),
            text=text,
            bounds=o.bounds,
            unit=o.unit,
            alphabet="abc",
            batch_size=4,
            block_size=8,
        ),
        model=SimpleNamespace(gpt=gpt),
        facts=facts | {"global_batch": 4, "block_size": 8},
        trainer=SimpleNamespace(
            max_steps=100,
            world_size=1,
            accumulate_grad_batches=1,
            limit_val_batches=o.limit,
            loggers=[TensorBoardLogger("logs")] if o.board else [],
        ),
        plan=SimpleNamespace(seconds=600.0, processor_share=o.share),
    )
    flags = SimpleNamespace(max_steps=100, val_check_interval=o.interval)
    request = SimpleNamespace(
        config=SimpleNamespace(trainer=flags, minutes=o.minutes),
        folder="logs/mine",
        dev_run=o.dev_run,
        given=lambda: o.given,
    )
    state = {SECTION: {"step": o.step}} if o.step else None
    return screens.lines_before(request, Start(state=state), job)


def test_before_training_the_data_the_network_the_machine_and_the_run_are_named():
    screen = "\n".join(said_before(notes=("a note about the text",)))
    for words in (
        "my.txt: 1,000 characters (train 900, val 100)",
        "a note about the text",
        "alphabet   3 characters",
        "1.23 M parameters: 3 layers, 2 heads, width 16, context 8",
        "device     cpu, 32-true\n",
        "100 steps of 32 characters, about 10 minutes",
        "run        logs/mine",
        "tensorboard --logdir logs",
    ):
        assert words in screen


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"step": 50}, "50 steps of 32 characters, about 5 minutes"),
        ({"step": 90}, "10 steps of 32 characters, about a minute or less"),
        ({"compile": True}, "cpu, 32-true, compiled"),
        ({"unit": "byte"}, "100 steps of 32 bytes"),
        ({"rows": (20, 0, 3000)}, "context 8, counts of what follows 2, 4 characters"),
        ({"share": 0.4}, "other programs use 60% of the processors"),
        ({"minutes": 9.0}, "100 steps of 32 characters, at most 9 minutes in all"),
        ({"minutes": 9.0, "step": 50}, "50 steps of 32 characters, about 5 minutes"),
        ({"minutes": 9.0, "given": {"trainer.max_steps": 100}}, "about 10 minutes"),
        ({"dev_run": True}, "run        none: fast_dev_run"),
    ],
)
def test_the_screen_before_training_follows_the_run(given, words):
    assert words in "\n".join(said_before(**given))


@pytest.mark.parametrize(("in_hardware", "warned"), [(True, False), (False, True)])
def test_emulated_bfloat16_is_reported_as_slow(monkeypatch, in_hardware, warned):
    monkeypatch.setattr(hardware, "multiplies_bf16", lambda accelerator: in_hardware)
    screen = "\n".join(said_before(precision="bf16-mixed"))
    assert ("32-true is faster" in screen) == warned


@pytest.mark.parametrize(
    ("characters", "interval", "limit", "long"),
    [
        (481, 10, 1.0, True),  # two thirds of 481 are more than 10 batches of 32
        (479, 10, 1.0, False),
        (481, 11, 1.0, False),
        (481, 10, 0.5, False),
        (481, 10, 5, False),
        (481, 10, 0, False),  # no validation runs
    ],
)
def test_a_validation_longer_than_the_training_before_it_is_noticed(
    characters, interval, limit, long
):
    bounds = {"train": (0, 1000 - characters), "val": (1000 - characters, 1000)}
    lines = said_before(bounds=bounds, interval=interval, limit=limit)
    assert any("each validation takes longer" in line for line in lines) is long


@pytest.mark.parametrize(
    ("given", "remedy"),
    [
        ({}, "--data.splits [0.99,0.005,0.005]"),
        ({"step": 50}, "--trainer.val_check_interval 3"),  # the splits of a run stay
        ({"starts": (0, 500, 800)}, "--trainer.val_check_interval 3"),  # complete files
    ],
)
def test_a_long_validation_is_reported_with_an_option_that_works(given, remedy):
    assert remedy not in "\n".join(said_before(**given))
    assert remedy in "\n".join(said_before(interval=1, **given))


def test_tensorboard_is_named_only_where_it_is_used():
    assert "tensorboard" not in "\n".join(said_before(board=False))


def test_a_finished_run_says_why_and_how_good_it_is():
    state = {SECTION: {"best": {"loss": 1.23456, "step": 1500}}}
    lines = screens.lines_if_finished("mine", "finished: 2,000 steps", Start(state=state))
    assert lines == ["run mine is finished: 2,000 steps", "best val/loss 1.2346 at step 1,500"]
    assert len(screens.lines_if_finished("mine", "over", Start(state={SECTION: {"best": {}}}))) == 1


# After training.


def test_after_training_the_figures_are_the_best_checkpoints(trained):
    best = load(trained.folder / "logs/tiny/checkpoints/best.ckpt").info["best"]["loss"]
    printed = dict(re.findall(r"^(best val/loss|perplexity|bpc) +([\d.]+)", trained.out, re.M))
    expected = {
        "best val/loss": best,
        "perplexity": math.exp(best),
        "bpc": best / math.log(2),
    }
    assert {k: float(v) for k, v in printed.items()} == pytest.approx(expected, abs=1e-4)


def test_after_training_the_file_a_sample_and_the_next_commands_are_printed(trained):
    assert trained.out.startswith("run tiny finished: 20 steps")
    assert "checkpoint     logs/tiny/checkpoints/best.ckpt" in trained.out
    text = load(trained.folder / "logs/tiny/checkpoints/best.ckpt").generate(
        "\n", seed=1337, max_new_tokens=300
    )
    assert text.strip("\n") in trained.out
    for command in ("predict --run tiny --prompt", "test --run tiny", "tensorboard --logdir logs"):
        assert command in trained.out.partition("next:")[2]


def said_after(
    best: dict, steps: int, stopped_early: bool = False, max_time=None, start: int = 0
) -> list[str]:
    job = SimpleNamespace(
        checkpoints=SimpleNamespace(best=best, stopped_early=stopped_early),
        trainer=SimpleNamespace(global_step=steps, max_steps=100, loggers=[]),
        data=SimpleNamespace(
            split_text=SimpleNamespace(corpus=Corpus("/my.txt", ())), bounds={"test": (9, 10)}
        ),
    )
    flags = SimpleNamespace(max_time=max_time)
    config = SimpleNamespace(seed_everything=1, trainer=flags, minutes=None)
    request = SimpleNamespace(run="tiny", folder=Path("logs/tiny"), config=config)
    state = {SECTION: {"step": start}} if start else None
    return screens.lines_after(request, Start(state=state), job, 90.0)


@pytest.mark.parametrize(
    ("steps", "given", "line"),
    [
        (100, {}, "run tiny finished: 100 steps, 1.5 minutes"),
        (40, {"stopped_early": True}, "run tiny stopped early after 40 steps, 1.5 minutes"),
        (
            40,
            {"max_time": "00:00:01:00"},
            "run tiny stopped after 40 of 100 steps, 1.5 minutes; the same command resumes it",
        ),
        (
            40,
            {},
            "run tiny stopped after 40 of 100 steps, 1.5 minutes; a callback of "
            "--trainer.callbacks stopped it",
        ),
        (
            40,
            {"max_time": "00:00:00:00", "start": 40},
            "run tiny stopped after 40 of 100 steps, 1.5 minutes: --trainer.max_time or a callback "
            "leaves no time for a step",
        ),
    ],
)
def test_after_training_it_is_said_how_it_ended(in_trained, steps, given, line):
    best = {"loss": 2.0, "step": steps}
    assert said_after(best, steps, **given)[0] == line


@pytest.mark.parametrize(("best_step", "noticed"), [(79, True), (80, False), (100, False)])
def test_overfitting_is_reported_when_the_last_fifth_brought_nothing(
    in_trained, best_step, noticed
):
    screen = "\n".join(said_after({"loss": 2.0, "step": best_step}, 100))
    assert ("overfitting" in screen) == noticed


def test_without_a_validation_there_are_no_figures(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert said_after({}, 100)[-1] == "no validation ran, so there is no best.ckpt"


@pytest.mark.parametrize(
    ("steps", "loss", "line"),
    [
        (10, 1e-6, None),  # the network is better
        (10, 2.0, "the compressor is better: more minutes would help"),
        (1000, 2.0, "the compressor is better: more text of this kind, or the weights of a run on"),
    ],
)
def test_a_planned_run_is_compared_with_a_compressor(tmp_path, steps, loss, line):
    (tmp_path / "text.txt").write_text(sentences(30) * 30)
    data = CharDataModule(str(tmp_path / "text.txt"), data_dir=str(tmp_path), block_size=64)
    held = data.bounds["val"][1] - data.bounds["val"][0]
    job = SimpleNamespace(
        data=data,
        facts={"global_batch": 2},
        model=SimpleNamespace(eval_loss=SimpleNamespace(scored=held)),
        trainer=SimpleNamespace(global_step=steps),
    )
    lines = screens.lines_beside_compressors(job, loss, minutes=1)
    compressor = best_compressor(data.text, data.bounds["train"], data.bounds["val"])
    assert lines[0] == f"for comparison {compressor.nats:.4f} by a compressor, {compressor.name}"
    assert lines[1:] == [] if line is None else line in lines[1]
    # In less time the compressors get less text: here one byte is one character.
    short = 10_000 * screens.SECONDS_TO_COMPRESS / screens.COMPARING_SHARE / 60
    assert screens.compared_bytes(short) == pytest.approx(10_000, abs=1)
    lines = screens.lines_beside_compressors(job, loss, short)
    assert lines[0].endswith(
        f"the last {screens.compared_bytes(short):,} characters of the training text"
    )


# The suggested commands.


@pytest.mark.parametrize(
    ("text", "prompt"),
    [
        ("abc\nd", "abc"),
        ("\n\n  ab  cd  \nef", "ab  cd"),
        ("一二三\n四", "一二三"),
        ("a\x00b\tc", "a"),
        ("x" * 50, "x" * 20),
        (" \n\t\n", ""),
        ("", ""),
    ],
)
def test_the_example_prompt_is_a_printable_part_of_the_sample(text, prompt):
    assert example_prompt(text) == prompt
    assert prompt in text


def test_the_example_prompt_has_no_space_if_the_alphabet_lacks_it():
    assert set(example_prompt("ab\ncd\n" * 20)) <= set("ab\ncd")


@pytest.mark.parametrize("run", ["mine", "my run", "a=b@1"])
@pytest.mark.parametrize("prompt", ["O God!", "it's", '"', "-x", "--run", "$HOME `ls`", ""])
def test_the_suggested_commands_have_the_run_and_the_prompt(run, prompt):
    predict, test = next_commands(run, prompt, "test")
    words = shlex.split(predict)
    assert words[:3] == ["python", "main.py", "predict"]
    texts, rest = take_texts(words[3:], TEXT_OPTIONS)
    assert (make_parser().parse_args(rest).run, texts["prompt"]) == (run, prompt)
    assert shlex.split(test) == ["python", "main.py", "test", "--run", run]
