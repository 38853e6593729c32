"""predict without a prompt, on a terminal: it asks for prompts until the user ends it.

A line is a prompt, or a command that begins with a slash. Every option of GenerateOptions is a
command of the same name; its parser and its description are those of the command line.
"""

import re
import secrets
import signal
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields
from typing import Any

import docstring_parser
from jsonargparse.typing import NonNegativeInt

from lightning_app.cli.parsing import FriendlyErrors, suggestion
from lightning_app.errors import UserError
from lightning_app.generation.cpu_engine import CPUEngine
from lightning_app.generation.generate import (
    collect_texts,
    generate_compiled,
    generate_ids,
    sample_rng,
)
from lightning_app.generation.sampling import GenerateOptions
from lightning_app.runs.checkpoint import TrainedModel, checkpoint_summary

COMMAND = re.compile(r"/([A-Za-z]\w*)(?: (.*))?", re.DOTALL)
ESCAPES = {r"\n": "\n", r"\t": "\t", r"\\": "\\"}
OPTIONS = tuple(f.name for f in fields(GenerateOptions))
SHORT_NAMES = {"length": "max_new_tokens"}
HELP = """\
A line is a prompt: the beginning of a text, which the network continues. An empty line starts a
text at random. In a line, \\n is a new line, \\t a tab, and \\\\ a backslash; lines that are pasted
together are one prompt. A prompt that looks like a command begins with a backslash: \\/more.

Ctrl-C stops the text. At an empty line it ends the program, as Ctrl-D does.
"""
OTHER_COMMANDS = {
    "more": "Continue the last text.",
    "seed": "With a number, the same prompt always gives the same text; random: another one each "
    "time, the default. Without a value, show the last text's.",
    "reset": "Set everything as it was at the start.",
    "help": "Show this.",
    "quit": "End the program.",
}
COMMANDS = tuple(f"/{name}" for name in (*OPTIONS, *SHORT_NAMES, *OTHER_COMMANDS))


@contextmanager
def ended_by_ctrl_c() -> Iterator[Callable[[], None]]:
    """Ctrl-C ends the block, and only it.

    It raises KeyboardInterrupt; but Python drops an exception that is raised in a callback of
    compiled code. The function that the block gets raises it again.
    """
    pressed = False

    def handler(_number: int, _frame: object) -> None:
        nonlocal pressed
        pressed = True
        raise KeyboardInterrupt

    def check() -> None:
        if pressed:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, handler)
    try:
        with suppress(KeyboardInterrupt):
            yield check
    finally:
        signal.signal(signal.SIGINT, before)


class Conversation:
    """Prompts and commands from `read_line`, texts to standard output.

    Args:
        trained: The network.
        options: Of generation, not resolved; commands change them.
        seed: The same for each text, or None for another one each time.
        engine: Generates, and has measured how many threads are fastest; None on other devices.
        read_line: Returns the user's next line; raises EOFError at the end.
    """

    def __init__(
        self,
        trained: TrainedModel,
        options: GenerateOptions,
        seed: int | None,
        engine: CPUEngine | None,
        read_line: Callable[[], str],
    ) -> None:
        self.trained, self.options, self.seed = trained, options, seed
        self.engine, self.read_line = engine, read_line
        self.at_start = options, seed
        self.text: str | None = None  # the last one, with its prompt
        self.text_seed: int | None = None
        self.drawn = 0  # random numbers that the last text has used

    def run(self) -> None:
        """Answer each line until the user ends it. A mistake is reported in one line."""
        print(introduction(self.trained), file=sys.stderr)
        while True:
            try:
                line = self.read_line()
            except EOFError:
                return
            try:
                if not (command := COMMAND.fullmatch(line)):
                    self.begin(unescape(line))
                elif command[1] == "quit":
                    return
                else:
                    self.obey(command[1], command[2])
            except UserError as error:
                print(f"error: {as_commands(str(error))}", file=sys.stderr)

    # Texts.

    def begin(self, prompt: str) -> None:
        """Print a prompt and its continuation."""
        self.trained.tokenizer.encode(prompt, "the prompt")  # raises before anything is printed
        self.text_seed = secrets.randbelow(2**32) if self.seed is None else self.seed
        self.text, self.drawn = prompt, 0
        sys.stdout.write(prompt)
        self.extend()

    def extend(self) -> None:
        """Print more of the last text.

        The random numbers are those that follow, so a text and its extension are what one text of
        their length would have been.
        """
        assert self.text is not None
        assert self.text_seed is not None
        tokenizer, options = self.trained.tokenizer, self.options.resolve()
        rng = sample_rng(self.text_seed, 0, 0)
        rng.random(self.drawn)
        ids = tokenizer.encode(tokenizer.drop_invalid(self.text)).tolist()
        inputs = ([ids], [rng], options, self.trained.unigram)
        if self.engine:
            steps = generate_compiled(self.engine, *inputs)
        else:
            steps = generate_ids(self.trained.gpt, *inputs)
        with ended_by_ctrl_c() as check:  # the text so far can be continued

            def show(new: list[str]) -> None:
                self.show(new)
                check()

            collect_texts(steps, tokenizer, 1, options, show)
        print("\n", flush=True)

    def show(self, new: list[str]) -> None:
        """Print the next characters, and keep them."""
        self.text = f"{self.text}{new[0]}"
        self.drawn += 1
        sys.stdout.write(new[0])
        sys.stdout.flush()

    # Commands.

    def obey(self, name: str, value: str | None) -> None:
        """Run a command. Raises UserError for an unknown one, and for a wrong value."""
        name = SHORT_NAMES.get(name, name)
        if name not in (*OPTIONS, *OTHER_COMMANDS):
            known = [*OPTIONS, *SHORT_NAMES, *OTHER_COMMANDS]
            hint = suggestion(name, known).replace("--help lists", "/help lists")
            raise UserError(f"there is no command /{name}{hint}")
        if name in ("more", "reset", "help") and value and value.strip():
            raise UserError(f"/{name} takes no value")
        if name == "more":
            if self.text is None:
                raise UserError("/more continues the last text, and there is none yet")
            self.extend()
        elif name == "help":
            print(self.help())
        elif name == "reset":
            self.options, self.seed = self.at_start
            print("everything is as it was at the start", file=sys.stderr)
        elif name == "seed":
            self.set_seed((value or "").strip())
        else:
            self.set_option(name, value)

    def set_option(self, name: str, value: str | None) -> None:
        """Set an option of GenerateOptions; without a value, show it."""
        if value is not None and (name == "stop" or value.strip()):
            given = unescape(value) if name == "stop" else parse_option(name, value.strip())
            options = self.options.updated(**{name: given})
            options.resolve()  # raises UserError
            self.options = options
        print(f"{name} {shown(getattr(self.options.resolve(), name))}", file=sys.stderr)

    def set_seed(self, value: str) -> None:
        if value:
            self.seed = None if value == "random" else parse_option("seed", value)
        last = "" if self.text_seed is None else f" (the last text's was {self.text_seed})"
        print(f"seed {'random' if self.seed is None else self.seed}{last}", file=sys.stderr)

    def help(self) -> str:
        """What to type, and all commands with the options' present values."""
        options = self.options.resolve()
        rows = dict(OTHER_COMMANDS)
        for parameter in docstring_parser.parse(GenerateOptions.__doc__ or "").params:
            name, text = parameter.arg_name, " ".join((parameter.description or "").split())
            rows[name] = f"{as_commands(text)} Now: {shown(getattr(options, name))}."
        rows |= {short: f"The same as /{name}." for short, name in SHORT_NAMES.items()}
        lines = [
            textwrap.fill(text, 100, initial_indent=f"/{name:21} ", subsequent_indent=" " * 23)
            for name, text in rows.items()
        ]
        return "\n".join([HELP, *lines, ""])


def introduction(trained: TrainedModel) -> str:
    """The line printed before the first prompt."""
    size = sum(p.numel() for p in trained.gpt.parameters())
    return (
        f"{trained.path}: {size:,} parameters, {checkpoint_summary(trained.info)}\n"
        "type a prompt and Enter; /help lists the commands; Ctrl-D ends"
    )


def unescape(line: str) -> str:
    """The text that a line stands for: see HELP."""
    line = line.removeprefix("\\") if line.startswith("\\/") else line
    return re.sub(r"\\[nt\\]", lambda found: ESCAPES[found[0]], line)


def shown(value: Any) -> str:
    """An option's value on one line; a text as a user types it."""
    if value is None:
        return "not used"
    return repr(value) if isinstance(value, str) and not value.isidentifier() else str(value)


def parse_option(name: str, value: str) -> Any:
    """The value of an option, checked as on the command line. Raises UserError for a wrong one."""
    parser = FriendlyErrors(prog="predict")
    parser.add_class_arguments(GenerateOptions)
    parser.add_argument("--seed", type=NonNegativeInt)
    return parser.parse_args([f"--{name}={value}"], defaults=False)[name]


def as_commands(text: str) -> str:
    """A message or a description with options written as commands."""
    return re.sub(r"--(?=[a-z])", "/", text)
