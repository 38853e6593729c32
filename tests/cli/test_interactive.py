"""Laws of predict on a terminal: prompts, commands, and what happens to mistakes."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from lightning_app.cli.interactive import (
    COMMANDS,
    OPTIONS,
    Conversation,
    as_commands,
    ended_by_ctrl_c,
    shown,
    unescape,
)
from lightning_app.generation.cpu_engine import CPUEngine
from lightning_app.generation.generate import generate_text
from lightning_app.generation.sampling import GenerateOptions
from lightning_app.runs.checkpoint import SECTION, TrainedModel, load
from tests.helpers import MAIN, save_run, small_checkpoint, writing_network

RUN_OPTIONS = GenerateOptions(temperature=1.5, max_new_tokens=12)


@pytest.fixture
def model(tmp_path, monkeypatch) -> TrainedModel:
    monkeypatch.chdir(tmp_path)
    sizes = {"n_layer": 2, "n_embd": 16, "n_kv_head": 1, "mlp_size": 24}
    state = small_checkpoint(writing_network(), "\n abcdefghi", **sizes)
    state[SECTION]["counts"] = list(range(11))
    return load(save_run("one", state))


@pytest.fixture
def talk(model, capsys):
    """What a user sees after typing these lines: standard output, standard error."""

    def typed(*lines: str, seed: int | None = 7) -> tuple[str, str]:
        following: Iterator[str] = iter(lines)

        def read_line() -> str:
            try:
                return next(following)
            except StopIteration:
                raise EOFError from None

        Conversation(model, RUN_OPTIONS, seed, CPUEngine(model.gpt, 1), read_line).run()
        return capsys.readouterr()

    return typed


def predicted(model: TrainedModel, prompt: str, seed: int = 7, **given) -> str:
    """The text of `predict` without a terminal, and the empty line that follows it."""
    options = RUN_OPTIONS.updated(**given)
    (text,) = generate_text(model.gpt, model.tokenizer, [prompt], options, seed, 1, model.unigram)
    return f"{prompt}{text}\n\n"


def test_a_prompt_gives_the_text_of_predict_and_an_empty_line_one_without_a_prompt(talk, model):
    out, _ = talk("abc", "", r"a\nb")
    assert out == predicted(model, "abc") + predicted(model, "") + predicted(model, "a\nb")


def test_every_option_is_a_command_that_changes_it(talk, model):
    values = {
        "sampling": "top_k", "temperature": "0.5", "top_k": "2", "top_p": "0.6", "min_p": "0.2",
        "repetition_penalty": "1.4", "max_new_tokens": "5", "stop": "b",
    }  # fmt: skip
    assert set(values) == set(OPTIONS)
    for name, value in values.items():
        out, err = talk(f"/{name} {value}", "abc")
        typed = {"temperature": 0.5, "top_k": 2, "top_p": 0.6, "min_p": 0.2, "max_new_tokens": 5}
        typed |= {"repetition_penalty": 1.4}
        assert out == predicted(model, "abc", **{name: typed.get(name, value)})
        assert err.endswith(f"{name} {value}\n")


def test_an_option_that_chooses_the_sampling_replaces_the_one_before(talk, model):
    out, err = talk("/top_k 2", "/top_p 0.6", "/temperature 0", "/temperature 1", "abc")
    assert "error" not in err
    assert out == predicted(model, "abc", top_p=0.6, temperature=1.0)


def test_length_is_short_for_max_new_tokens_and_reset_undoes_everything(talk, model):
    out, _ = talk("/length 3", "/seed 9", "abc", "/reset", "abc")
    assert out == predicted(model, "abc", seed=9, max_new_tokens=3) + predicted(model, "abc")


def test_a_text_and_more_of_it_are_one_longer_text(talk, model):
    for prompt in ("abc", ""):
        out, _ = talk(prompt, "/more", "/length 6", "/more")
        longer = predicted(model, prompt, max_new_tokens=30)
        first, second = len(prompt) + 12, len(prompt) + 24
        assert out == "\n\n".join([longer[:first], longer[first:second], longer[second:]])


def test_without_a_seed_texts_differ_and_the_seed_shown_gives_the_text_again(talk, model):
    out, err = talk("/length 40", "abc", "abc", "/seed", seed=None)
    first, second = out[:43], out[45:88]
    assert first != second
    seed = int(re.search(r"seed random \(the last text's was (\d+)\)", err)[1])
    assert predicted(model, "abc", seed, max_new_tokens=40) == second + "\n\n"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/temperatures 1", "there is no command /temperatures; did you mean /temperature?"),
        ("/zzz", "there is no command /zzz; /help lists them"),
        ("/temperature hot", "/temperature is hot; give a number, 0 or more"),
        ("/max_new_tokens 1.5", "/max_new_tokens is 1.5; give a whole number, 0 or more"),
        ("/top_p 0", "/top_p is 0, which leaves no character; give a value up to 1"),
        ("/sampling best", "/sampling is best; give"),
        ("/seed -1", "/seed is -1; give a whole number, 0 or more"),
        ("/more", "/more continues the last text, and there is none yet"),
        ("/more 5", "/more takes no value"),
        ("xé", "the prompt has characters the model never saw: 'x' (U+0078"),
        ("// b", "the prompt has characters the model never saw: '/' (U+002F"),
        (r"\/more", "the prompt has characters the model never saw: '/' (U+002F"),
        ("/usr/bin", "the prompt has characters the model never saw: '/' (U+002F"),
    ],
)
def test_a_mistake_is_one_line_and_changes_nothing(talk, model, line, message):
    out, err = talk(line, "abc")
    errors = [x for x in err.splitlines() if x.startswith("error: ")]
    assert len(errors) == 1
    assert errors[0].startswith(f"error: {message}")
    assert "--" not in errors[0]
    assert out == predicted(model, "abc")


def test_ctrl_c_stops_the_text_which_can_then_be_continued(talk, model, monkeypatch):
    show, count = Conversation.show, 0

    def interrupted(self, new: list[str]) -> None:
        nonlocal count
        show(self, new)
        count += 1
        if count == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(Conversation, "show", interrupted)
    out, _ = talk("abc", "/more", "b")
    whole = predicted(model, "abc", max_new_tokens=17)
    assert out == f"{whole[:8]}\n\n{whole[8:20]}\n\n" + predicted(model, "b")


def test_help_names_every_command_and_the_present_values(talk):
    out, _ = talk("/temperature 0.25", "/help")
    for command in COMMANDS:
        assert re.search(rf"^{command} ", out, re.MULTILINE)
    assert "0 is argmax. Now: 0.25." in " ".join(out.split())
    assert max(map(len, out.splitlines())) <= 100
    assert "--" not in out


def test_quit_ends(talk, model):
    assert talk("/quit", "abc").out == ""


@pytest.mark.parametrize(
    ("line", "text"),
    [(r"a\nb\tc", "a\nb\tc"), (r"a\\nb", r"a\nb"), (r"\x \\", r"\x " + "\\"), (r"\/more", "/more")],
)
def test_a_line_stands_for_a_text(line, text):
    assert unescape(line) == text


def test_values_and_messages_are_shown_as_they_are_typed():
    assert [shown(x) for x in (None, 0.5, "top_k", "\n", "a b")] == [
        "not used", "0.5", "top_k", r"'\n'", "'a b'",
    ]  # fmt: skip
    assert (
        as_commands("--top_k contradicts --top_p -- a dash")
        == "/top_k contradicts /top_p -- a dash"
    )


def test_ctrl_c_that_compiled_code_has_lost_still_ends_the_text():
    shown = []
    before = signal.getsignal(signal.SIGINT)
    with ended_by_ctrl_c() as check:
        with suppress(KeyboardInterrupt):  # as a callback of compiled code does
            signal.raise_signal(signal.SIGINT)
        shown.append("a")
        check()
        shown.append("b")
    assert shown == ["a"]
    assert signal.getsignal(signal.SIGINT) is before


# The complete program on a real terminal.


class Terminal:
    """A process on a pseudo-terminal, and what it has printed."""

    READY = "\x1b[?2004h"  # the line editor asks for pasted text in brackets: it waits for a line

    def __init__(self, *arguments: str, cwd: Path) -> None:
        import pty

        self.fd, terminal = pty.openpty()
        extra = {"TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1", "XDG_STATE_HOME": str(cwd)}
        self.process = subprocess.Popen(
            [sys.executable, str(MAIN), *arguments],
            cwd=cwd, stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True,
            env=os.environ | extra, preexec_fn=take_terminal,
        )  # fmt: skip
        os.close(terminal)
        self.printed = ""

    def type(self, keys: str) -> None:
        os.write(self.fd, keys.encode())

    def until(self, text: str) -> str:
        """Wait until it prints `text`; what it printed before."""
        deadline = time.monotonic() + 100
        while text not in self.printed:
            assert time.monotonic() < deadline, self.printed
            try:
                data = os.read(self.fd, 4096)
            except OSError:  # Linux: the process has ended
                data = b""
            assert data, self.printed
            self.printed += data.decode(errors="replace").replace("\r\n", "\n")
        before, _, self.printed = self.printed.partition(text)
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", before)

    def close(self) -> int:
        """Wait until the process ends; its exit code."""
        try:
            while os.read(self.fd, 4096):
                pass
        except OSError:
            pass
        os.close(self.fd)
        return self.process.wait(timeout=60)


def take_terminal() -> None:
    """In the new process: the terminal on standard input is the one that Ctrl-C comes from."""
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@pytest.mark.skipif(os.name == "nt", reason="pseudo-terminals are for POSIX systems")
def test_a_conversation_on_a_terminal(model, tmp_path):
    terminal = Terminal("predict", "--max_new_tokens", "9", "--seed_everything", "7", cwd=tmp_path)
    assert "type a prompt" in terminal.until(Terminal.READY)
    terminal.type("abc\r")
    defaults = {"temperature": 0.8, "max_new_tokens": 9}
    assert terminal.until(Terminal.READY).endswith("\n" + predicted(model, "abc", **defaults))
    terminal.type("/length 1000000\r")
    terminal.until(Terminal.READY)
    terminal.type("\x1b[200~a\nb\x1b[201~\r")  # pasted
    terminal.until(predicted(model, "a\nb", **defaults).rstrip())
    terminal.type("\x03")  # Ctrl-C: stops the text
    terminal.until(Terminal.READY)
    terminal.type("\x1b[A\x1b[A\x1b[A\x15x\x03")  # the line before the last, deleted; Ctrl-C
    terminal.until(Terminal.READY)
    terminal.type("\x04")  # Ctrl-D
    assert terminal.close() == 0
    history = (tmp_path / "chargpt" / "predict_history").read_text()
    assert re.findall(r"^\+(.*)", history, re.MULTILINE) == ["abc", "/length 1000000", "a", "b"]
