"""Tests of lightning_app.cli.screens: the commands that `fit` suggests work as printed."""

import shlex

import pytest

from lightning_app.cli.predict import join_texts, make_parser
from lightning_app.cli.screens import example_prompt, next_commands


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
    predict, test, _ = next_commands(run, prompt)
    words = shlex.split(predict)
    assert words[:3] == ["python", "main.py", "predict"]
    config = make_parser().parse_args(join_texts(words[3:]))
    assert (config.run, config.prompt) == (run, prompt)
    assert shlex.split(test) == ["python", "main.py", "test", "--run", run]
