"""Laws of UserError: it stays recognisable wherever it passes through; and of `program`."""

import pickle
import sys

import pytest

from lightning_app.errors import UserError, program
from lightning_app.runs.checkpoint import CORRUPT_ERRORS


def test_a_users_error_is_not_mistaken_for_a_damaged_file():
    assert not issubclass(UserError, (*CORRUPT_ERRORS, OSError, AssertionError))


def test_a_users_error_keeps_its_message_between_processes():
    error = pickle.loads(pickle.dumps(UserError("--run a b: no; use another")))
    assert isinstance(error, UserError)
    assert str(error) == "--run a b: no; use another"


@pytest.mark.parametrize(
    ("typed", "argv", "expected"),
    [
        (["python", "main.py", "fit"], ["main.py", "fit"], "python main.py"),
        ([".venv/bin/python", "../a b/main.py"], ["../a b/main.py"], None),
        (["py", "-m", "lightning_app", "x"], ["/a/lightning_app/__main__.py", "x"], None),
        (["/v/python", "/nowhere/chargpt", "x"], ["/nowhere/chargpt", "x"], "/nowhere/chargpt"),
        (["python", "-m", "pytest", "-q"], ["/a/pytest/__main__.py", "-q"], "python main.py"),
    ],
)
def test_suggested_commands_begin_as_the_user_started_the_program(
    monkeypatch, typed, argv, expected
):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(sys, "orig_argv", typed)
    monkeypatch.setattr(sys, "argv", argv)
    given = {".venv/bin/python": ".venv/bin/python '../a b/main.py'", "py": "py -m lightning_app"}
    assert program() == (expected or given[typed[0]])
