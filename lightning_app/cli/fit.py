"""fit: train a run, resume it, extend it, or fine-tune another run's weights.

Four steps: parse the options; decide which run they are about and from where it starts; build
everything it trains with; train.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from lightning_app.cli import screens
from lightning_app.cli.configs import find_config, split_configs
from lightning_app.cli.explain import explain
from lightning_app.cli.fit_build import Job, build
from lightning_app.cli.fit_options import FitRequest, parse
from lightning_app.errors import UserError
from lightning_app.files import atomic_write
from lightning_app.runs.checkpoint import (
    CORRUPT_ERRORS,
    SECTION,
    TrainedModel,
    load,
    network_arguments,
)
from lightning_app.runs.finetuning import take_network
from lightning_app.runs.folders import find_checkpoint, lock_run, set_aside
from lightning_app.runs.resume import (
    Start,
    check_state,
    compare_facts,
    find_start,
    is_finished,
    refusal,
)
from lightning_app.training.optimizer import parameter_groups
from lightning_app.training.signals import Interrupted


def main(argv: list[str]) -> int:
    began = time.perf_counter()
    configs, rest = split_configs(argv)
    request = parse(configs or [find_config("gpt_char")], rest)
    with hold(request):
        start, source = decide(request)
        job = build(request, start, source)
        say(*job.lines)
        if finished := resume(request, start, job):
            print("\n".join(screens.finished(request.run, finished, start)))
            return 0
        say(*screens.before(request, start, job))
        prepare_folder(request, job)
        train(request, start, job)
        if is_main() and not request.dev_run:
            print("\n".join(screens.after(request, job, time.perf_counter() - began)))
    return 0


def is_main() -> bool:
    """Whether this is the first of torchrun's, SLURM's or Lightning's processes."""
    return rank_zero_only.rank == 0  # type: ignore[attr-defined]


def say(*lines: str) -> None:
    """Tell the user, on standard error, what is happening."""
    if is_main() and lines:
        print(*lines, sep="\n", file=sys.stderr, flush=True)


@contextmanager
def hold(request: FitRequest) -> Iterator[None]:
    """The run, for this process alone. Raises UserError where another one trains it."""
    lock = None if request.dev_run or not is_main() else lock_run(request.run)
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


def decide(request: FitRequest) -> tuple[Start, TrainedModel | None]:
    """Where the run starts from, and for a new one the network whose weights it takes.

    With --init_from, the options of the network become those of that file.
    """
    c = request.config
    start = find_start(request.run, c.ckpt_path, c.init_from, c.fresh, request.dev_run)
    if not c.init_from:
        return start, None
    source = None
    if start.state is not None:
        try:
            arguments = network_arguments(start.state)
        except CORRUPT_ERRORS as error:
            raise damaged(start.path, error) from None
    else:
        source = load(find_checkpoint(c.init_from, None))
        arguments = source.arguments
    say(*take_network(c.model, arguments))
    return start, source


def resume(request: FitRequest, start: Start, job: Job) -> str | None:
    """Say what differs from the run so far; the reason when nothing is left to train.

    Raises UserError for what makes it another run, and for a damaged checkpoint.
    """
    if start.state is None:
        return None
    old = start.state[SECTION]
    groups = parameter_groups(job.model.gpt, job.model.optim)
    try:
        differences = compare_facts(old, job.facts)
        finished = is_finished(old, job.facts)
        if differences.refused:
            raise refusal(request.run, differences.refused)
        check_state(start.state, job.model.gpt, [p for group in groups for p in group["params"]])
    except CORRUPT_ERRORS as error:
        raise damaged(start.path, error) from None
    if start.note:
        say(start.note)
    if finished:
        return finished
    say(f"resuming {request.run} at step {old['step']:,} of {job.trainer.max_steps:,}")
    say(*(f"  changed: {line}" for line in differences.applied))
    if differences.inexact:
        say(f"  not bit-exact: {', '.join(differences.inexact)}")
    return None


def prepare_folder(request: FitRequest, job: Job) -> None:
    """The run's folder, with its config.yaml; with --fresh, the old one is moved aside first."""
    if request.dev_run or not is_main():
        return
    if request.config.fresh and (aside := set_aside(request.run)):
        say(f"           what was there is now {aside}")
    text = request.config_yaml()
    with atomic_write(request.folder / "config.yaml") as file:
        file.write(text.encode())
    for logger in job.trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            sorted_text = yaml.safe_dump(yaml.safe_load(text))
            block = "".join(f"    {x}\n" for x in sorted_text.split("\n"))  # code, in Markdown
            logger.experiment.add_text("config", block, 0)


def train(request: FitRequest, start: Start, job: Job) -> None:
    try:
        with job.signals:
            job.trainer.fit(job.model, datamodule=job.data, ckpt_path=start.path, weights_only=True)
    except CORRUPT_ERRORS as error:
        if start.path is None or job.checkpoints.started or explain(error):
            raise
        raise damaged(start.path, error) from error  # Lightning could not restore its part
    except Interrupted:
        saved = request.folder / "checkpoints" / "last.ckpt"
        step = job.trainer.global_step
        say(f"saved {saved} at step {step:,}; the same command resumes from there")
        raise


def damaged(path: Path | None, error: Exception) -> UserError:
    first = str(error).strip().split("\n")[0][:120] or type(error).__name__
    return UserError(f"{path} is damaged: {first}; --fresh true starts anew")
