"""Learning rate, weight decay and window size as functions of the step."""

import math
from dataclasses import dataclass, field
from typing import Literal

from jsonargparse.typing import (
    ClosedUnitInterval,
    NonNegativeInt,
)

from lightning_app.errors import UserError


@dataclass
class ScheduleOptions:
    """How learning rates change over a run of max_steps.

    Args:
        name: The shape of the decay.
        warmup_steps: Steps of linear rise at the start; the first step already moves.
        decay_fraction: The last part of the run that decays; before it the rate is constant.
        final_fraction: Where the decay ends, relative to the peak.
        windows: Pairs [from, size]: from this fraction of the run on, windows have this fraction of
            block_size (and a batch more of them). Short windows first teach the same for less
            attention, and from more places of the text.
    """

    name: Literal["cosine", "linear", "constant"] = "linear"
    warmup_steps: NonNegativeInt = 20
    decay_fraction: ClosedUnitInterval = 0.6
    final_fraction: ClosedUnitInterval = 0.0
    windows: list[list[float]] = field(default_factory=lambda: [[0.0, 1.0]])


def window_size(step: int, max_steps: int, block_size: int, options: ScheduleOptions) -> int:
    """How many characters the windows of a step have. Raises UserError for a schedule that does
    not cut block_size into equal pieces."""
    size = 1.0
    for pair in options.windows:
        if len(pair) != 2 or not 0 <= pair[0] <= 1 or not 0 < pair[1] <= 1:
            raise UserError(
                f"--schedule.windows has {pair}; give pairs [from, size] of fractions, like "
                "[[0, 0.5], [0.6, 1]]"
            )
        if block_size * pair[1] % 1 or block_size % (block_size * pair[1]):
            raise UserError(
                f"--schedule.windows cuts --data.block_size {block_size} into pieces of "
                f"{block_size * pair[1]:g}, which does not come out even; change one of the two"
            )
        if step >= pair[0] * max_steps:
            size = pair[1]
    return int(block_size * size)


def learning_rate_scale(step: int, max_steps: int, options: ScheduleOptions) -> float:
    """What step (0 is the first) multiplies the peak learning rate by: in (0, 1] until the end."""
    warmup = min(1.0, (step + 1) / (options.warmup_steps + 1))
    decay_steps = options.decay_fraction * max_steps
    if options.name == "constant" or decay_steps == 0:
        return warmup
    # 1 until the decay begins, 0 just after the last step
    left = min(1.0, max(0.0, (max_steps - step) / decay_steps))
    shape = left if options.name == "linear" else 0.5 - 0.5 * math.cos(math.pi * left)
    return warmup * (options.final_fraction + (1 - options.final_fraction) * shape)


def set_rates(groups: list[dict], step: int, max_steps: int, options: ScheduleOptions) -> None:
    """Give groups of parameters the learning rate and weight decay of a step (0 is the first)."""
    scale = learning_rate_scale(step, max_steps, options)
    for group in groups:
        group["lr"] = group["peak_lr"] * scale
        growth = group["final_decay"] - group["first_decay"]
        group["weight_decay"] = group["first_decay"] + growth * step / max_steps
