"""When training stops before max_steps."""

from lightning.pytorch import callbacks as lightning_callbacks


class StopWithoutImprovement(lightning_callbacks.EarlyStopping):
    """Lightning's, but patience is what the options say now, not what a checkpoint remembers."""

    def load_state_dict(self, state_dict: dict) -> None:
        super().load_state_dict(state_dict | {"patience": self.patience})


class TimeLimit(lightning_callbacks.Timer):
    """Lightning's for --trainer.max_time, but each call of `fit` has this time, not all together:
    the same command goes on."""

    def load_state_dict(self, state_dict: dict) -> None:
        pass
