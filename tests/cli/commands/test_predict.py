"""Laws of predict: what it prints where, its prompts, its defaults."""

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from lightning_app.cli.commands import predict
from lightning_app.cli.commands.predict import (
    NOT_INTERACTIVE,
    asks_for_prompts,
    given_options,
    make_parser,
    read_prompts,
)
from tests.helpers import is_error, refusal, save_run, small_checkpoint

ODD_PROMPTS = ["-x", "--", "--prompt", "1", "null", "true", "a: b", "[1]", "{", "#"]


@pytest.fixture
def in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


# What is printed.


def test_the_prompt_the_text_and_one_newline_are_printed(in_trained, main):
    args = ("predict", "--prompt", "ROMEO:\n", "--max_new_tokens", 30, "--seed_everything", 7)
    done = main(*args)
    assert done.code == 0, done.err
    assert done.out.startswith("ROMEO:\n")
    assert len(done.out) == len("ROMEO:\n") + 30 + 1
    assert done.out.endswith("\n")
    assert main(*args).out == done.out
    assert main(*args, "--trainer.accelerator", "cpu").out == done.out


def test_a_single_text_is_written_as_it_is_generated(in_trained, monkeypatch):
    """The prompt comes with the first character: what is said about compiling is not between."""
    from lightning_app import cli

    parts: list[str] = []
    stdout = SimpleNamespace(write=parts.append, flush=lambda: None, isatty=lambda: False)
    monkeypatch.setattr(sys, "stdout", stdout)
    cli.main(["predict", "--prompt", "RO", "--max_new_tokens", "9", "--seed_everything", "1"])
    assert parts[0][:2] == "RO"
    assert [len(part) for part in parts] == [3] + [1] * 9
    assert parts[-1] == "\n"


def test_samples_are_separated_and_do_not_depend_on_their_number(in_trained, main):
    args = ("predict", "--prompt", "o", "--max_new_tokens", 20, "--seed_everything", 3)
    one, three = main(*args), main(*args, "--num_samples", 3)
    texts = three.out.removesuffix("\n").split("\n---\n")
    assert len(texts) == 3
    assert texts[0] + "\n" == one.out
    assert len(set(texts)) > 1


def test_the_seed_is_reported_and_gives_the_same_text(in_trained, main):
    first = main("predict", "--prompt", "o")
    seed = re.search(r"--seed_everything (\d+)", first.err)[1]
    assert main("predict", "--prompt", "o", "--seed_everything", seed).out == first.out


def test_copied_spans_of_50_characters_are_reported_with_their_place(in_trained, main):
    text = (in_trained / "text.txt").read_text()
    new = ("--max_new_tokens", 1, "--seed_everything", 1, "--check_overlap", "true")
    done = main("predict", "--prompt", text[100:180], *new)
    assert re.search(r"characters 0 to 8\d occur in the training text at 100:", done.err)
    assert repr(text[100:180])[1:-1] in done.err
    done = main("predict", "--prompt", text[100:120], *new)
    assert "no passage of 50 characters occurs in the training text" in done.err


# Prompts.


def test_prompts_come_from_a_file(in_trained, main, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_bytes("\ufeffROMEO:\r\ngood\r\n".encode())
    args = ("predict", "--max_new_tokens", 5, "--seed_everything", 1, "--prompt_file", file)
    assert main(*args).out.startswith("ROMEO:\ngood\n")
    lines = main(*args, "--prompt_lines", "true").out.removesuffix("\n").split("\n---\n")
    assert [x[:4] for x in lines] == ["ROME", "good"]


def prompts(**given) -> list[str]:
    options = {"prompt": "", "prompt_file": None, "prompt_lines": False}
    return read_prompts(SimpleNamespace(**options | given))


def test_a_file_is_one_prompt_or_one_for_each_line(tmp_path):
    file = tmp_path / "a.txt"
    file.write_bytes(b"a\n\nb\n")
    assert prompts(prompt="x") == ["x"]
    assert prompts() == [""]
    assert prompts(prompt_file=str(file)) == ["a\n\nb\n"]
    assert prompts(prompt_file=str(file), prompt_lines=True) == ["a", "", "b"]


def test_options_of_prompts_that_contradict_each_other_are_refused(tmp_path):
    file = tmp_path / "a.txt"
    file.write_bytes(b"")
    assert "needs --prompt_file" in refusal(prompts, prompt_lines=True)
    assert "contradict" in refusal(prompts, prompt="x", prompt_file=str(file))
    assert "is empty" in refusal(prompts, prompt_file=str(file), prompt_lines=True)
    file.write_bytes(b"ab\xff")
    assert "not UTF-8 at offset 2" in refusal(prompts, prompt_file=str(file))


@pytest.mark.parametrize("prompt", ODD_PROMPTS)
def test_a_prompt_may_look_like_an_option_or_like_yaml(in_folder, main, prompt):
    alphabet = "".join(sorted(set("".join(ODD_PROMPTS))))
    save_run("any", small_checkpoint(alphabet=alphabet))
    done = main("predict", "--prompt", prompt, "--max_new_tokens", 0, "--seed_everything", 1)
    assert done.out == prompt + "\n", done.err


def test_characters_outside_the_alphabet_are_refused_before_a_seed_is_chosen(in_trained, main):
    done = main("predict", "--prompt", "séa ω")
    is_error(done, "'é' (U+00E9", "write 'e'", "'ω' (U+03C9")
    assert done.out == ""
    assert done.err.count("\n") == 1


# On a terminal.


def stream(terminal: bool) -> SimpleNamespace:
    return SimpleNamespace(isatty=lambda: terminal)


VALUES = ("--prompt=", "--prompt_file=a", "--prompt_lines=true", "--num_samples=1")
VALUES += ("--check_overlap=false",)


def test_only_a_person_who_gives_no_prompt_is_asked_for_prompts(monkeypatch):
    def asked(*arguments: str, stdin: bool = True, stdout: bool = True, **texts: str) -> bool:
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdin", stream(stdin))
            patch.setattr(sys, "stdout", stream(stdout))
            return asks_for_prompts(make_parser(), list(arguments), texts)

    assert asked()
    assert asked("--run", "a", "--temperature=1", "--seed_everything=7", stop="b")
    assert not asked(stdin=False)
    assert not asked(stdout=False)
    assert not asked(prompt="")
    assert {v[2:].split("=")[0] for v in VALUES} == set(NOT_INTERACTIVE)
    assert not any(asked(value) for value in VALUES)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdin", None)
        assert not asks_for_prompts(make_parser(), [], {})


def test_a_prompt_on_a_terminal_is_answered_as_in_a_pipe(in_trained, main, monkeypatch):
    args = ("predict", "--prompt", "ROMEO:\n", "--seed_everything", 7)
    piped = main(*args)
    monkeypatch.setattr(predict, "converse", None)
    with monkeypatch.context() as patch:
        for name in ("stdin", "stdout"):
            patch.setattr(getattr(sys, name), "isatty", lambda: True, raising=False)
        on_terminal = main(*args)
    assert (on_terminal.out, on_terminal.err) == (piped.out, piped.err)


# Defaults.


def test_options_come_from_the_command_line_then_the_config_then_the_run(in_trained, main):
    common = ("--run", "tiny", "--prompt", "ROMEO", "--seed_everything", 1)
    of_run = main("predict", *common)
    assert len(of_run.out) == len("ROMEO") + 40 + 1
    assert main("predict", *common, "--sampling", "top_k", "--top_k", 3).out == of_run.out
    (in_trained / "short.yaml").write_text("generate: {max_new_tokens: 7}")
    of_config = main("predict", *common, "--config", "short.yaml")
    assert len(of_config.out) == len("ROMEO") + 7 + 1
    of_both = main("predict", *common, "--config", "short.yaml", "--max_new_tokens", 4)
    assert len(of_both.out) == len("ROMEO") + 4 + 1


@pytest.mark.parametrize(
    ("args", "given"),
    [
        ([], {}),
        (["--temperature", "1"], {"temperature": 1}),
        (["--sampling=argmax", "--stop", "null"], {"sampling": "argmax", "stop": None}),
        (["--run", "a", "--prompt=--top_k 3", "--num_samples", "2"], {}),
    ],
)
def test_given_options_are_those_of_the_command_line_and_not_the_defaults(args, given):
    assert given_options(make_parser(), args) == given


def test_another_sampling_on_the_command_line_replaces_that_of_the_run(in_trained, main):
    done = main("predict", "--run", "tiny", "--prompt", "o", "--sampling", "argmax")
    assert done.code == 0, done.err  # with the run's top_k it would contradict


@pytest.mark.parametrize(
    ("group", "words"),
    [
        ("{temperature: hot}", ["temperature is 'hot'"]),
        ("{max_new_tokens: 1.5}", ["max_new_tokens is 1.5", "whole number"]),
        ("{top_kk: 3}", ["no option top_kk", "top_k"]),
    ],
)
def test_wrong_values_in_a_configs_generate_group_are_refused(in_folder, main, group, words):
    Path("wrong.yaml").write_text(f"generate: {group}\n")
    save_run("tiny")
    is_error(main("predict", "--config", "wrong.yaml", "--run", "tiny"), *words)


def test_the_run_is_that_of_the_config(in_folder, main):
    for name in ("one", "two"):
        save_run(name)
    (in_folder / "one.yaml").write_text("generate: {max_new_tokens: 3}")
    assert main("predict", "--config", "one.yaml", "--prompt", "a").code == 0
    (in_folder / "three.yaml").write_text("generate: {max_new_tokens: 3}")
    is_error(main("predict", "--config", "three.yaml"), "no run three")


def test_the_number_of_threads_is_one_that_this_machine_has(in_trained, main):
    args = ("predict", "--prompt", "o", "--seed_everything", 1)
    assert main(*args, "--threads", 1).out == main(*args).out
    is_error(main(*args, "--threads", 5000), "--threads is 5000", "at most")
    is_error(main(*args, "--threads", 0), "--threads is 0", "above 0")
    is_error(main(*args, "--threads", 1, "--trainer.accelerator", "cpu"), "--threads", "--trainer")


def test_smaller_weights_are_not_for_a_trainer(in_folder, main):
    save_run("one")
    args = ("predict", "--prompt", "a", "--weights", "int8", "--trainer.accelerator", "cpu")
    is_error(main(*args), "--weights int8", "--trainer")
