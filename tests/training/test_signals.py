"""Laws of signals: the first is recorded, a second Ctrl-C ends the process, handlers come back."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from lightning_app.training.signals import Interrupted, Signals

ROOT = Path(__file__).parents[2]
both = pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])


@both
def test_a_signal_is_recorded_and_raises_nothing(signum, capsys):
    with Signals() as signals:
        signals.listen()
        assert signals.received is None
        signal.raise_signal(signum)
        assert signals.received == signum
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "\nstopping after this step (Ctrl-C again: at once)\n"


@both
def test_the_handlers_from_before_are_restored(signum):
    seen = []
    before = signal.signal(signum, lambda *args: seen.append("before"))
    try:
        with Signals() as signals:
            signals.listen()
            signal.raise_signal(signum)
        assert signals.received == signum
        assert seen == []
        signal.raise_signal(signum)
        assert seen == ["before"]
    finally:
        signal.signal(signum, before)


@both
def test_listening_again_replaces_handlers_installed_meanwhile(signum):
    with Signals() as signals:
        signal.signal(signum, signal.SIG_IGN)
        signals.listen()
        signal.raise_signal(signum)
    assert signals.received == signum


def test_another_thread_changes_no_handlers():
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def run() -> None:
        with Signals():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [before]
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize(
    ("first", "second", "code"),
    [("SIGINT", "SIGINT", 130), ("SIGTERM", "SIGINT", 130), ("SIGINT", "SIGTERM", 0)],
)
def test_a_second_ctrl_c_ends_the_process_at_once(first, second, code):
    program = f"""
import signal
from lightning_app.training.signals import Signals
with Signals() as signals:
    signals.listen()
    signal.raise_signal(signal.{first})
    signal.raise_signal(signal.{second})
    assert signals.received == signal.{second}
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == code, done.stderr


@both
def test_before_the_first_step_a_signal_ends_the_process_at_once(signum):
    program = f"""
import os, time
from lightning_app.training.signals import Signals
with Signals():
    os.kill(os.getpid(), {int(signum)})
    time.sleep(60)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        timeout=30,
    )
    assert done.returncode == -signum


@both
def test_an_interruption_is_no_error_and_knows_its_signal(signum):
    interrupted = Interrupted(signum)
    assert interrupted.signum == signum
    assert str(interrupted) == signal.Signals(signum).name
    assert not isinstance(interrupted, Exception)
