"""Laws of the command line: exit codes, one line for an error, what is imported for whom."""

import os
import signal
from types import ModuleType

import pytest

from lightning_app.cli import dispatch
from lightning_app.cli.dispatch import COMMANDS, main, wants_debug
from lightning_app.errors import UserError
from tests.helpers import python_prints


@pytest.fixture
def command(monkeypatch):
    """Make `predict` do something else: command(function of its arguments)."""

    def replace(run) -> None:
        module = ModuleType("predict")
        module.main = run
        monkeypatch.setattr(dispatch.importlib, "import_module", lambda name: module)

    return replace


def raises(error: BaseException):
    def run(argv: list[str]) -> int:
        raise error

    return run


def test_a_command_gets_its_arguments_and_gives_the_exit_code(command):
    seen = []
    command(lambda argv: seen.append(argv) or 7)
    assert main(["predict", "--prompt", "x"]) == 7
    assert seen == [["--prompt", "x"]]


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("fit", {}, "1000"),
        ("predict", {}, None),
        ("fit", {"GOMP_SPINCOUNT": "7"}, "7"),
        ("fit", {"OMP_WAIT_POLICY": "ACTIVE"}, None),
    ],
)
def test_threads_wait_briefly_in_training_unless_the_user_has_chosen(
    command, monkeypatch, name, given, expected
):
    for variable in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(variable, given.get(variable, ""))
        if variable not in given:
            monkeypatch.delenv(variable)
    command(lambda argv: 0)
    assert main([name]) == 0
    assert os.environ.get("GOMP_SPINCOUNT") == expected


@pytest.mark.parametrize("argv", [["-h"], ["--help"], ["help"], []])
def test_help_lists_every_command(argv, capsys):
    assert main(argv) == (0 if argv else 2)
    out = capsys.readouterr().out
    for name in COMMANDS:
        assert f"\n  {name} " in out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_listed_has_help(name, capsys):
    with pytest.raises(SystemExit) as end:
        raise SystemExit(main([name, "--help"]))
    assert end.value.code == 0
    assert f"main.py {name}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("fit", "Width of the network"),
        ("predict", "Below 1 gives more predictable text"),
    ],
)
def test_help_explains_options_in_the_words_of_their_class(name, words, capsys):
    with pytest.raises(SystemExit):
        raise SystemExit(main([name, "--help"]))
    assert words in " ".join(capsys.readouterr().out.split())


def test_an_unknown_command_names_those_there_are(capsys):
    assert main(["train"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: there is no command 'train'; use one of fit, ")
    assert err.count("\n") == 1


def test_a_users_error_is_one_line_and_exit_code_2(command, capsys):
    command(raises(UserError("two\n lines ")))
    assert main(["predict"]) == 2
    assert capsys.readouterr() == ("", "error: two lines\n")


def test_debug_shows_the_traceback_of_a_users_error(command):
    command(raises(UserError("x")))
    for debug in (["--debug", "true"], ["--debug=true"]):
        with pytest.raises(UserError):
            main(["predict", *debug])


def test_debug_is_an_option_not_a_text():
    assert wants_debug(["fit", "--run", "x", "--debug", "true"])
    for argv in (["--debug"], ["--debug", "false"], ["--prompt", "--debug true"], ["true"]):
        assert not wants_debug(argv)


def test_a_defect_raises(command):
    command(raises(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        main(["predict"])


def test_a_signal_gives_128_and_its_number(command):
    command(raises(KeyboardInterrupt()))
    assert main(["predict"]) == 130
    stopped = SystemExit()
    stopped.signum = signal.SIGTERM
    command(raises(stopped))
    assert main(["predict"]) == 143


def test_commands_that_neither_train_nor_score_do_not_import_lightning(trained, tmp_path):
    code = f"""
import sys
from lightning_app.cli import main
assert main(["predict", "--prompt", "o", "--max_new_tokens", "3"]) == 0
assert main(["export", "--to", {str(tmp_path / "out")!r}]) == 0
assert main(["inspect", "--data.corpus", "text.txt", "--baselines", "false"]) == 0
import lightning_app.cli.commands.serve, lightning_app.serving.server
print([m for m in sys.modules if m.startswith(("lightning.", "torchmetrics", "torch._inductor"))])
"""
    assert python_prints(code, cwd=trained.folder).splitlines()[-1] == "[]"
