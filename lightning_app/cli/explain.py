"""Which errors a user can correct, and the one line that each is reported in."""

import re
from traceback import walk_tb

from lightning_app.errors import UserError

# Lightning's packages of classes that an option names.
PARTS = {
    "lightning.pytorch.callbacks": "--trainer.callbacks",
    "lightning.pytorch.loggers": "--trainer.logger",
    "lightning.pytorch.profilers": "--trainer.profiler",
    "lightning.pytorch.strategies": "--trainer.strategy",
}


def explain(error: Exception) -> str | None:
    """One line with the remedy for an error that a user can correct.

    None for any other error: it is a defect of the program, and its traceback should be shown.
    """
    if isinstance(error, UserError):
        return str(error)
    text = str(error)
    from_lightning = type(error).__name__ == "MisconfigurationException"  # not imported here
    may_lack = from_lightning or isinstance(error, ImportError)
    if may_lack and (package := missing_package(error)):
        return f"the package {package} is not installed: pip install {package}"
    if (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in text
    ):
        return (
            "out of memory; for the same training with less memory, halve --data.batch_size and "
            "double --trainer.accumulate_grad_batches, or use a smaller network"
        )
    if type(error).__name__ in ("DistStoreError", "DistNetworkError"):  # of torch.distributed
        return (
            "the processes of this run did not find each other in time; start the same command on "
            "every machine, with one --master_addr and --master_port and --trainer.num_nodes "
            "machines"
        )
    if any(x in text for x in ("closed by peer", "reset by peer", "remote process exited")):
        return (
            "another process of this run ended, so this process ended too; the last checkpoint is "
            "complete, and the same command resumes from it"
        )
    if isinstance(error, OSError):
        where = f" ({error.filename})" if error.filename else ""
        reason = error.strerror or text or "an operation on a file failed"
        if "No space left" in reason or "No space left" in text:
            return f"the disk is full{where}; free some space and run the same command again"
        return f"{reason[0].lower()}{reason[1:]}{where}; check the path and its permissions"
    if part := failing_part(error):
        return f"{part}: {first_line(error)}; --debug true shows where"
    return f"--trainer: {text}" if from_lightning else None


def first_line(error: BaseException) -> str:
    """The first line of an error's message, at most 200 characters, without its full stop; the
    error's type if it has no message."""
    line, *_ = str(error).strip().split("\n")
    return line[:200].rstrip(".") or type(error).__name__


def failing_part(error: Exception) -> str | None:
    """The option and the class of Lightning, such as "--trainer.callbacks Timer", that raised an
    error: its options do not fit, or it needs something that this network lacks.

    None where that class had called code of this program, which then failed: a defect.
    """
    part = None
    for frame, _ in walk_tb(error.__traceback__):
        if frame.f_globals.get("__name__", "").startswith("lightning_app."):
            part = None
        kind = type(frame.f_locals.get("self"))
        for package, option in PARTS.items():
            if part is not None or not kind.__module__.startswith(package):
                continue
            # while a network is trained, the strategy calls all of it
            if option != "--trainer.strategy" or frame.f_code.co_name.startswith("setup"):
                part = f"{option} {kind.__name__}"
    return part


def missing_package(error: Exception) -> str | None:
    """The package of the index that an error says is missing; None where there is none, or it is a
    part of this program."""
    if named := re.search(r"pip install (?:-U )?[\"'`]*([\w.-]+)", str(error)):
        return named[1]
    package = (getattr(error, "name", None) or "").split(".")[0]
    return package if package and package != "lightning_app" else None
