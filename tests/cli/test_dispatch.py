"""Laws of the command line: exit codes, one line for an error, what is imported for whom."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from lightning_app.cli import dispatch
from lightning_app.cli.dispatch import COMMANDS, main, wants_debug
from lightning_app.errors import UserError

ROOT = Path(__file__).parents[2]


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


@pytest.mark.parametrize("name", ["predict", "export"])
def test_commands_that_neither_train_nor_score_do_not_import_lightning(name):
    code = f"""
import sys
from lightning_app.cli import main
try:
    main([{name!r}, "--help"])
except SystemExit:
    pass
print(any(m.startswith("lightning.") for m in sys.modules))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.strip().endswith("False")
