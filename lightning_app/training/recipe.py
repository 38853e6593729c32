"""The recipe for a text, a machine and a time: what `fit --minutes` chooses.

A pure function, `choose`, with a law of few constants (benchmarks/RESULTS.md has the evidence):

- *Size.* The best network reads about `CHARACTERS_PER_PARAMETER` characters per parameter of its
  blocks, so that both grow as the square root of the computation, as in Chinchilla (arXiv
  2203.15556).
- *Small texts.* With n-gram counts a network has learned what a text can teach it after about
  `MAX_PASSES`; with more it memorises, and so does a network too large for these passes (but for
  `SMALL_WIDTH`, which suits any text), whatever the regularisation. A run on a small text therefore
  ends before its time is over; and its steps read fewer characters, so that there are at least
  `MIN_STEPS`.
- *Shape.* The width determines the rest: heads of 32 dimensions, and 2 + width / 64 layers.
- *Learning rate.* Muon's is lower for a text that is read once or less than for one that is read
  several times.
- *Regularisation.* It depends on how often the text is read, the number of passes. Up to
  `FREE_PASSES`, reading again is worth nearly as much as new text (arXiv 2305.16264); with more,
  weight decay and dropout grow. Decay is given by how many times it would shrink a weight e-fold in
  the whole run, because that does not depend on the number of steps (arXiv 2405.13698).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from lightning_app.data.splits import SplitText
from lightning_app.data.windows import mean_window_size
from lightning_app.hardware import UNCOMPILED_TIME, MatmulSpeed, can_compile, seconds_per_flop
from lightning_app.model.gpt import GPTConfig
from lightning_app.model.ngram_counting import MAX_COUNTED, table_sizes
from lightning_app.training.schedules import ScheduleOptions, learning_rate_scale

CHARACTERS_PER_PARAMETER = 2.5
WIDTHS = range(64, 1025, 32)
SMALL_WIDTH = 128  # not too large for any text
USUAL_WIDTH = 160  # for a first forecast of the speed
COMPILE_FROM = 4  # minutes: compiling takes about one, and halves the time of a step
HEAD_DIM = 32
BLOCK_SIZE = 1024
CHARACTERS_PER_STEP = {"cpu": 2048, "mps": 8192, "gpu": 16384}
WINDOWS = ((0.0, 1 / 16), (0.35, 1 / 4), (0.85, 1.0))  # of parts of the context, then all of it
NGRAMS = (2, 3, 4, 5, 6, 8, 12)  # characters
MAX_ROWS = 2**20
SECONDS_TO_COUNT = 8e-7  # a character, in all tables; 6.6e-7 with two threads, 9.5e-7 with one
COUNTING_SHARE = 0.5  # of the time, at most
FREE_PASSES = 4.0
MAX_PASSES = 12.0
MIN_STEPS = 120  # in MAX_PASSES: small texts have smaller steps
MUON_RATES = (0.02, 0.03)  # for a text that is read in part; and FREE_PASSES times or more
RATE_STEPS = 3200  # with more, the rate falls as 1 / sqrt(steps)
SCORING_TIME = 1 / 3  # of the time that training on a character takes
VALIDATION_SHARE = 0.1  # of the time, at most
VALIDATIONS = 5  # at most; the best of them is kept
SCORED = 100_000  # characters in each, so that runs can be compared; fewer if time is short
DECAY_FOLDS = 4.0  # for each doubling of the passes above FREE_PASSES
FIRST_DECAY = 0.2  # weight decay at the first step, relative to that at the last
DROPOUT = 0.06  # for each doubling

GENERATE = {"sampling": "top_p", "top_p": 0.9, "temperature": 1.0}
SIZES = ("model.n_embd", "model.n_layer", "model.n_head")
Line = tuple[str, str]  # a subject, and what was decided about it and why


@dataclass(frozen=True)
class Task:
    """What a recipe depends on.

    Attributes:
        characters: Length of the training split.
        held_out: Length of the validation split.
        vocab_size: Characters in the alphabet.
        seconds: Time for counting n-grams, training and validation.
        seconds_per_flop: Of a training step; FLOPs as `GPTConfig.flops_per_character` counts them.
        accelerator: cpu, gpu or mps.
        seconds_per_step: What a step takes in addition, whatever the size of the network: the
            counts, the loss of a large alphabet, calls of small operations.
    """

    characters: int
    held_out: int
    vocab_size: int
    seconds: float
    seconds_per_flop: float
    accelerator: str = "cpu"
    seconds_per_step: float = 0.0


def compiles(minutes: float, accelerator: str) -> bool:
    """Whether a run of so many minutes is compiled."""
    return minutes >= COMPILE_FROM and can_compile(accelerator)


def expected_task(
    split_text: SplitText,
    seconds: float,
    speed: MatmulSpeed,
    accelerator: str = "cpu",
    width: int = USUAL_WIDTH,
    compiled: bool = True,
) -> Task:
    """The task for a text, with the seconds per FLOP that this speed lets expect."""
    per_flop = seconds_per_flop(accelerator, speed, width)
    return Task(
        characters=len(split_text.ids("train")),
        held_out=len(split_text.ids("val")),
        vocab_size=len(split_text.text.alphabet),
        seconds=seconds,
        seconds_per_flop=per_flop if compiled else per_flop * UNCOMPILED_TIME,
        accelerator=accelerator,
    )


@dataclass(frozen=True)
class Recipe:
    """Values of options, by their dotted names, and a line for each decision."""

    values: dict[str, Any]
    network: GPTConfig
    lines: list[Line]


def choose(task: Task, given: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe for a task. Values that are given are kept, and the others chosen to suit them.

    Raises UserError if the given sizes cannot be built.
    """
    values = dict(given or {})
    lines = add_windows(values, task) + add_tables(values, task)
    if values["model.ngram_rows"]:
        left = task.seconds - counting_seconds(task.characters)
        task = replace(task, seconds=max(1.0, left))
    for decide in (add_network, add_steps, add_regularisation):
        lines += decide(values, task)
    return Recipe(values, network_config(values, task.vocab_size), lines)


# Each of these adds the values that are missing, and returns its lines.


def add_windows(values: dict[str, Any], task: Task) -> list[Line]:
    """The context and the batch; those of a small text are smaller."""
    size = BLOCK_SIZE
    while size > 32 and size * 32 > task.characters:
        size //= 2
    size = values.setdefault("data.block_size", size)
    per_step = CHARACTERS_PER_STEP[task.accelerator]
    while per_step > size and per_step * MIN_STEPS > MAX_PASSES * task.characters:
        per_step //= 2
    values.setdefault("data.batch_size", max(1, per_step // size))
    windows = [(0.0, 1.0)] if size % 16 else WINDOWS
    values.setdefault("data.window_schedule", [list(pair) for pair in windows])
    values.setdefault("data.replace_names", 0.7)
    for name, value in GENERATE.items():
        values.setdefault(f"generate.{name}", value)
    return []


def add_tables(values: dict[str, Any], task: Task) -> list[Line]:
    """Counts for the n of NGRAMS. A table has a row for each n-gram that is possible or in the
    text, at most MAX_ROWS.

    No tables if counting would take more than COUNTING_SHARE of the time.
    """
    worthwhile = counting_seconds(task.characters) <= COUNTING_SHARE * task.seconds
    limit = min(MAX_ROWS, task.characters)
    every = range(2, NGRAMS[-1] + 1)
    useful = [round_up(min(limit, task.vocab_size**n)) if n in NGRAMS else 0 for n in every]
    rows = values.setdefault("model.ngram_rows", useful if worthwhile else None)
    sizes = table_sizes(rows or ())
    if not sizes:
        return [("counts", "none: what follows from few characters is computed, not looked up")]
    return [
        (
            "counts",
            f"of what follows the last {', '.join(map(str, sizes))} characters, so that the "
            "network need not learn it",
        )
    ]


def add_network(values: dict[str, Any], task: Task) -> list[Line]:
    given = all(name in values for name in SIZES)
    why = "a larger one would read too little text in this time, a smaller one would learn less"
    chosen = shape(values, WIDTHS[0])
    useful = MAX_PASSES * task.characters
    for width in WIDTHS[1:]:
        if width % (2 * shape(values, width)["model.n_head"]):
            continue  # the given heads do not fit
        network = network_config(values | shape(values, width), task.vocab_size)
        wanted = CHARACTERS_PER_PARAMETER * parameter_count(network)
        if wanted > useful:
            if width > SMALL_WIDTH:
                why = "a larger one would memorise so small a text"
                break
            wanted = useful
        if "trainer.max_steps" in values:
            wanted = values["trainer.max_steps"] * characters_per_step(values)
        if characters_in_time(values, network, task) < wanted:
            break
        chosen = shape(values, width)
    values.update(chosen)
    values.setdefault("model.rope_theta", 500.0)
    network = network_config(values, task.vocab_size)
    sizes = f"{network.n_layer} layers, {network.n_head} heads, width {network.n_embd}"
    return [("size", f"{sizes}: {'given' if given else why}")]


def add_steps(values: dict[str, Any], task: Task) -> list[Line]:
    """As many steps as the time and MAX_PASSES allow; validation takes at most VALIDATION_SHARE of
    the time."""
    network = network_config(values, task.vocab_size)
    per_step = characters_per_step(values)
    flops = training_flops(values, network)
    time = task.seconds / seconds_per_character(values, network, task)  # in characters of training
    # A full window is scored; and an equally long part of the training text.
    cost = 2 * SCORING_TIME * network.flops_per_character() / flops
    allowed = VALIDATION_SHARE * time / cost
    batch = values["data.batch_size"] * values["data.block_size"]
    scored = float(min(task.held_out, SCORED))
    while scored > max(allowed, batch):
        scored /= 2
    number = max(1, min(VALIDATIONS, int(allowed / scored)))
    in_time = int((time - number * scored * cost) / per_step)
    useful = int(MAX_PASSES * task.characters / per_step)
    steps = max(1, min(in_time, useful))
    why = "as many as the time allows"
    if "trainer.max_steps" in values:
        longer = values["trainer.max_steps"] > in_time
        why = f"given; the time is enough for {max(0, in_time):,}" if longer else "given"
    elif useful < in_time:
        why = (
            f"{MAX_PASSES:g} passes over the text, after which it would be memorised; the run ends "
            "before the time is over"
        )
    steps = values.setdefault("trainer.max_steps", steps)
    interval = values.setdefault("trainer.val_check_interval", math.ceil(steps / number))

    first, last = MUON_RATES
    rate = first + (last - first) * min(1.0, steps * per_step / task.characters / FREE_PASSES)
    rate *= min(1.0, math.sqrt(RATE_STEPS / steps))
    values.setdefault("optim.muon_learning_rate", float(f"{rate:.2g}"))
    values.setdefault("schedule.warmup_steps", max(5, min(50, steps // 100)))
    values.setdefault("schedule.decay_fraction", 0.6)
    values.setdefault("trainer.gradient_clip_val", 1.0)

    where = f"{task.held_out:,} characters"
    if scored < task.held_out and "trainer.limit_val_batches" not in values:
        batches = max(1, int(scored / batch))
        values["trainer.limit_val_batches"] = batches
        where = f"the first {batches * batch:,} of {where}; `validate` scores all of them"
    return [
        (
            "steps",
            f"{steps:,} of {per_step:,} characters, {per_step * task.seconds / time:.2g} seconds "
            f"each: {why}",
        ),
        ("validation", f"every {interval:,} steps, on {where}"),
    ]


def add_regularisation(values: dict[str, Any], task: Task) -> list[Line]:
    times = values["trainer.max_steps"] * characters_per_step(values) / task.characters
    doublings = max(0.0, math.log2(max(times, 1e-9) / FREE_PASSES))
    values.setdefault("model.dropout", round(min(0.3, DROPOUT * doublings), 2))
    rate = values["optim.muon_learning_rate"]
    final = DECAY_FOLDS * doublings / (rate * growing_decay_steps(values)) if doublings else 0.0
    final = values.setdefault("optim.final_weight_decay", float(f"{min(final, 1000):.2g}"))
    values.setdefault("optim.weight_decay", float(f"{(final or 0) * FIRST_DECAY:.2g}"))
    danger = "so it could be memorised" if doublings else "too few to memorise it"
    passes = f"{times:.1f}" if times >= 1 else f"{times:.2g}"
    return [
        (
            "passes",
            f"{passes} over the training text, {danger}: dropout {values['model.dropout']:g}, "
            f"weight decay growing to {final or 0:g}",
        )
    ]


# Sizes


def shape(values: Mapping[str, Any], width: int) -> dict[str, int]:
    """Width, layers and heads of a network, those that are given among them."""
    width = values.get("model.n_embd", width)
    heads = max(1, width // HEAD_DIM)
    while width % (2 * heads) and heads > 1:
        heads -= 1
    sizes = {"model.n_embd": width, "model.n_layer": 2 + width // 64, "model.n_head": heads}
    return {name: values.get(name, size) for name, size in sizes.items()}


def round_up(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << (n - 1).bit_length()


def network_config(values: Mapping[str, Any], vocab_size: int) -> GPTConfig:
    sizes = {k.removeprefix("model."): v for k, v in values.items() if k.startswith("model.")}
    return GPTConfig(vocab_size=vocab_size, block_size=values["data.block_size"], **sizes)


def counting_seconds(characters: int) -> float:
    """How long it takes to count a text of so many characters."""
    return min(characters, MAX_COUNTED) * SECONDS_TO_COUNT


def parameter_count(network: GPTConfig) -> int:
    """Weights of the blocks' matrices: without embedding and head, whose size is the alphabet's."""
    head = network.n_embd * network.vocab_size
    return int(network.flops_per_character(window=0)) // 6 - head


def characters_per_step(values: Mapping[str, Any]) -> int:
    accumulate = values.get("trainer.accumulate_grad_batches", 1)
    return int(values["data.batch_size"] * values["data.block_size"] * accumulate)


def training_flops(values: Mapping[str, Any], network: GPTConfig) -> float:
    """FLOPs of training on one character, in the mean over a run, whose windows grow."""
    size, schedule = values["data.block_size"], values["data.window_schedule"]
    return network.flops_per_character(mean_window_size(size, schedule))


def seconds_per_character(values: Mapping[str, Any], network: GPTConfig, task: Task) -> float:
    """What training on one character takes."""
    more = task.seconds_per_step / characters_per_step(values)
    return training_flops(values, network) * task.seconds_per_flop + more


def characters_in_time(values: Mapping[str, Any], network: GPTConfig, task: Task) -> float:
    """How many characters the network can be trained on, with time left for validation."""
    return (1 - VALIDATION_SHARE) * task.seconds / seconds_per_character(values, network, task)


def growing_decay_steps(values: Mapping[str, Any]) -> float:
    """The sum over all steps of learning rate / peak times weight decay / final weight decay."""
    steps = values["trainer.max_steps"]
    names = ("name", "warmup_steps", "decay_fraction", "final_fraction")
    given = {n: values[f"schedule.{n}"] for n in names if f"schedule.{n}" in values}
    options = ScheduleOptions(**given)
    points = range(0, steps, max(1, steps // 1000))
    decay = [FIRST_DECAY + (1 - FIRST_DECAY) * step / steps for step in points]
    rates = [learning_rate_scale(step, steps, options) for step in points]
    return steps * sum(d * r for d, r in zip(decay, rates, strict=True)) / len(points)
