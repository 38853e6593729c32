"""How numba compiles the loops of generation, and where it keeps the result.

Parts of numba that are not its documented interface are used here only:

- `numba.config.CACHE_DIR` is set while a function is declared. numba reads it only from the
  environment, when it is imported, and the folder must not change for other code that uses numba.
- `numba.core.event` reports when compilation starts. Without it there is no notice.
"""

import hashlib
import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import numba

try:
    from numba.core.event import Listener, install_listener
except ImportError:
    Listener = object  # type: ignore[misc, assignment]

    def install_listener(kind: str, listener: Any) -> Any:
        return nullcontext()


CONFIG: Any = numba.config  # its attributes are made at import, so mypy does not know them
F = TypeVar("F", bound=Callable[..., Any])

# The files that compiled code depends on: functions, and the types and constants they use.
SOURCES = (
    "generation/numba_cache.py",
    "generation/sampling.py",
    "generation/cpu_kernels.py",
    "generation/ngram_kernels.py",
    "generation/cpu_engine.py",
    "model/gpt.py",
    "model/ngram_counting.py",
    "model/ngrams.py",
)


def cache_folder() -> Path:
    """Where numba keeps compiled code: a folder for each state of SOURCES.

    numba itself only notices a change in the file of the compiled function, not in the files of
    the functions it calls or of the types it is given.
    """
    package = Path(__file__).parent.parent
    sources = b"".join((package / name).read_bytes() for name in SOURCES)
    parent = package / "__pycache__"
    if not os.access(package, os.W_OK):
        parent = Path(os.path.expanduser("~/.cache"), package.name)
    parent = Path(CONFIG.CACHE_DIR or parent)  # the user's NUMBA_CACHE_DIR comes first
    return parent / f"compiled-{hashlib.sha256(sources).hexdigest()[:16]}"


CACHE_FOLDER = str(cache_folder())


def has_compiled_code() -> bool:
    """Whether the loops that generate one text have been compiled, for this copy of the program.

    The folder exists as soon as they are imported.
    """
    return any(Path(CACHE_FOLDER).rglob("*.decode_row-*.nbc"))


def compiled(fastmath: bool = False, parallel: bool = False) -> Callable[[F], F]:
    """numba.njit, with the compiled code kept on disk if a folder for it can be written: compiling
    takes seconds, loading does not. Other threads of Python run during a call, which a server
    needs."""
    options: dict[str, Any] = {"fastmath": fastmath, "parallel": parallel, "nogil": True}
    options["error_model"] = "numpy"

    def decorate(function: F) -> F:
        before, CONFIG.CACHE_DIR = CONFIG.CACHE_DIR, CACHE_FOLDER
        try:
            return numba.njit(cache=True, **options)(function)
        except RuntimeError:  # numba can write to no cache folder
            return numba.njit(**options)(function)
        finally:
            CONFIG.CACHE_DIR = before

    return decorate


def max_threads() -> int:
    """The number of threads that numba started with; more cannot be set."""
    return CONFIG.NUMBA_NUM_THREADS


class CompileNotice(Listener):
    """A message on standard error, printed once, when numba starts to compile a function.

    Loading compiled code from disk does not count.
    """

    def __init__(self, message: str) -> None:
        self.message: str | None = message

    def active(self) -> AbstractContextManager[Any]:
        """A context in which compiling prints the message."""
        return install_listener("numba:compile", self)

    def on_start(self, event: object) -> None:
        if self.message:
            print(self.message, file=sys.stderr, flush=True)
        self.message = None

    def on_end(self, event: object) -> None:
        pass
