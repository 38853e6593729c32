"""The recipe of --minutes: bounds, monotonicity, and values that are kept."""

from dataclasses import replace

import pytest

from lightning_app.data.windows import check_window_schedule, window_size
from lightning_app.training.optimizer import OptimOptions
from lightning_app.training.recipe import (
    CHARACTERS_PER_PARAMETER,
    FREE_PASSES,
    MAX_PASSES,
    MAX_ROWS,
    MIN_STEPS,
    MUON_RATES,
    NGRAMS,
    RATE_STEPS,
    SCORED,
    SIZES,
    SMALL_WIDTH,
    Task,
    characters_per_step,
    choose,
    counting_seconds,
    parameter_count,
    training_flops,
)
from lightning_app.training.schedules import ScheduleOptions, learning_rate_scale

TASK = Task(1_000_000, 50_000, 80, 600.0, 1 / 2e11)
TEXTS = [2_000, 30_000, 240_000, 1_000_000, 5_000_000, 100_000_000, 3_000_000_000]
MINUTES = [1, 3, 10, 30, 60, 600]
FLOPS = [2e10, 1e11, 4e11, 1e13, 3e14]


def passes(values: dict, task: Task) -> float:
    return values["trainer.max_steps"] * characters_per_step(values) / task.characters


def seconds(recipe, task: Task) -> float:
    """What counting and the steps take."""
    characters = recipe.values["trainer.max_steps"] * characters_per_step(recipe.values)
    counting = counting_seconds(task.characters) if recipe.values["model.ngram_rows"] else 0
    per_character = training_flops(recipe.values, recipe.network) * task.seconds_per_flop
    return counting + characters * per_character


@pytest.mark.parametrize("flops", FLOPS)
@pytest.mark.parametrize("minutes", MINUTES)
@pytest.mark.parametrize("characters", TEXTS)
def test_the_steps_fit_into_the_time_and_all_values_are_in_range(characters, minutes, flops):
    kind = "gpu" if flops > 1e13 else "cpu"
    task = Task(characters, max(1, characters // 20), 80, 60.0 * minutes, 1 / flops, kind)
    recipe = choose(task)
    values = recipe.values
    step = characters_per_step(values) / characters
    assert step * MIN_STEPS <= MAX_PASSES or values["data.batch_size"] == 1
    if values["trainer.max_steps"] > 1:
        assert seconds(recipe, task) <= task.seconds
        assert MAX_PASSES - step < passes(values, task) <= MAX_PASSES or (
            seconds(recipe, task) > 0.85 * task.seconds
        )
    assert recipe.network.n_layer >= 2
    assert values["data.block_size"] < characters
    check_window_schedule(values["data.window_schedule"], values["data.block_size"])
    OptimOptions(
        **{k.removeprefix("optim."): v for k, v in values.items() if k.startswith("optim.")}
    )
    assert 0 <= values["model.dropout"] <= 0.3
    assert 0 <= values["optim.weight_decay"] <= values["optim.final_weight_decay"] <= 1000
    assert 1 <= values["trainer.val_check_interval"] <= values["trainer.max_steps"]


@pytest.mark.parametrize("characters", TEXTS)
def test_more_time_gives_a_network_at_least_as_large_and_more_text(characters):
    task = replace(TASK, characters=characters, held_out=characters // 20)
    recipes = [choose(replace(task, seconds=60.0 * m)) for m in MINUTES]
    sizes = [parameter_count(r.network) for r in recipes]
    reads = [passes(r.values, task) for r in recipes]
    assert sizes == sorted(sizes)
    assert all(
        later > earlier or later > MAX_PASSES - 1
        for earlier, later in zip(reads, reads[2:], strict=False)
    )
    if characters >= 240_000:
        assert sizes[0] < sizes[-1]


def test_a_network_for_a_small_text_has_few_parameters_and_reads_it_a_few_times():
    """So few that it reads CHARACTERS_PER_PARAMETER in MAX_PASSES, if it is not small anyway."""
    for characters in (10_000, 40_000, 240_000, 700_000):
        task = replace(TASK, characters=characters, seconds=86_400.0)
        recipe = choose(task)
        per_step = characters_per_step(recipe.values)
        largest = MAX_PASSES * characters / CHARACTERS_PER_PARAMETER
        larger = {"model.n_embd": recipe.values["model.n_embd"] + 32}
        small = recipe.values["model.n_embd"] == SMALL_WIDTH
        assert small or parameter_count(recipe.network) <= largest
        assert parameter_count(choose(task, larger).network) > largest
        assert passes(recipe.values, task) == pytest.approx(MAX_PASSES, abs=per_step / characters)
        assert "ends before the time is over" in dict(recipe.lines)["steps"]


def test_a_slow_machine_has_the_recipe_of_a_fast_one_with_less_time():
    """Counting takes the same."""
    slow = replace(TASK, seconds_per_flop=2 * TASK.seconds_per_flop)
    counting = counting_seconds(TASK.characters)
    half = counting + (TASK.seconds - counting) / 2
    assert choose(slow).values == choose(replace(TASK, seconds=half)).values


def test_regularisation_begins_after_the_free_passes():
    recipes = [choose(replace(TASK, characters=n)) for n in (10**7, 10**6, 10**5, 10**4)]
    for name in ("model.dropout", "optim.final_weight_decay"):
        chosen = [recipe.values[name] for recipe in recipes]
        assert chosen[0] == 0 < min(chosen[1:])
    assert passes(recipes[0].values, replace(TASK, characters=10**7)) < FREE_PASSES


def test_the_learning_rate_grows_with_the_passes_and_falls_with_many_steps():
    """Up to FREE_PASSES, and from RATE_STEPS."""
    name = "optim.muon_learning_rate"
    texts = [replace(TASK, characters=n) for n in (10**9, 3 * 10**6, 10**6, 10**5)]
    given = {"trainer.max_steps": 2_000, "model.n_embd": 64}
    rates = [choose(task, given).values[name] for task in texts]
    assert rates[0] == MUON_RATES[0] < rates[1] < rates[2] == rates[3] == MUON_RATES[1]
    longer = {"trainer.max_steps": 4 * RATE_STEPS, "model.n_embd": 64}
    assert choose(texts[3], longer).values[name] == MUON_RATES[1] / 2


def test_weight_decay_shrinks_as_much_in_a_short_run_as_in_a_long_one():
    """The sum over the steps of rate times decay, computed step by step."""

    def folds(values: dict) -> float:
        steps, options = values["trainer.max_steps"], ScheduleOptions()
        options = replace(options, warmup_steps=values["schedule.warmup_steps"])
        first, final = values["optim.weight_decay"], values["optim.final_weight_decay"]
        return sum(
            values["optim.muon_learning_rate"]
            * learning_rate_scale(k, steps, options)
            * (first + (final - first) * k / steps)
            for k in range(steps)
        )

    short, long = ({"trainer.max_steps": n, "model.n_embd": 64} for n in (2_000, 20_000))
    task = replace(TASK, characters=2_000 * 2_048 // 16)
    a = choose(task, short).values
    b = choose(replace(task, characters=10 * task.characters), long).values
    assert folds(a) == pytest.approx(folds(b), rel=0.03)


@pytest.mark.parametrize(
    "given",
    [
        {"model.n_embd": 96},
        {"model.n_embd": 100, "model.n_layer": 3},
        {"model.n_head": 5},
        {"trainer.max_steps": 1000},
        {"data.block_size": 100},
        {"data.batch_size": 3},
        {"model.dropout": 0.5},
        {"optim.final_weight_decay": 0.7},
        {"trainer.val_check_interval": 123},
        {"trainer.limit_val_batches": 0.5},
        {"trainer.limit_val_batches": None, "optim.final_weight_decay": None},
    ],
)
def test_given_values_are_kept_and_the_rest_is_chosen_to_suit(given):
    task = replace(TASK, characters=10**7)  # long enough for all the time
    recipe = choose(task, given)
    assert recipe.values.items() >= given.items()
    assert set(recipe.values) >= set(choose(task).values) - {"trainer.limit_val_batches"}
    if "trainer.max_steps" not in given:
        assert 0.8 * task.seconds < seconds(recipe, task) <= task.seconds
    else:  # the largest network with which these steps leave time for validation
        larger = choose(task, given | {"model.n_embd": recipe.values["model.n_embd"] + 32})
        assert seconds(recipe, task) <= 0.9 * task.seconds < seconds(larger, task)


def test_a_table_has_as_many_rows_as_there_may_be_n_grams():
    rows = choose(replace(TASK, characters=50_000)).values["model.ngram_rows"]
    for n, number in enumerate(rows, 2):
        possible = min(50_000, 80**n) if n in NGRAMS else 0
        assert possible <= number <= 2 * possible
    rows = choose(replace(TASK, characters=10**7)).values["model.ngram_rows"]
    assert max(rows) == MAX_ROWS


def test_n_grams_are_not_counted_where_it_would_take_too_long():
    task = replace(TASK, characters=10**9, seconds=30)
    assert choose(task).values["model.ngram_rows"] is None
    assert choose(replace(task, seconds=45)).values["model.ngram_rows"]


def test_what_a_step_takes_in_addition_leaves_fewer_steps_for_the_same_network():
    recipe = choose(TASK)
    steps = recipe.values["trainer.max_steps"]
    more = seconds(recipe, TASK) / steps  # as much again
    sizes = {name: recipe.values[name] for name in SIZES}
    slower = choose(replace(TASK, seconds_per_step=more), sizes)
    assert slower.values["trainer.max_steps"] == pytest.approx(steps / 2, rel=0.1)


def test_sizes_are_those_of_the_network():
    recipe = choose(TASK)
    width, layers, heads = (recipe.values[name] for name in SIZES)
    assert (recipe.network.n_embd, recipe.network.n_layer) == (width, layers)
    assert recipe.network.head_dim == width // heads == 32


def test_the_windows_of_a_run_grow_to_the_context():
    values = choose(TASK).values
    sizes = [
        window_size(k, 1000, values["data.block_size"], values["data.window_schedule"])
        for k in range(1000)
    ]
    assert sizes == sorted(sizes)
    assert sizes[-1] == values["data.block_size"]


def test_validation_takes_at_most_a_tenth_of_the_time():
    """Of a long split a part is scored."""
    task = replace(TASK, characters=10**9, held_out=5 * 10**7)
    values = choose(task).values
    batch = values["data.batch_size"] * values["data.block_size"]
    number = -(-values["trainer.max_steps"] // values["trainer.val_check_interval"])
    scored = 2 * number * values["trainer.limit_val_batches"] * batch  # and as much training text
    trained = values["trainer.max_steps"] * characters_per_step(values)
    assert scored / 3 <= 0.1 * (trained + scored / 3)
    assert "trainer.limit_val_batches" not in choose(TASK).values


@pytest.mark.parametrize("seconds", [0.001, 1.0])
def test_given_steps_have_a_recipe_even_if_hardly_any_time_is_left(seconds):
    values = choose(replace(TASK, seconds=seconds), {"trainer.max_steps": 20}).values
    assert values["trainer.max_steps"] == values["trainer.val_check_interval"] == 20


def test_more_steps_than_the_time_allows_are_kept_and_said():
    in_time = choose(TASK, {"model.n_embd": 160}).values["trainer.max_steps"]
    for steps, said in ((in_time, False), (2 * in_time, True)):
        recipe = choose(TASK, {"model.n_embd": 160, "trainer.max_steps": steps})
        assert recipe.values["trainer.max_steps"] == steps
        assert ("the time is enough for" in dict(recipe.lines)["steps"]) == said


@pytest.mark.parametrize("minutes", [3, 10, 60])
def test_the_scored_part_of_a_long_split_does_not_depend_on_the_speed(minutes):
    """So that losses can be compared."""
    task = replace(TASK, characters=10**9, held_out=5 * 10**7, seconds=60 * minutes)
    scored = set()
    for factor in (0.3, 1, 3):
        values = choose(replace(task, seconds_per_flop=factor * TASK.seconds_per_flop)).values
        batch = values["data.batch_size"] * values["data.block_size"]
        scored.add(values["trainer.limit_val_batches"] * batch)
    assert scored == {SCORED // batch * batch}
