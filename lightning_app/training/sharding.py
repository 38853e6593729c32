"""FSDP2: every process keeps a part of the network."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from lightning_app.lightning_internals import spread_data_over_processes
from lightning_app.model.gpt import GPT
from lightning_app.model.ngrams import TABLES, NgramCounts
from lightning_app.runs.checkpoint import read_checkpoint


def shard(gpt: GPT, mesh: DeviceMesh) -> None:
    """Distribute every block, and the other weights, over the processes of `mesh`."""
    for part in (*gpt.blocks, gpt):
        fully_shard(part, mesh=mesh, reshard_after_forward=True)


def gather(x: Tensor) -> Tensor:
    """The full tensor of a sharded one; every process must call this."""
    return x.full_tensor() if isinstance(x, DTensor) else x


def shard_like(x: Tensor, p: Tensor) -> Tensor:
    """x, sharded as p is."""
    if isinstance(p, DTensor) and not isinstance(x, DTensor):
        return distribute_tensor(x.to(p.device), p.device_mesh, p.placements)
    return x


@torch.no_grad()
def copy_weights(weights: dict[str, Tensor], module: nn.Module) -> None:
    """Copy full weights, by name, into a module's sharded parameters, and its n-gram tables, which
    every process has in full."""
    for name, p in module.named_parameters():
        p.copy_(shard_like(weights[name], p))
    for name, part in module.named_modules():
        if isinstance(part, NgramCounts):
            part.load_tables(*(weights[f"{name}.{table}"] for table in TABLES))


def load_optimizer(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> None:
    """Restore an optimizer of sharded parameters from the state_dict of one with full tensors.

    Parameters are matched by their position in the groups, because their ids differ: a sharded
    optimizer is saved with those of the network's order, any other with those of its groups.
    """
    ids = [i for group in state["param_groups"] for i in group["params"]]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    moments = {
        i: {k: shard_like(x, p) if x.shape == p.shape else x for k, x in state["state"][i].items()}
        for i, p in zip(ids, parameters, strict=True)
    }
    optimizer.load_state_dict({"state": moments, "param_groups": state["param_groups"]})


class ShardedStrategy(ModelParallelStrategy):
    """--trainer.strategy sharded: every process reads its own windows and keeps its part of the
    network (FSDP2), also on a CPU. A checkpoint is one file, as with other strategies."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False, **kwargs)

    def setup_environment(self) -> None:
        spread_data_over_processes(self)
        super().setup_environment()

    def load_checkpoint(
        self, checkpoint_path: str | Path, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Restore network and optimizers, also from a run without this strategy.

        Returns the rest of the checkpoint. Raises UserError for a file that is not one of ours.
        """
        checkpoint = read_checkpoint(Path(self.broadcast(checkpoint_path)))
        assert self.model is not None
        copy_weights(checkpoint.pop("state_dict"), self.model)
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=False):
            load_optimizer(state, optimizer)
        return checkpoint


StrategyRegistry.register("sharded", ShardedStrategy)
