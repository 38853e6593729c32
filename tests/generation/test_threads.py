"""Laws of the number of threads, which depends on measured times only: here they are invented."""

import random
from collections import Counter
from collections.abc import Callable

import pytest

from lightning_app.generation.threads import ThreadChoice


def generate(choice: ThreadChoice, seconds: Callable[[int], float], calls: int) -> list[int]:
    """The numbers of threads of so many calls that each take `seconds(threads)`."""
    chosen = []
    for _ in range(calls):
        threads = choice.next()
        choice.record(threads, seconds(threads), 16)
        chosen.append(threads)
    return chosen


def idle(threads: int) -> float:
    """A machine with 8 processors and nothing else to do."""
    return 1 / min(threads, 8) + 0.02 * threads


def busy(threads: int) -> float:
    """Every thread more makes it slower."""
    return 2.0 * threads


def test_the_first_call_and_a_machine_with_one_processor_use_one_thread():
    assert ThreadChoice(8).next() == 1
    assert set(generate(ThreadChoice(1), idle, 100)) == {1}


def test_a_given_number_is_used_always():
    assert set(generate(ThreadChoice(8, given=3), busy, 100)) == {3}


@pytest.mark.parametrize(("most", "best"), [(2, 2), (3, 3), (4, 4), (6, 6), (8, 8), (64, 8)])
def test_on_an_idle_machine_it_is_the_fastest_number(most, best):
    chosen = generate(ThreadChoice(most), idle, 500)
    assert Counter(chosen[20:]).most_common(1)[0][0] == best
    assert set(chosen) <= {1, 2, 4, 8, 16, most}


def test_on_a_busy_machine_it_is_one_thread_and_no_more_than_two_are_tried():
    chosen = generate(ThreadChoice(64), busy, 2000)
    assert set(chosen) == {1, 2}
    assert sum(map(busy, chosen)) < 1.04 * 2000 * busy(1)


def test_trials_take_a_few_percent_of_the_time_however_slow_they_are():
    for slower in (1.1, 3, 30):
        chosen = generate(ThreadChoice(2), lambda n, s=slower: s if n == 2 else 1.0, 5000)
        assert sum(slower for n in chosen if n == 2) < 0.03 * 5000 + 2 * slower


def test_the_very_first_call_is_not_counted():
    choice = ThreadChoice(2)
    choice.record(1, 100.0, 16)  # code is loaded
    chosen = generate(choice, lambda n: float(n), 100)
    assert chosen.count(2) < 10


def test_it_follows_a_machine_that_becomes_busy_and_idle_again():
    choice = ThreadChoice(8)
    generate(choice, idle, 300)
    during = generate(choice, busy, 300)
    assert Counter(during[20:]).most_common(1)[0][0] == 1
    after = generate(choice, idle, 3000)
    assert set(after[-100:]) <= {4, 8}
    assert Counter(after[-100:]).most_common(1)[0][0] == 8


def test_one_slow_call_of_the_fastest_does_not_change_it_where_the_other_is_slower():
    choice = ThreadChoice(2)
    generate(choice, busy, 201)
    generate(choice, lambda threads: 5.0, 1)
    assert generate(choice, busy, 20).count(2) <= 1


def test_sizes_of_calls_may_differ():
    choice, rng = ThreadChoice(2), random.Random(0)
    chosen = []
    for _ in range(500):
        threads, size = choice.next(), rng.randint(1, 128)
        choice.record(threads, size * (0.6 if threads == 2 else 1.0), size)
        chosen.append(threads)
    assert Counter(chosen[10:]).most_common(1)[0][0] == 2


def test_with_noise_the_better_number_gets_nearly_all_calls():
    rng = random.Random(1)

    def noisy(threads: int) -> float:  # two threads: mostly held up, sometimes lucky
        if threads == 1:
            return 1.0 if rng.random() < 0.7 else 3.0
        return 0.6 if rng.random() < 0.3 else 8.0

    chosen = generate(ThreadChoice(2), noisy, 5000)
    assert chosen.count(2) < 250
