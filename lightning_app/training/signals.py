"""Ctrl-C and SIGTERM: finish the step, save, exit."""

import os
import signal
import sys
import threading
from typing import Any


class Interrupted(BaseException):
    """A signal asked the run to stop; it has saved. `signum` gives the exit code, 128 + signum."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


class Signals:
    """Ctrl-C and SIGTERM: remembered until the step is over; the second Ctrl-C ends at once."""

    def __init__(self) -> None:
        self.received: int | None = None
        self.before: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        self.before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
        self.listen()
        return self

    def __exit__(self, *exception) -> None:
        if threading.current_thread() is threading.main_thread():
            for signum, handler in self.before.items():
                signal.signal(signum, handler)

    def listen(self) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, self.handle)
            signal.signal(signal.SIGTERM, self.handle)

    def handle(self, signum: int, frame) -> None:
        if self.received is not None and signum == signal.SIGINT:
            os._exit(128 + signum)  # what is being written is written beside: nothing breaks
        self.received = signum
        print("\nstopping after this step (Ctrl-C again: at once)", file=sys.stderr, flush=True)
