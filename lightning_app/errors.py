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
        found = shutil.which("chargpt")
        on_path = found is not None and Path(found).parent.resolve() == script.parent.resolve()
        return "chargpt" if on_path else shlex.quote(str(script))
    module = script.name == "__main__.py" and "lightning_app" in script.parts[-3:]
    if script.name == "main.py" or module:
        return shlex.join(sys.orig_argv[: len(sys.orig_argv) - len(sys.argv) + 1])
    return "python main.py"
