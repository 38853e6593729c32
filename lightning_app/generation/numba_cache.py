"""How loops are compiled, by numba, and where the outcome is kept."""

import hashlib
import os
import sys
from pathlib import Path

import numba
from numba.core.event import Event, Listener

# What compiled code is made of: functions, and the types and constants they are given.
SOURCES = (
    "generation/numba_cache.py",
    "generation/sampling.py",
    "generation/cpu_kernels.py",
    "generation/cpu_engine.py",
    "model/gpt.py",
)


def cache_folder() -> Path:
    """Where numba keeps what it compiled: a folder for each state of the sources, because numba
    itself looks at a function's own file, not at those of what it calls and is given."""
    here = Path(__file__).parent.parent
    sources = b"".join((here / name).read_bytes() for name in SOURCES)
    home = here / "__pycache__"
    if not os.access(here, os.W_OK):
        home = Path(os.path.expanduser("~/.cache"), here.name)
    folder = Path(numba.config.CACHE_DIR or home)  # NUMBA_CACHE_DIR goes before
    return folder / f"compiled-{hashlib.sha256(sources).hexdigest()[:16]}"


numba.config.CACHE_DIR = str(cache_folder())


class CompileNotice(Listener):
    """Says `message` once, on standard error, when a loop begins to be compiled, not loaded; for
    numba's install_listener("numba:compile", ...)."""

    def __init__(self, message: str) -> None:
        self.message = message

    def on_start(self, event: Event) -> None:
        if self.message:
            print(self.message, file=sys.stderr, flush=True)
        self.message = ""

    def on_end(self, event: Event) -> None:
        pass


def compiled(**options):
    """numba.njit, kept on disk where that can be: compiling takes seconds, loading does not."""

    def decorate(function):
        try:
            return numba.njit(cache=True, error_model="numpy", **options)(function)
        except RuntimeError:  # neither the package's folder nor the user's can be written
            return numba.njit(error_model="numpy", **options)(function)

    return decorate
