"""FSDP2: every process keeps a part of the network."""

from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from lightning_app.lightning_internals import spread_data_over_processes
from lightning_app.model.gpt import GPT


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
    """Copy full weights, by name, into a module's sharded parameters."""
    for name, p in module.named_parameters():
        p.copy_(shard_like(weights[name], p))


class ShardedStrategy(ModelParallelStrategy):
    """--trainer.strategy sharded: every process reads its own windows and keeps its part of the
    network (FSDP2), also on a CPU. A checkpoint is one file, as with other strategies."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False, **kwargs)

    def setup_environment(self) -> None:
        spread_data_over_processes(self)
        super().setup_environment()


StrategyRegistry.register("sharded", ShardedStrategy)
