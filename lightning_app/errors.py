"""The exception for mistakes that a user can correct, and the command that messages suggest."""

import shlex
import shutil
import sys
from pathlib import Path


class UserError(Exception):
    """A mistake that a user can correct. The message is one line that names it and the remedy.

    The command line prints `error: ` and this line instead of a traceback, and exits with code 2.
    """


def program() -> str:
    """How the user started this program, quoted for a POSIX shell; suggested commands begin so.

    `chargpt` if that was typed; else the interpreter with main.py or -m, such as `python main.py`,
    which is also the answer where another program uses the command line.
    """
    script = Path(sys.argv[0])
    if script.stem == "chargpt":
        return "chargpt" if shutil.which("chargpt") else shlex.quote(str(script))
    if script.name == "main.py" or script.parts[-2:] == ("lightning_app", "__main__.py"):
        return shlex.join(sys.orig_argv[: len(sys.orig_argv) - len(sys.argv) + 1])
    return "python main.py"
