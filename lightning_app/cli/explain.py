"""One line for an error that a user can mend."""

from lightning_app.errors import UserError


def explain(error: Exception) -> str | None:
    """One line for an error a user can mend; None for a defect, which deserves its traceback."""
    if isinstance(error, UserError):
        return str(error)
    text = str(error)
    if (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in text
    ):
        return (
            "out of memory; halve --data.batch_size and double "
            "--trainer.accumulate_grad_batches for the same training, or use a smaller network"
        )
    if any(x in text for x in ("closed by peer", "reset by peer", "remote process exited")):
        return (
            "another process of this run ended, so this one does too; the last checkpoint is "
            "whole: the same command goes on from it"
        )
    if type(error).__name__ == "MisconfigurationException":
        return text
    if isinstance(error, OSError):
        where = f" ({error.filename})" if error.filename else ""
        reason = error.strerror or text
        if "No space left" in reason or "No space left" in text:
            return f"the disk is full{where}; free some space and run the same command again"
        return f"{reason[0].lower()}{reason[1:]}{where}; check the path and its permissions"
    return None
