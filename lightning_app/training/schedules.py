"""Learning rate and weight decay as functions of the step."""

import math
from dataclasses import dataclass
from typing import Any, Literal

from jsonargparse.typing import ClosedUnitInterval, NonNegativeInt


@dataclass
class ScheduleOptions:
    """How learning rates change over a run of max_steps.

    Args:
        name: The shape of the decay.
        warmup_steps: Steps at the start over which the rate rises linearly; it is above 0 from the
            first step on.
        decay_fraction: Fraction of the run, at its end, in which the rate decays; before it the
            rate is constant.
        final_fraction: The rate at the end of the run, relative to the peak.
    """

    name: Literal["cosine", "linear", "constant"] = "linear"
    warmup_steps: NonNegativeInt = 20
    decay_fraction: ClosedUnitInterval = 0.6
    final_fraction: ClosedUnitInterval = 0.0


def learning_rate_scale(step: int, max_steps: int, options: ScheduleOptions) -> float:
    """The learning rate of a step (0 is the first) divided by the peak learning rate, in (0, 1].

    Constant after the warmup if the number of steps is not known (max_steps < 1).
    """
    warmup = min(1.0, (step + 1) / (options.warmup_steps + 1))
    decay_steps = options.decay_fraction * max_steps
    if options.name == "constant" or decay_steps <= 0:
        return warmup
    # 1 until the decay begins, 0 just after the last step
    left = min(1.0, max(0.0, (max_steps - step) / decay_steps))
    shape = left if options.name == "linear" else 0.5 - 0.5 * math.cos(math.pi * left)
    return warmup * (options.final_fraction + (1 - options.final_fraction) * shape)


def set_rates(
    groups: list[dict[str, Any]], step: int, max_steps: int, options: ScheduleOptions
) -> None:
    """Give parameter groups the learning rate and weight decay of a step (0 is the first).

    Weight decay grows linearly from `first_decay` to `final_decay`; if the number of steps is not
    known (max_steps < 1), it stays at `first_decay`.
    """
    scale = learning_rate_scale(step, max_steps, options)
    for group in groups:
        group["lr"] = group["peak_lr"] * scale
        growth = group["final_decay"] - group["first_decay"]
        grown = growth * step / max_steps if max_steps > 0 else 0.0
        group["weight_decay"] = group["first_decay"] + grown
