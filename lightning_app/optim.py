"""Parameter groups, Muon with AdamW behind one Optimizer, and schedules as functions of the step.

Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) replaces a matrix's momentum by the
nearest orthogonal matrix. It suits the blocks' matrices; embedding, head and gains take AdamW
(arXiv 1711.05101).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from jsonargparse.typing import (
    ClosedUnitInterval,
    NonNegativeInt,
    restricted_number_type,
)
from torch import Tensor
from torch.optim.adamw import adamw

from lightning_app.errors import UserError
from lightning_app.gpt import GPT
from lightning_app.hardware import multiplies_bf16

# How much of the past a running average keeps: all of it would never move.
Memory = restricted_number_type("Memory", float, [(">=", 0), ("<", 1)])
Rate = restricted_number_type("Rate", float, [(">", 0), ("<", math.inf)])
Decay = restricted_number_type("Decay", float, [(">=", 0), ("<", math.inf)])


@dataclass
class OptimOptions:
    """How weights move.

    Args:
        name: muon (matrices by Muon, the rest by AdamW) or adamw (everything by AdamW).
        learning_rate: AdamW's peak learning rate.
        muon_learning_rate: Muon's peak learning rate, for a square matrix.
        weight_decay: Decoupled decay of the matrices, per unit of learning rate; gains and
            embedding have none.
        final_weight_decay: What weight_decay grows to, evenly over the run; null keeps it constant.
            What a network has seen many times it learns by heart last, so it is held back last.
        beta1: AdamW's memory of gradients.
        beta2: AdamW's memory of squared gradients.
        momentum: Muon's (Nesterov) momentum.
        average_decay: Validate, save and generate with a running average of the weights; 0.99
            remembers about 100 steps, 0 is off.
    """

    name: Literal["muon", "adamw"] = "muon"
    learning_rate: Rate = 3e-3
    muon_learning_rate: Rate = 0.03
    weight_decay: Decay = 0.0
    final_weight_decay: Decay | None = None
    beta1: Memory = 0.9
    beta2: Memory = 0.95
    momentum: Memory = 0.9
    average_decay: Memory = 0.0


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


# Three odd quintics that together send singular values in 0.01..1 to 0.71..1.29: each has about the
# smallest error on what the one before it leaves (Polar Express, arXiv 2505.16932).
QUINTICS = ((7.7110, -22.1138, 16.2487), (3.6618, -2.7402, 0.5386), (2.6987, -2.0077, 0.4560))


def orthogonalize(g: Tensor) -> Tensor:
    """Roughly the orthogonal factor of each matrix in g (N, rows <= columns, columns), in g's type.

    Singular values end within 0.71..1.29, down to a hundredth of the Schatten 4-norm. That norm is
    the Frobenius norm of the first product, so it costs nothing, and lies closer above the largest
    singular value than the matrix's own Frobenius norm: it saves one of Muon's five steps, better
    polynomials another.
    """
    x = g / (g.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    a = x @ x.mT
    norm = a.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-6)  # a zero matrix stays zero
    a, x = a / norm, x * norm.rsqrt()
    for step, (linear, cubic, quintic) in enumerate(QUINTICS):
        if step > 0:
            a = x @ x.mT
        p = torch.baddbmm(a, a, a, beta=cubic, alpha=quintic)
        x = torch.baddbmm(x, p, x, beta=linear)
    return x


def muon_step(
    params: list[Tensor],
    grads: list[Tensor],
    momenta: list[Tensor],
    lr: Tensor,
    weight_decay: Tensor,
    momentum: float,
    dtype: torch.dtype,
) -> None:
    """One step of Muon, in place, for matrices that all have one shape or its transpose; they are
    orthogonalized in `dtype`."""
    lying = []  # on their long side
    for grad, memory in zip(grads, momenta, strict=True):
        memory.lerp_(grad, 1 - momentum)
        update = grad.lerp(memory, momentum)  # Nesterov
        lying.append(update.mT if update.size(0) > update.size(1) else update)
    for p, update in zip(params, orthogonalize(torch.stack(lying).to(dtype)), strict=True):
        rows, columns = p.shape
        scale = max(1.0, rows / columns) ** 0.5  # the same RMS change per output
        update = (update.mT if rows > columns else update).to(p.dtype)
        p.mul_(1 - lr * weight_decay).sub_(update * (lr * scale))


class MuonAdamW(torch.optim.Optimizer):
    """Muon for groups with `muon` true, AdamW for the others, as one optimizer.

    One optimizer keeps Lightning's automatic optimization, and with it the Trainer's clipping and
    accumulation flags.
    """

    def __init__(self, groups: list[dict], compile: bool = False) -> None:
        super().__init__(groups, defaults={})
        self.muon_step: Callable[..., None] = muon_step
        if compile:
            self.muon_step = torch.compile(muon_step, dynamic=False)

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                (self.muon if group["muon"] else self.adamw)(group, params)
        return loss

    def muon(self, group: dict, params: list[Tensor]) -> None:
        shapes: dict[tuple[int, ...], list[Tensor]] = {}
        for p in params:
            if not self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
            shapes.setdefault(tuple(sorted(p.shape)), []).append(p)
        rates = [torch.tensor(group[name]) for name in ("lr", "weight_decay")]  # not compiled in
        dtype = torch.bfloat16 if multiplies_bf16(params[0].device.type) else torch.float32
        for same in shapes.values():
            grads, momenta = [p.grad for p in same], [self.state[p]["momentum"] for p in same]
            self.muon_step(same, grads, momenta, *rates, group["momentum"], dtype)

    def adamw(self, group: dict, params: list[Tensor]) -> None:
        for p in params:
            if not self.state[p]:
                self.state[p]["step"] = torch.zeros(())
                self.state[p]["exp_avg"] = torch.zeros_like(p)
                self.state[p]["exp_avg_sq"] = torch.zeros_like(p)
        adamw(
            params,
            [p.grad for p in params],
            *([self.state[p][key] for p in params] for key in ("exp_avg", "exp_avg_sq")),
            [],
            [self.state[p]["step"] for p in params],
            foreach=True,  # fused=True with bf16-mixed and clipping raises (Lightning #21435)
            amsgrad=False,
            beta1=group["beta1"],
            beta2=group["beta2"],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=1e-8,
            maximize=False,
        )


def parameter_groups(gpt: GPT, options: OptimOptions) -> list[dict]:
    """Every parameter in exactly one group: the blocks' matrices, and the rest (embedding, head and
    gains; the head's matrix decays), at the rates of a first step without warmup."""
    matrices = [p for p in gpt.blocks.parameters() if p.ndim == 2]
    head = [] if gpt.config.tie_embeddings else [gpt.lm_head.weight]
    taken = {id(p) for p in matrices + head}
    rest = [p for p in gpt.parameters() if id(p) not in taken]
    muon = options.name == "muon"
    adam = {"muon": False, "peak_lr": options.learning_rate}
    adam |= {"beta1": options.beta1, "beta2": options.beta2}
    matrix = adam
    if muon:
        matrix = {"muon": True, "peak_lr": options.muon_learning_rate, "momentum": options.momentum}
    final = options.final_weight_decay
    decay = {"first_decay": options.weight_decay}
    decay["final_decay"] = options.weight_decay if final is None else final
    spared = {"first_decay": 0.0, "final_decay": 0.0}
    groups = [
        {"name": "blocks", "params": matrices, **matrix, **decay},
        {"name": "head", "params": head, **adam, **decay},
        {"name": "embedding_and_gains", "params": rest, **adam, **spared},
    ]
    assert sum(len(g["params"]) for g in groups) == len(list(gpt.parameters()))
    groups = [group for group in groups if group["params"]]
    set_rates(groups, 0, 1, ScheduleOptions("constant", warmup_steps=0))
    return groups


def set_rates(groups: list[dict], step: int, max_steps: int, options: ScheduleOptions) -> None:
    """Give groups of parameters the learning rate and weight decay of a step (0 is the first)."""
    scale = learning_rate_scale(step, max_steps, options)
    for group in groups:
        group["lr"] = group["peak_lr"] * scale
        growth = group["final_decay"] - group["first_decay"]
        group["weight_decay"] = group["first_decay"] + growth * step / max_steps
