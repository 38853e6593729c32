"""Reading lines from a terminal, with editing and a history that is kept on disk."""

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import WordCompleter
from prompt_toolkit.history import FileHistory

MAX_STORED = 10_000  # characters of a line that is kept in the history


def history_file() -> Path:
    """Where the history is kept: below XDG_STATE_HOME, by default ~/.local/state; on Windows below
    LOCALAPPDATA."""
    name = "LOCALAPPDATA" if os.name == "nt" else "XDG_STATE_HOME"
    folder = os.environ.get(name) or os.path.expanduser("~/.local/state")
    return Path(folder, "chargpt", "predict_history")


class History(FileHistory):
    """Lines kept in a file that only the user can read. If it cannot be read or written, the
    history lasts until the program ends."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(mode=0o600)

    def load_history_strings(self) -> Iterable[str]:
        with suppress(OSError):
            return super().load_history_strings()
        return ()

    def store_string(self, string: str) -> None:
        if len(string) <= MAX_STORED:
            with suppress(OSError):
                super().store_string(string)


class LineEditor:
    """Asks for lines on a terminal.

    Args:
        commands: Words that Tab completes at the start of a line.
        history: The file of earlier lines.
    """

    def __init__(self, commands: Sequence[str], history: Path) -> None:
        self.session: PromptSession[str] = PromptSession(
            "> ",
            history=History(history),
            completer=WordCompleter(commands, sentence=True),
            complete_while_typing=False,
            enable_suspend=True,  # Ctrl-Z, where the system has it
        )

    def read(self) -> str:
        """The next line; pasted lines are one.

        Ctrl-C starts an empty line. Raises EOFError for Ctrl-D, and for Ctrl-C at an empty line.
        """
        while True:
            try:
                line = self.session.prompt()
            except KeyboardInterrupt:
                if not self.session.default_buffer.text:
                    raise EOFError from None
            else:
                # bytes that are not UTF-8 are lone surrogates here
                return line.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
