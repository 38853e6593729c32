"""When training stops before max_steps."""

from typing import Any

from lightning.pytorch import callbacks as lightning_callbacks


class StopWithoutImprovement(lightning_callbacks.EarlyStopping):
    """Lightning's EarlyStopping, except that a resumed run keeps the patience given now.

    The number of validations without improvement is restored from the checkpoint.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict | {"patience": self.patience})


class TimeLimit(lightning_callbacks.Timer):
    """Lightning's Timer (--trainer.max_time), except that the limit applies to each call of `fit`.

    Time spent before a run was resumed does not count, so the same command continues the training.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        pass
