"""The time of a training step in Lightning's Trainer, compared with the same step in a plain loop.

    python benchmarks/overhead.py [CONFIG] [--trainer.max_steps 1200 ...]

After every 50 steps of `fit`, logging included, the same network and optimizer take 50 steps in a
plain loop in the same process. Printed are the median time of each, and the median of the ratios of
each 50 steps to the next 50, which depends less on changes in the machine's speed. Validation and
saving are not timed.
"""

import itertools
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from lightning.pytorch import Callback, Trainer

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from lightning_app.cli.commands.fit import FitCLI
from lightning_app.cli.configs import find_config
from lightning_app.data.datamodule import Batch, TrainBatches

STEPS = 50


class Alternate(Callback):
    """Times STEPS steps of the Trainer, then STEPS of a plain loop, in turns."""

    def __init__(self) -> None:
        self.trainer_seconds: list[float] = []  # per step
        self.loop_seconds: list[float] = []
        self.batches: Iterator[Batch] | None = None

    def on_train_batch_end(self, trainer: Trainer, pl_module, outputs, batch, batch_idx) -> None:
        if trainer.global_step % STEPS:
            return
        if trainer.global_step > STEPS:  # the first steps compile
            self.trainer_seconds.append((time.perf_counter() - self.began) / STEPS)
            if self.batches is None:
                self.batches = iter(TrainBatches(trainer.datamodule))
                next(self.batches)  # finds the names in the text
            optimizer = trainer.optimizers[0]
            began = time.perf_counter()
            for batch in itertools.islice(self.batches, STEPS):
                with trainer.precision_plugin.forward_context():
                    loss = pl_module.losses(*batch).mean()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(pl_module.parameters(), trainer.gradient_clip_val)
                optimizer.step()
                optimizer.zero_grad()
            self.loop_seconds.append((time.perf_counter() - began) / STEPS)
        self.began = time.perf_counter()


def main() -> None:
    config = "tiny_shakespeare"
    args = sys.argv[1:]
    if args and not args[0].startswith("-"):
        config = args.pop(0)
    steps = ["--trainer.max_steps", "1200", "--trainer.val_check_interval", "1200"]
    options = ["--run", "overhead", "--fresh", "true", "--checkpoint_every_seconds", "1e6"]
    cli = FitCLI([find_config(config)], [*steps, *options, *args])
    cli.save_config()
    alternate = Alternate()
    cli.trainer.callbacks.append(alternate)
    cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    times = alternate.trainer_seconds, alternate.loop_seconds
    trainer, loop = (statistics.median(x) * 1000 for x in times)
    pairs = zip(*times, strict=True)
    ratios = sorted(one / other for one, other in pairs)
    quarter = len(ratios) // 4
    print(
        f"a step of the Trainer {trainer:.2f} ms, of a plain loop {loop:.2f} ms: "
        f"ratio {statistics.median(ratios) - 1:+.1%} (half of them between "
        f"{ratios[quarter] - 1:+.1%} and {ratios[-1 - quarter] - 1:+.1%}; {len(ratios)} times "
        f"{STEPS} steps of each)"
    )


if __name__ == "__main__":
    main()
