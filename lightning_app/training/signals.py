"""Ctrl-C and SIGTERM: the run finishes its step, saves and exits."""

import os
import signal
import sys
import threading
from types import FrameType
from typing import Any


class Interrupted(BaseException):
    """Raised when a signal has stopped the run, after it was saved.

    `signum` is the signal's number; the exit code is 128 + signum.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


class Signals:
    """A context in which Ctrl-C and SIGTERM end the process at once until `listen` is called, and
    are then recorded in `received`.

    Before the first step nothing is lost, and a process that waits for others to start does not
    run Python's handlers. The training loop reads `received` after each step; a second Ctrl-C ends
    the process at once. Signals are handled in the main thread only; elsewhere the context does
    nothing.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.previous_handlers: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        self.previous_handlers = {
            signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)
        }
        self.set_handlers(signal.SIG_DFL)
        return self

    def __exit__(self, *exception: object) -> None:
        if threading.current_thread() is threading.main_thread():
            for signum, handler in self.previous_handlers.items():
                signal.signal(signum, handler)

    def listen(self) -> None:
        """Record signals from now on; call it after Lightning has installed its own handlers."""
        self.set_handlers(self.handle)

    @staticmethod
    def set_handlers(handler: Any) -> None:
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM):
                signal.signal(signum, handler)

    def handle(self, signum: int, frame: FrameType | None) -> None:
        if self.received is not None and signum == signal.SIGINT:
            os._exit(128 + signum)  # files are renamed when complete, so none is incomplete
        self.received = signum
        print("\nstopping after this step (Ctrl-C again: at once)", file=sys.stderr, flush=True)
