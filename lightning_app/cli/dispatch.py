"""`main`: find the command, run it, and turn its errors into one line and an exit code.

A command's module is imported when the command runs, because importing Lightning takes seconds and
not every command needs it.
"""

import importlib
import logging
import os
import signal
import sys
import warnings
from itertools import pairwise

from lightning_app.cli.explain import explain
from lightning_app.errors import UserError, program

COMMANDS = {
    "fit": "train a run; the same command again resumes it",
    "validate": "score a run on its validation split",
    "test": "score a run on its test split",
    "predict": "generate text",
    "serve": "a page and an OpenAI-style HTTP interface for a run, on this machine",
    "inspect": "describe a text before training on it",
    "export": "write a run's network for transformers or llama.cpp",
}
# Commands whose threads wait for each other in a loop of about 50 microseconds, and then sleep. By
# default they wait in a loop for milliseconds, which takes the processors from the very thread that
# they wait for if other programs run too. Generation is faster with the default.
SHORT_WAITS = ("fit", "validate", "test")
USAGE = """usage: {program} COMMAND [options]

{commands}

  {program} fit --config configs/gpt_char.yaml
  {program} predict --prompt "O God, O God!"
  {program} COMMAND --help     the options of a command
"""


def main(argv: list[str] | None = None) -> int:
    """Run one command, from `argv` or the command line.

    Returns the exit code: 0, 2 for an error that the user can correct, 128 + the signal's number
    for a run that a signal stopped. A defect raises its exception, for the traceback; so does
    every error with `--debug true`.
    """
    if argv is None and sys.getfilesystemencoding() != "utf-8":
        # a locale such as C: start again with arguments, names of files and output in UTF-8
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
    argv = list(sys.argv[1:] if argv is None else argv)
    set_up_process()
    debug = wants_debug(argv)
    try:
        return dispatch(argv)
    except BrokenPipeError:  # `| head` has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except Exception as error:
        line = explain(error)
        if debug or line is None:
            raise
        print(f"error: {' '.join(line.split())}", file=sys.stderr)
        return 2


def dispatch(argv: list[str]) -> int:
    """Run the command that `argv` begins with. Raises UserError for an unknown one."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        rows = "\n".join(f"  {name:10}{what}" for name, what in COMMANDS.items())
        print(USAGE.format(program=program(), commands=rows))
        return 0 if argv else 2
    command, rest = argv[0], argv[1:]
    if command not in COMMANDS:
        raise UserError(f"there is no command {command!r}; use one of {', '.join(COMMANDS)}")
    if command in SHORT_WAITS and "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # read when torch is imported
    module = {"validate": "evaluate", "test": "evaluate"}.get(command, command)
    run = importlib.import_module(f"lightning_app.cli.commands.{module}")
    try:
        return run.main(argv if module == "evaluate" else rest)
    except BaseException as error:
        if signum := getattr(error, "signum", None):  # signals.Interrupted: the run has been saved
            return 128 + signum
        raise


def set_up_process() -> None:
    """Settings of this process: UTF-8 output, no warnings, no code from checkpoints."""
    os.environ.setdefault("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1")  # torch.load reads data, never code
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed before the start, as a service may do
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        stream = getattr(sys, name)
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)  # importing Lightning would reset a logger's level


def wants_debug(argv: list[str]) -> bool:
    """Whether `argv` has --debug true; needed before the options are parsed."""
    return "--debug=true" in argv or ("--debug", "true") in pairwise(argv)
