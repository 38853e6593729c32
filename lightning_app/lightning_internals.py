"""Uses of Lightning's private attributes, each with its reason."""

from lightning.pytorch import Trainer


def just_stepped(trainer: Trainer) -> bool:
    """Whether the batch that ends now completed an optimizer step (accumulation!)."""
    return not trainer.fit_loop._should_accumulate()
