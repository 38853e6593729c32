"""Laws of learning rates and weight decay as functions of the step."""

from itertools import pairwise

import pytest

from lightning_app.training.optimizer import OptimOptions, parameter_groups
from lightning_app.training.schedules import ScheduleOptions, learning_rate_scale, set_rates
from tests.helpers import fresh_network

SCHEDULES = [
    ScheduleOptions(name, warmup, decay, final)
    for name in ("cosine", "linear", "constant")
    for warmup in (0, 10, 70)
    for decay in (0.0, 0.6, 1.0)
    for final in (0.0, 0.1, 1.0)
]
every_schedule = pytest.mark.parametrize("options", SCHEDULES, ids=str)
decaying = pytest.mark.parametrize("name", ["cosine", "linear"])


def scales(options: ScheduleOptions, max_steps: int = 50) -> list[float]:
    return [learning_rate_scale(step, max_steps, options) for step in range(max_steps)]


@every_schedule
def test_the_learning_rate_is_positive_from_the_first_step_to_the_last_and_never_above_the_peak(
    options,
):
    for max_steps in (1, 2, 50):
        assert all(0 < scale <= 1 for scale in scales(options, max_steps))


@pytest.mark.parametrize("name", ["cosine", "linear", "constant"])
@pytest.mark.parametrize("warmup", [0, 1, 10])
def test_warm_up_rises_by_equal_parts_to_the_peak_and_stays_until_the_decay(name, warmup):
    got = scales(ScheduleOptions(name, warmup, decay_fraction=0.6))[:21]  # it begins at step 20
    assert got == pytest.approx([min(1, (i + 1) / (warmup + 1)) for i in range(21)])


@decaying
@pytest.mark.parametrize("decay", [0.1, 0.6, 1.0])
def test_the_learning_rate_falls_all_through_the_decay_and_would_reach_0_after_the_last_step(
    name, decay
):
    options = ScheduleOptions(name, 0, decay)
    falling = scales(options)[50 - round(50 * decay) :]
    assert falling[0] == 1
    assert all(a > b for a, b in pairwise(falling))
    assert learning_rate_scale(50, 50, options) == 0
    assert learning_rate_scale(51, 50, options) == 0


def test_linear_falls_evenly_and_cosine_slowly_at_both_ends():
    linear, cosine = (scales(ScheduleOptions(n, 0, 1.0)) for n in ("linear", "cosine"))
    assert linear == pytest.approx([1 - i / 50 for i in range(50)])
    assert cosine[25] == pytest.approx(0.5)
    assert cosine[10] > linear[10]
    assert cosine[40] < linear[40]
    assert [cosine[i] + cosine[50 - i] for i in range(1, 50)] == pytest.approx([1] * 49)


@decaying
@pytest.mark.parametrize("final", [0.0, 0.25, 1.0])
def test_the_decay_ends_at_final_fraction(name, final):
    options = ScheduleOptions(name, 5, 0.5, final)
    assert learning_rate_scale(40, 40, options) == pytest.approx(final)
    assert learning_rate_scale(30, 40, options) == pytest.approx((1 + final) / 2)
    assert min(scales(options, 40)[5:]) >= final


@pytest.mark.parametrize("name", ["constant", "linear"])
def test_constant_and_a_decay_of_nothing_stay_at_the_peak(name):
    options = ScheduleOptions(name, 3, 0.0 if name == "linear" else 0.6)
    assert set(scales(options)[3:]) == {1.0}


@every_schedule
def test_an_extended_run_has_the_schedule_of_a_run_begun_at_that_length(options):
    fresh = scales(options, 80)
    scales(options, 40)  # the shorter run leaves nothing behind
    assert [learning_rate_scale(i, 80, options) for i in reversed(range(80))] == fresh[::-1]
    before_any_decay = round(40 * (1 - options.decay_fraction))
    assert scales(options, 40)[:before_any_decay] == fresh[:before_any_decay]


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_rates_are_those_of_the_step_and_weight_decay_grows_evenly(name):
    groups = parameter_groups(fresh_network(), OptimOptions(name, 0.5, 0.25, 0.1, 0.5))
    schedule = ScheduleOptions(warmup_steps=0, decay_fraction=1.0)
    for step, scale in ((0, 1.0), (10, 0.75), (39, 1 / 40), (10, 0.75)):
        set_rates(groups, step, 40, schedule)
        for group in groups:
            assert group["lr"] == pytest.approx(scale * (0.25 if group["muon"] else 0.5))
            spared = group["name"] == "embedding_and_gains"
            decay = 0.0 if spared else 0.1 + 0.4 * step / 40
            assert group["weight_decay"] == pytest.approx(decay)


def test_weight_decay_is_constant_unless_it_is_to_grow():
    groups = parameter_groups(fresh_network(), OptimOptions(weight_decay=0.3))
    for step in (0, 20, 39):
        set_rates(groups, step, 40, ScheduleOptions())
        assert [group["weight_decay"] for group in groups] == [0.3, 0.3, 0.0]


@every_schedule
@pytest.mark.parametrize("max_steps", [-1, 0])
def test_where_the_number_of_steps_is_not_known_rates_stay_after_the_warm_up(options, max_steps):
    groups = parameter_groups(fresh_network(), OptimOptions(weight_decay=0.3, final_weight_decay=9))
    for step in (0, 5, 1000):
        set_rates(groups, step, max_steps, options)
        scale = min(1, (step + 1) / (options.warmup_steps + 1))
        assert groups[0]["lr"] == pytest.approx(0.03 * scale)
        assert groups[0]["weight_decay"] == 0.3  # once it fell below 0
