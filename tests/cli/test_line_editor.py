"""Laws of the line editor: what a line is, when lines end, and where earlier lines are kept."""

import os
from pathlib import Path

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from lightning_app.cli.line_editor import MAX_STORED, LineEditor, history_file

UP = "\x1b[A"


def read_lines(history: Path, *keys: str) -> list[str]:
    """The lines that an editor reads from these keys, one string for each time that it asks, and
    then Ctrl-D."""
    with create_pipe_input() as keyboard, create_app_session(keyboard, DummyOutput()):
        editor = LineEditor([], history)
        typed, ask = iter([*keys, "\x04"]), editor.session.prompt

        def prompt() -> str:
            keyboard.send_text(next(typed))
            return ask()

        editor.session.prompt = prompt
        lines = []
        try:
            while True:
                lines.append(editor.read())
        except EOFError:
            return lines


def test_lines_are_read_until_ctrl_d(tmp_path):
    assert read_lines(tmp_path / "h", "abc\r", "\r", " d e \r") == ["abc", "", " d e "]


def test_pasted_lines_are_one(tmp_path):
    assert read_lines(tmp_path / "h", "\x1b[200~a\r\nb\nc\x1b[201~\r") == ["a\nb\nc"]


def test_ctrl_c_empties_a_line_and_ends_at_an_empty_one(tmp_path):
    assert read_lines(tmp_path / "h", "abc\x03", "d\r", "\x03", "e\r") == ["d"]


def test_tab_completes_commands_but_not_prompts(tmp_path):
    completer = LineEditor(["/more", "/temperature"], tmp_path / "h").session.completer

    def completed(line: str) -> list[str]:
        return [x.text for x in completer.get_completions(Document(line), CompleteEvent())]

    assert completed("/tem") == ["/temperature"]
    assert completed("a /mo") == []


def test_bytes_that_are_not_text_become_the_replacement_character(tmp_path):
    with create_pipe_input() as keyboard, create_app_session(keyboard, DummyOutput()):
        editor = LineEditor([], tmp_path / "h")
        keyboard.send_bytes(b"a\xffb\r")
        line = editor.read()
    line.encode()  # no lone surrogates
    assert line[0] + line[-1] == "ab"


def test_earlier_lines_come_back_in_the_next_program(tmp_path):
    path = tmp_path / "new" / "folders" / "h"
    assert read_lines(path, "first\r", "\x1b[200~a\nb\x1b[201~\r") == ["first", "a\nb"]
    assert read_lines(path, f"{UP}\r") == ["a\nb"]
    assert read_lines(path, f"{UP}{UP}{UP}\r") == ["first"]
    if os.name == "posix":
        assert path.stat().st_mode & 0o777 == 0o600


def test_very_long_lines_are_not_kept_on_disk(tmp_path):
    path = tmp_path / "h"
    read_lines(path, f"\x1b[200~{'x' * (MAX_STORED + 1)}\x1b[201~\r")
    assert path.read_text() == ""


@pytest.mark.parametrize("obstacle", ["a folder", "a file on the way", "not text"])
def test_a_history_that_cannot_be_used_never_disturbs(tmp_path, obstacle):
    path = tmp_path / "folder" / "h"
    if obstacle == "a folder":
        path.mkdir(parents=True)
    elif obstacle == "a file on the way":
        (tmp_path / "folder").write_text("")
    else:
        path.parent.mkdir()
        path.write_bytes(b"\xff\x00+\xfe\n+\xff\n")
    assert read_lines(path, "a\r", f"{UP}\r") == ["a", "a"]


def test_the_history_is_where_the_system_keeps_such_files(monkeypatch):
    name = "LOCALAPPDATA" if os.name == "nt" else "XDG_STATE_HOME"
    monkeypatch.setenv(name, "somewhere")
    assert history_file() == Path("somewhere/chargpt/predict_history")
    monkeypatch.delenv(name)
    assert history_file() == Path.home() / ".local/state/chargpt/predict_history"
