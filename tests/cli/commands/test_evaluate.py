"""Laws of validate and test: which characters are scored, with how much context, against what."""

import math
import re
from pathlib import Path

import pytest

from lightning_app.cli.commands.evaluate import choose_stride, make_parser
from tests.helpers import is_error, refusal, sentences


def metrics(out: str) -> dict[str, str]:
    return dict(re.findall(r"^(\w+) +([\d.]+)", out, re.M))


def test_validate_and_test_score_each_character_of_their_split_once(in_trained, main):
    n = len((in_trained / "text.txt").read_text())
    bounds = [int(n * 0.9), int(n * 0.95), n]
    for command, first, last in (("validate", *bounds[:2]), ("test", *bounds[1:])):
        done = main(command, "--run", "tiny")
        assert done.code == 0, done.err
        values = metrics(done.out)
        loss = float(values["loss"])
        assert int(values["characters"]) == last - first
        assert float(values["perplexity"]) == pytest.approx(math.exp(loss), rel=1e-5)
        assert float(values["bpc"]) == pytest.approx(loss / math.log(2), rel=1e-5)
        assert f"characters {first:,} to {last:,} of" in done.err
        assert "this network" in done.out  # in the table of baselines


def test_without_baselines_there_is_no_table(in_trained, main):
    done = main("validate", "--run", "tiny", "--baselines", "false")
    assert set(metrics(done.out)) == {"loss", "perplexity", "bpc", "characters"}
    assert "this network" not in done.out


def test_sliding_scores_the_same_characters_with_more_context(in_trained, main):
    def validate(*args):
        return main("validate", "--run", "tiny", "--baselines", "false", *args).out

    block, sliding = validate(), validate("--evaluate", "sliding")
    assert metrics(block)["characters"] == metrics(sliding)["characters"]
    assert "context: sliding, windows of 16 that score 8 each" in sliding
    assert metrics(block)["loss"] != metrics(sliding)["loss"]
    assert "that score 3 each" in validate("--evaluate", "sliding", "--stride", 3)
    whole = validate("--evaluate", "sliding", "--stride", 99)
    assert metrics(block)["loss"] == metrics(whole)["loss"]


@pytest.mark.parametrize(
    ("evaluate", "given", "scored"),
    [
        ("block", None, 100),
        ("sliding", None, 50),
        ("sliding", 3, 3),
        ("sliding", 101, 100),
        ("dynamic", None, 32),
        ("dynamic", 7, 7),
    ],
)
def test_a_window_scores_so_many_characters(evaluate, given, scored):
    assert choose_stride(evaluate, given, 100) == scored


def test_a_stride_without_effect_is_refused():
    assert "--stride is for --evaluate sliding or dynamic" in refusal(
        choose_stride, "block", 3, 100
    )
    assert choose_stride("sliding", None, 1) == 1
    assert choose_stride("dynamic", None, 16) == 16


def test_dynamic_evaluation_says_that_its_loss_is_not_the_weights(in_trained, main):
    dynamic = ("validate", "--run", "tiny", "--baselines", "false", "--evaluate", "dynamic")
    done = main(*dynamic, "--dynamic.learning_rate", 1e-12)
    assert done.code == 0, done.err
    assert "not a figure of the weights alone" in done.out
    assert (
        metrics(done.out)["characters"]
        == metrics(main("validate", "--run", "tiny").out)["characters"]
    )


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ("--evaluate dynamic --trainer.limit_val_batches 2", ["limit_val_batches", "dynamic"]),
        ("--evaluate dynamic --report x.html", ["--report", "block or sliding"]),
        ("--dynamic.decay 0.5", ["--dynamic.decay", "--evaluate dynamic"]),
        ("--trainer.limit_val_batches 0", ["limit_val_batches", "leave it out"]),
        ("--stride 3", ["--stride", "sliding"]),
        ("--data.block_size 17", ["--data.block_size 17", "16"]),
    ],
)
def test_options_that_do_not_go_together_are_refused(in_trained, main, args, words):
    is_error(main("validate", "--run", "tiny", *args.split()), *words)
    assert not Path("x.html").exists()


def test_a_part_of_the_split_is_not_compared_with_baselines_of_all(in_trained, main):
    validate = ("validate", "--run", "tiny", "--data.batch_size", 1)
    done = main(*validate, "--trainer.limit_val_batches", 2)
    assert done.code == 0
    assert metrics(done.out)["characters"] == "32"
    assert "this network" not in done.out


def test_another_text_is_scored_with_the_networks_alphabet(in_trained, main, tmp_path):
    other, greek = tmp_path / "some.txt", tmp_path / "greek.txt"
    other.write_text("NURSE:\nthe sun is up, 1\n\n" * 40)
    done = main("validate", "--run", "tiny", "--data.corpus", other)
    assert done.code == 0, done.err
    greek.write_text("Ω" * 2000)
    is_error(main("validate", "--run", "tiny", "--data.corpus", greek), "Ω", "U+03A9")


def test_a_changed_corpus_is_not_scored_silently(folder, main):
    fit = ("fit", "--config", "tiny.yaml", "--trainer.max_steps", 1)
    assert main(*fit).code == 0
    (folder / "text.txt").write_text(sentences(151))
    is_error(main("validate", "--run", "tiny"), "changed", "--data.corpus")
    is_error(main(*fit), "data.corpus", "--fresh")


def test_the_text_is_found_where_the_run_kept_it(folder, main):
    fit = ("fit", "--config", "tiny.yaml", "--trainer.max_steps", 1, "--data.splits", "[0.9,0.1]")
    assert main(*fit, "--data.data_dir", "elsewhere").code == 0
    assert main("validate", "--run", "tiny", "--baselines", "false").code == 0
    assert main("predict", "--run", "tiny", "--prompt", "R", "--check_overlap", "true").code == 0
    assert (folder / "elsewhere").is_dir()
    assert not (folder / "data").exists()
    is_error(main("test", "--config", "tiny.yaml"), "test split is empty", "validate")


def test_the_report_has_the_loss_that_is_printed(in_trained, main, tmp_path):
    pytest.importorskip("matplotlib")
    file = tmp_path / "report.html"
    done = main("validate", "--report", file, "--baselines=false")
    assert done.code == 0, done.err
    loss = float(metrics(done.out)["loss"])
    assert f"{loss:.4f} nats" in file.read_text(encoding="utf-8")


def test_options_of_the_data_have_no_defaults_for_the_checkpoint_says_them():
    data = make_parser("validate").get_defaults().data
    assert {"corpus", "splits", "block_size", "batch_size"} <= set(vars(data))
    assert "unit" not in data  # it is the alphabet's
    assert {value for _, value in data.items()} == {None}
