"""The commands of README.md exist, with the options that it gives them."""

import re
import shlex

import pytest

from lightning_app.cli.commands import evaluate, export, fit_options, inspect, predict, serve
from lightning_app.cli.configs import find_config, split_configs
from lightning_app.cli.dispatch import COMMANDS
from lightning_app.cli.parsing import take_texts
from tests.helpers import MAIN

README = (MAIN.parent / "README.md").read_text(encoding="utf-8")


def readme_commands() -> list[str]:
    """What follows `main.py` in code blocks and between backticks."""
    text = README.replace("\\\n", " ")
    blocks = re.findall(r"^```\w*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    lines = [line.split("  #")[0] for block in blocks for line in block.splitlines()]
    prose = re.sub(r"^```\w*\n.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    lines += [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose)]
    found = (re.search(r"(?:^|\s)main\.py (\S.*)", line) for line in lines)
    return list(dict.fromkeys(match[1].strip() for match in found if match))


def parse(command: str, arguments: list[str]) -> None:
    """Parse a command's options as the command does."""
    if command == "predict":
        _, arguments = take_texts(arguments, predict.TEXT_OPTIONS)
    configs, rest = split_configs(arguments)
    if command == "fit":
        fit_options.parse(configs or [find_config("gpt_char")], rest)
    elif command == "predict":
        predict.make_parser("--trainer" in " ".join(rest)).parse_args(rest)
    elif command in ("validate", "test"):
        evaluate.make_parser(command).parse_args(rest)
    else:
        {"inspect": inspect, "export": export, "serve": serve}[command].make_parser().parse_args(
            rest
        )


def test_the_readme_shows_every_command():
    assert {line.split()[0] for line in readme_commands()} == set(COMMANDS)


@pytest.mark.parametrize("line", readme_commands())
def test_a_command_of_the_readme_parses(line):
    command, *arguments = shlex.split(line, comments=True)
    parse(command, arguments)


OPTIONS = sorted(set(re.findall(r"(?<![\w-])--(?:trainer|data|model|optim|schedule)\.\w+", README)))


def test_the_group_options_of_the_readme_exist():
    keys = set(fit_options.FitCLI([find_config("gpt_char")], []).parser.get_defaults().keys())
    assert OPTIONS
    assert {option.removeprefix("--") for option in OPTIONS} - {"trainer.logger.save_dir"} <= keys
