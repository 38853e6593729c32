"""The command line: dispatch, and what every command does with signals and errors.

Lightning takes seconds to import, so a command imports only what it needs.
"""

import importlib
import logging
import os
import signal
import sys
import warnings
from itertools import pairwise

from lightning_app.cli.explain import explain
from lightning_app.errors import UserError

COMMANDS = {
    "fit": "train a run; the same command again resumes it",
    "validate": "score a run on its validation split",
    "test": "score a run on its test split",
    "predict": "write text",
    "inspect": "look at a text before training on it",
    "export": "write a folder that transformers opens",
}
USAGE = """usage: python main.py COMMAND [options]

{commands}

  python main.py fit --config configs/gpt_char.yaml
  python main.py predict --prompt "O God, O God!"
  python main.py COMMAND --help     what a command can do
"""


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 2 for a user's mistake, 128 + signal."""
    argv = list(sys.argv[1:] if argv is None else argv)
    set_up_process()
    debug = wants_debug(argv)
    try:
        return dispatch(argv)
    except BrokenPipeError:  # `| head`: the reader has enough
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
    if not argv or argv[0] in ("-h", "--help", "help"):
        rows = "\n".join(f"  {name:10}{what}" for name, what in COMMANDS.items())
        print(USAGE.format(commands=rows))
        return 0 if argv else 2
    command, rest = argv[0], argv[1:]
    if command not in COMMANDS:
        raise UserError(f"there is no command {command!r}; use one of {', '.join(COMMANDS)}")
    module = {"validate": "evaluate", "test": "evaluate"}.get(command, command)
    run = importlib.import_module(f"lightning_app.cli.{module}")
    try:
        return run.main(argv if module == "evaluate" else rest)
    except BaseException as error:
        if signum := getattr(error, "signum", None):  # Interrupted: it has saved and said so
            return 128 + signum
        raise


def set_up_process() -> None:
    """Results to standard output in UTF-8, everything else to standard error, adverts nowhere."""
    os.environ.setdefault("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1")  # a checkpoint is data
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed, as a service's may be
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        stream = getattr(sys, name)
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)  # Lightning sets its loggers' levels when imported


def wants_debug(argv: list[str]) -> bool:
    return "--debug=true" in argv or ("--debug", "true") in pairwise(argv)
