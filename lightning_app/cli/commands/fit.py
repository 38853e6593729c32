"""fit: train a run, resume it, extend it, or fine-tune another run's weights.

Four steps: parse the options; find the run and the checkpoint from which it starts; build data,
network and Trainer; train.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.strategies import ParallelStrategy
from lightning.pytorch.utilities import rank_zero_only

from lightning_app.cli.commands import screens
from lightning_app.cli.commands.fit_build import Job, build
from lightning_app.cli.commands.fit_minutes import planned
from lightning_app.cli.commands.fit_options import FitRequest, parse
from lightning_app.cli.configs import split_configs
from lightning_app.cli.explain import explain
from lightning_app.errors import UserError
from lightning_app.files import atomic_write
from lightning_app.lightning_internals import limit_waiting, set_csv_writer
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
    finished_reason,
    refusal,
)
from lightning_app.training.csv_table import CsvTable
from lightning_app.training.optimizer import parameter_groups
from lightning_app.training.signals import Interrupted

MEETING_LIMIT = timedelta(minutes=10)  # for the processes of several machines to find each other


def main(argv: list[str]) -> int:
    began = time.perf_counter() - time.process_time()  # the start of the program, about
    request = parse(*split_configs(argv))
    with locked_run(request):
        if request.config.minutes:
            request, lines = planned(request, began)
            report(*screens.plan_lines(lines))
        start, source = choose_start(request)
        job = build(request, start, source)
        report(*job.lines)
        if reason := check_resume(request, start, job):
            print("\n".join(screens.lines_if_finished(request.run, reason, start)))
            return 0
        report(*screens.lines_before(request, start, job))
        prepare_folder(request, start, job)
        wait_for_machines(job.trainer)
        train(request, start, job)
        if is_main() and not request.dev_run:
            seconds = time.perf_counter() - began
            print("\n".join(screens.lines_after(request, start, job, seconds)))
    return 0


def is_main() -> bool:
    """Whether this is the first of the processes that torchrun, SLURM or Lightning started."""
    return rank_zero_only.rank == 0  # type: ignore[attr-defined]


def report(*lines: str) -> None:
    """Print lines on standard error, in the first process only."""
    if is_main() and lines:
        print(*lines, sep="\n", file=sys.stderr, flush=True)


@contextmanager
def locked_run(request: FitRequest) -> Iterator[None]:
    """A context in which no other process can train the run.

    Raises UserError if another process is training it.
    """
    lock = None if request.dev_run or not is_main() else lock_run(request.run)
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


def choose_start(request: FitRequest) -> tuple[Start, TrainedModel | None]:
    """The checkpoint to resume from, if any, and for a new run with --init_from that network.

    With --init_from, the options of the network become those of that file. Raises UserError for a
    file that is missing or damaged, and for a run that was not started from it.
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
    report(*take_network(c.model, arguments))
    return start, source


def check_resume(request: FitRequest, start: Start, job: Job) -> str | None:
    """Check that the run can be resumed, and report what has changed since it was stopped.

    Returns the reason if no steps are left to train, otherwise None. Raises UserError for changes
    with which it would be another run, and for a damaged checkpoint.
    """
    if start.state is None:
        return None
    old = start.state[SECTION]
    groups = parameter_groups(job.model.gpt, job.model.optim)
    try:
        differences = compare_facts(old, job.facts)
        finished = finished_reason(old, job.facts)
        if differences.refused:
            raise refusal(request.run, differences.refused)
        check_state(start.state, job.model.gpt, [p for group in groups for p in group["params"]])
    except CORRUPT_ERRORS as error:
        raise damaged(start.path, error) from None
    if start.note:
        report(start.note)
    if finished:
        return finished
    report(f"resuming {request.run} at step {old['step']:,} of {job.trainer.max_steps:,}")
    report(*(f"  changed: {line}" for line in differences.applied))
    if differences.inexact:
        report(f"  not bit-exact: {', '.join(differences.inexact)}")
    return None


def prepare_folder(request: FitRequest, start: Start, job: Job) -> None:
    """Create the run's folder and its config.yaml; with --fresh, rename the old folder first.

    A table of CSVLogger is continued if the run is resumed; otherwise an old one is renamed.
    """
    if request.dev_run or not is_main():
        return
    if request.config.fresh and (aside := set_aside(request.folder)):
        report(f"           the old folder is now {aside}")
    text = request.config_yaml()
    with atomic_write(request.folder / "config.yaml") as file:
        file.write(text.encode())
    for logger in job.trainer.loggers:
        if isinstance(logger, CSVLogger):
            table = Path(logger.log_dir) / "metrics.csv"
            if start.state is None and (aside := set_aside(table)):
                report(f"           the old table is now {aside}")
            set_csv_writer(logger, CsvTable(logger.log_dir, start.step))
        if isinstance(logger, TensorBoardLogger):
            sorted_text = yaml.safe_dump(yaml.safe_load(text))
            block = "".join(f"    {x}\n" for x in sorted_text.split("\n"))  # code, in Markdown
            logger.experiment.add_text("config", block, 0)


def wait_for_machines(trainer: Trainer) -> None:
    """Report what a run on several machines waits for, once on each, and limit the waiting."""
    strategy = trainer.strategy
    if trainer.num_nodes == 1 or not isinstance(strategy, ParallelStrategy):
        return
    limit_waiting(trainer, MEETING_LIMIT)
    if trainer.local_rank == 0 and strategy.cluster_environment is not None:
        line = screens.waiting_line(trainer, strategy.cluster_environment, MEETING_LIMIT)
        print(line, file=sys.stderr, flush=True)


def train(request: FitRequest, start: Start, job: Job) -> None:
    """Train the run. Raises Interrupted if a signal stopped it, UserError if the checkpoint cannot
    be restored."""
    try:
        with job.signals:
            job.trainer.fit(job.model, datamodule=job.data, ckpt_path=start.path, weights_only=True)
    except CORRUPT_ERRORS as error:
        if start.path is None or job.checkpoints.started or explain(error):
            raise
        raise damaged(start.path, error) from error  # while Lightning restored it
    except Interrupted:
        saved = request.folder / "checkpoints" / "last.ckpt"
        step = job.trainer.global_step
        report(f"saved {saved} at step {step:,}; the same command resumes from there")
        raise


def damaged(path: Path | None, error: Exception) -> UserError:
    """The error for a checkpoint that was read but cannot be used."""
    first = str(error).strip().split("\n")[0][:120] or type(error).__name__
    return UserError(f"{path} is damaged: {first}; --fresh true starts again")
