"""Parameter groups, and Muon with AdamW as one Optimizer.

Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) replaces a matrix's momentum by the
nearest orthogonal matrix. It suits the blocks' matrices; embedding, head and gains take AdamW
(arXiv 1711.05101).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from jsonargparse.typing import restricted_number_type
from torch import Tensor
from torch.optim.adamw import adamw

from lightning_app.hardware import multiplies_bf16
from lightning_app.model.gpt import GPT
from lightning_app.training.muon import muon_step
from lightning_app.training.schedules import ScheduleOptions, set_rates

if TYPE_CHECKING:
    BelowOne: TypeAlias = float
    Rate: TypeAlias = float
    Decay: TypeAlias = float
else:  # what the command line accepts
    BelowOne = restricted_number_type("BelowOne", float, [(">=", 0), ("<", 1)])
    # far above any useful value, and far below those with which a step overflows
    Rate = restricted_number_type("Rate", float, [(">", 0), ("<=", 100)])
    Decay = restricted_number_type("Decay", float, [(">=", 0), ("<=", 1000)])


@dataclass
class OptimOptions:
    """How the optimizer changes weights.

    Args:
        name: muon (Muon for the matrices, AdamW for the rest) or adamw (AdamW for everything).
        learning_rate: AdamW's peak learning rate.
        muon_learning_rate: Muon's peak learning rate, for a square matrix.
        weight_decay: Decoupled decay of the matrices, per unit of learning rate; gains and
            embedding have none.
        final_weight_decay: Value at the end of the run; weight_decay grows to it linearly. null
            keeps it constant. In a run of many passes over the text, memorisation sets in late, so
            decay is most useful then.
        beta1: Decay of AdamW's running average of gradients.
        beta2: Decay of AdamW's running average of squared gradients.
        momentum: Muon's (Nesterov) momentum.
        average_decay: Validate, save and generate with a running average of the weights; 0.99
            averages over about 100 steps, 0 is off.
    """

    name: Literal["muon", "adamw"] = "muon"
    learning_rate: Rate = 3e-3
    muon_learning_rate: Rate = 0.03
    weight_decay: Decay = 0.0
    final_weight_decay: Decay | None = None
    beta1: BelowOne = 0.9
    beta2: BelowOne = 0.95
    momentum: BelowOne = 0.9
    average_decay: BelowOne = 0.0


class MuonAdamW(torch.optim.Optimizer):
    """Muon for groups with `muon` true, AdamW for the others, as one optimizer.

    With one optimizer, Lightning's automatic optimization can be used, and so the Trainer's flags
    for clipping and accumulation.
    """

    def __init__(self, groups: list[dict[str, Any]], compile: bool = False) -> None:
        super().__init__(groups, defaults={})
        self.muon_step: Callable[..., None] = muon_step
        if compile:
            self.muon_step = torch.compile(muon_step, dynamic=False)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient; returns what `closure` returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                (self.muon if group["muon"] else self.adamw)(group, params)
        return loss

    def muon(self, group: dict[str, Any], params: list[Tensor]) -> None:
        shapes: dict[tuple[int, ...], list[Tensor]] = {}
        for p in params:
            if not self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
            shapes.setdefault(tuple(sorted(p.shape)), []).append(p)
        rates = [
            torch.tensor(group[name]) for name in ("lr", "weight_decay")
        ]  # tensors: a number would be compiled in
        dtype = torch.bfloat16 if multiplies_bf16(params[0].device.type) else torch.float32
        for same in shapes.values():
            grads, momenta = [p.grad for p in same], [self.state[p]["momentum"] for p in same]
            self.muon_step(same, grads, momenta, *rates, group["momentum"], dtype)

    def adamw(self, group: dict[str, Any], params: list[Tensor]) -> None:
        for p in params:
            if not self.state[p]:
                self.state[p]["step"] = torch.zeros(())
                self.state[p]["exp_avg"] = torch.zeros_like(p)
                self.state[p]["exp_avg_sq"] = torch.zeros_like(p)
        adamw(
            params,
            [p.grad for p in params if p.grad is not None],
            [self.state[p]["exp_avg"] for p in params],
            [self.state[p]["exp_avg_sq"] for p in params],
            [],  # of AMSGrad
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


def parameter_groups(gpt: GPT, options: OptimOptions) -> list[dict[str, Any]]:
    """Every parameter in exactly one group: the matrices of the blocks, the head, and the rest
    (embedding and gains, without weight decay). Rates are those of a first step without warmup."""
    matrices = [p for block in gpt.blocks for p in block.parameters() if p.ndim == 2]
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
    no_decay = {"first_decay": 0.0, "final_decay": 0.0}
    groups: list[dict[str, Any]] = [
        {"name": "blocks", "params": matrices, **matrix, **decay},
        {"name": "head", "params": head, **adam, **decay},
        {"name": "embedding_and_gains", "params": rest, **adam, **no_decay},
    ]
    assert sum(len(g["params"]) for g in groups) == len(list(gpt.parameters()))
    groups = [group for group in groups if group["params"]]
    set_rates(groups, 0, 1, ScheduleOptions("constant", warmup_steps=0))
    return groups
