"""fit --minutes: choose a recipe for the text, this machine and the time.

A recipe for the speed that is expected; some real steps with it, which are timed; if another
network suits that speed, the same with that one; and the final recipe, from these times. A run is
planned once: its config.yaml has all values, and the same command resumes the run with them.
"""

import math
import os
import statistics
import time
from dataclasses import dataclass, replace
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from tqdm import tqdm

from lightning_app import hardware
from lightning_app.cli.commands.fit_build import build
from lightning_app.cli.commands.fit_options import FitRequest
from lightning_app.cli.commands.screens import compared_bytes
from lightning_app.cli.configs import read_config
from lightning_app.cli.parsing import instantiate
from lightning_app.data.datamodule import CharDataModule
from lightning_app.errors import UserError
from lightning_app.evaluation.baselines import SECONDS_TO_COMPRESS
from lightning_app.generation.numba_cache import has_compiled_code
from lightning_app.runs.checkpoint import load
from lightning_app.runs.finetuning import NOT_TAKEN
from lightning_app.runs.folders import find_checkpoint
from lightning_app.runs.resume import Start
from lightning_app.training.recipe import (
    SIZES,
    USUAL_WIDTH,
    Line,
    Recipe,
    Task,
    characters_per_step,
    choose,
    compiles,
    expected_task,
    parameter_count,
    training_flops,
)

STEPS_PER_SIZE = 8  # for each size of windows
WARM_UP = 2  # of them, not timed: the first compiles
FINISH_SECONDS = 8  # after the last validation: the checkpoints, the sample, the program's end
GENERATION_COMPILES = 35  # seconds, once for each copy of the program
MAX_MEASURED = 3  # networks
SIMILAR = 1.5  # times as many parameters: too few to measure another network
COMPILED_AGAIN = 4  # seconds at most for a size of windows that was compiled before


def planned(request: FitRequest, began: float) -> tuple[FitRequest, list[Line]]:
    """The request with the values of its plan, and lines about the decisions (none for a run that
    was planned before).

    `began` is when the program started, a time of `time.perf_counter`. Raises UserError if the time
    is too short, and for more than one process.
    """
    if stored := stored_plan(request):
        return stored, []
    check_one_process(request)
    total = 60 * request.config.minutes
    given = values_to_keep(request)
    task = describe_task(request, given, total - (time.perf_counter() - began))
    compared = min(task.characters, compared_bytes(request.config.minutes))
    ahead = FINISH_SECONDS + compared * SECONDS_TO_COMPRESS
    ahead += 0 if has_compiled_code() else GENERATION_COMPILES
    task = replace(task, seconds=max(1.0, task.seconds - ahead))
    recipe, measured, task = measured_recipe(request, task, given)
    left = total - (time.perf_counter() - began) - measured.seconds_to_start - ahead
    if left < total / 4 and "trainer.max_steps" not in given:
        raise UserError(
            f"--minutes {request.config.minutes:g} is too short: reading the text, compiling and "
            f"measuring take {total - left:.0f} seconds; give at least "
            f"{math.ceil(1.5 * (total - left) / 60)}"
        )
    sizes = {name: recipe.values[name] for name in (*SIZES, "model.ngram_rows")}
    final = choose(replace(task, seconds=max(1.0, left)), given | sizes)
    lines = dict(final.lines) | {k: v for k, v in recipe.lines if k in ("size", "counts")}
    return with_values(request, final.values), list(lines.items())


def measured_recipe(
    request: FitRequest, task: Task, given: dict[str, Any]
) -> tuple[Recipe, "Measured", Task]:
    """A recipe whose network suits the speed that was measured with it, what was measured, and the
    task with that speed.

    The first network is that of the expected speed. If another one suits the measured speed, that
    one is measured too. For this they are not compiled, which takes long; only the last one is.
    """
    compiled = given["compile"] is not False
    recipe = choose(task, given)
    for tried in range(1, MAX_MEASURED + 1):
        measured = measure(with_values(request, recipe.values | {"compile": False}))
        faster = hardware.UNCOMPILED_TIME if compiled else 1
        task = with_step_time(task, recipe, measured.seconds_per_step / faster)
        suitable = choose(task, given)
        ratio = parameter_count(suitable.network) / parameter_count(recipe.network)
        if 1 / SIMILAR < ratio < SIMILAR or tried == MAX_MEASURED:
            break
        recipe = suitable
    if compiled:
        measured = measure(with_values(request, recipe.values))
        task = with_step_time(task, recipe, measured.seconds_per_step)
    return recipe, measured, task


def with_step_time(task: Task, recipe: Recipe, seconds: float) -> Task:
    """The task with the measured time of a step. What exceeds the time expected from the FLOPs is
    taken not to depend on the size of the network."""
    flops = characters_per_step(recipe.values) * training_flops(recipe.values, recipe.network)
    per_flop = min(task.seconds_per_flop, seconds / flops)
    return replace(task, seconds_per_flop=per_flop, seconds_per_step=seconds - flops * per_flop)


def stored_plan(request: FitRequest) -> FitRequest | None:
    """The request with the values in the run's config.yaml, if it has been planned.

    Raises UserError if it was planned for other minutes, or not planned.
    """
    path = request.folder / "config.yaml"
    if request.config.fresh or request.dev_run or not path.is_file():
        return None
    minutes = read_config(path)[0].get("minutes")
    if minutes != request.config.minutes:
        how = f"with --minutes {minutes:g}" if minutes else "without --minutes"
        raise UserError(
            f"run {request.run} was started {how}; train another run with --run OTHER, or move "
            "this one aside with --fresh true"
        )
    return request.on_top_of(path)


def check_one_process(request: FitRequest) -> None:
    """Raises UserError if training would take several processes: each would plan by itself."""
    flags = request.config.trainer
    listed = isinstance(flags.devices, list) and len(flags.devices) == 1
    one_device = listed or flags.devices in ("auto", 1, "1")
    if not one_device or flags.num_nodes > 1 or int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UserError(
            "--minutes plans for one process; train with one, or leave --minutes out and choose a "
            "config"
        )


def values_to_keep(request: FitRequest) -> dict[str, Any]:
    """What the recipe must keep: the values that were given, with --init_from that network, and
    what depends on the machine: whether to compile, and one device of several."""
    accelerator = hardware.choose_accelerator(str(request.config.trainer.accelerator))
    compiled = compiles(request.config.minutes, accelerator)
    given = {"compile": compiled, "trainer.devices": 1} | request.given()
    if request.config.init_from:
        source = load(find_checkpoint(request.config.init_from, None))
        sizes = {k: v for k, v in source.arguments.items() if k not in NOT_TAKEN}
        given |= {f"model.{name}": value for name, value in sizes.items()}
    return given


def describe_task(request: FitRequest, given: dict[str, Any], seconds: float) -> Task:
    """The task, with the speed that is expected of this machine."""
    config = request.config
    data = CharDataModule(**instantiate(request.parser, config).data, seed=config.seed_everything)
    data.eval_batches("val")  # raises if the validation split is empty
    accelerator = hardware.choose_accelerator(str(config.trainer.accelerator))
    precision = config.trainer.precision or hardware.choose_precision(accelerator)
    speed = hardware.matmul_speed(accelerator, str(precision))
    width = given.get("model.n_embd", USUAL_WIDTH)
    compiled = given["compile"] is not False
    return expected_task(data.split_text, seconds, speed, accelerator, width, compiled)


def with_values(request: FitRequest, values: dict[str, Any]) -> FitRequest:
    """The request with these values of options, by their dotted names."""
    config = request.config.clone()
    for name, value in values.items():
        config[name] = value
    return replace(request, config=config)


@dataclass(frozen=True)
class Measured:
    """What the trial steps took.

    seconds_per_step: The mean over a run, whose windows grow.
    seconds_to_start: What the run itself takes before its steps: building, and compiling again.
    """

    seconds_per_step: float
    seconds_to_start: float


class StepTimes(Callback):
    """Times every training step, by the size of its windows, and shows a bar."""

    def __init__(self, steps: int) -> None:
        self.seconds: dict[int, list[float]] = {}
        self.began = 0.0
        self.bar = tqdm(total=steps, desc="measuring", unit="step", leave=False, disable=None)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.began = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        outputs["loss"].item()  # waits for an accelerator
        times = self.seconds.setdefault(batch[0].size(1), [])
        times.append(time.perf_counter() - self.began)
        self.bar.update()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.bar.close()


def measure(request: FitRequest) -> Measured:
    """Train a few steps with each size of windows, without files, and time them.

    The sizes take turns, so that a slow second of the machine does not fall on one of them.
    """
    schedule = request.config.data.window_schedule
    fractions = list(dict.fromkeys(fraction for _, fraction in schedule))
    turns = fractions * STEPS_PER_SIZE
    steps = len(turns)
    trial = {
        "data.window_schedule": [[max(0, i - 0.5) / steps, f] for i, f in enumerate(turns)],
        "data.val_gap": False,
        "trainer.fast_dev_run": steps,
        "trainer.enable_progress_bar": False,
    }
    began = time.perf_counter()
    times = StepTimes(steps)
    job = build(with_values(request, trial), Start(), None, [times])
    seconds_to_start = time.perf_counter() - began
    with job.signals:
        job.trainer.fit(job.model, datamodule=job.data)
    if job.plan.compiled:
        seconds_to_start += COMPILED_AGAIN * len(fractions)
    block_size = request.config.data.block_size
    until = [start for start, _ in schedule[1:]] + [1.0]
    mean = sum(
        (end - start) * statistics.median(times.seconds[int(block_size * fraction)][WARM_UP:])
        for (start, fraction), end in zip(schedule, until, strict=True)
    )
    return Measured(mean, seconds_to_start)
