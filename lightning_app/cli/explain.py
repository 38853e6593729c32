"""Which errors a user can correct, and the one line that each is reported in."""

import re

from lightning_app.errors import UserError


def explain(error: Exception) -> str | None:
    """One line with the remedy for an error that a user can correct.

    None for any other error: it is a defect of the program, and its traceback should be shown.
    """
    if isinstance(error, UserError):
        return str(error)
    text = str(error)
    if isinstance(error, ImportError) and (package := missing_package(error)):
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
    if type(error).__name__ == "MisconfigurationException":  # Lightning's; not imported here
        return text
    if isinstance(error, OSError):
        where = f" ({error.filename})" if error.filename else ""
        reason = error.strerror or text or "an operation on a file failed"
        if "No space left" in reason or "No space left" in text:
            return f"the disk is full{where}; free some space and run the same command again"
        return f"{reason[0].lower()}{reason[1:]}{where}; check the path and its permissions"
    return None


def missing_package(error: ImportError) -> str | None:
    """The package of the index that an import lacks; None where it is a part of this program."""
    if named := re.search(r"pip install (?:-U )?[\"'`]*([\w.-]+)", str(error)):
        return named[1]
    package = (error.name or "").split(".")[0]
    return package if package and package != "lightning_app" else None
