"""Laws of the training speed that is logged."""

import pytest

from lightning_app.training import throughput
from lightning_app.training.throughput import Throughput


@pytest.fixture
def clock(monkeypatch):
    """The time, to be set by the test."""
    now = [100.0]
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: now[0])
    return now


def test_the_speed_is_characters_over_seconds_since_the_last_call(clock):
    meter = Throughput()
    meter.start()
    meter.add(30)
    meter.add(70)
    clock[0] += 4
    assert meter.characters_per_second() == 25
    meter.add(10)
    clock[0] += 5
    assert meter.characters_per_second() == 2


def test_time_in_a_pause_does_not_count(clock):
    meter = Throughput()
    meter.start()
    meter.add(100)
    clock[0] += 1
    meter.pause()
    clock[0] += 1000
    meter.pause()
    meter.start()
    clock[0] += 1
    meter.start()  # it runs already
    clock[0] += 2
    assert meter.characters_per_second() == 25


def test_nothing_done_in_no_time_is_0(clock):
    assert Throughput().characters_per_second() == 0
