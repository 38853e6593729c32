"""FSDP2: every process keeps a share of the network."""

from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def gather(x: Tensor) -> Tensor:
    """A sharded tensor put together; every process must ask."""
    return x.full_tensor() if isinstance(x, DTensor) else x


def shard_like(x: Tensor, p: Tensor) -> Tensor:
    """x sharded as p is."""
    return distribute_tensor(x, p.device_mesh, p.placements) if isinstance(p, DTensor) else x


class ShardedStrategy(ModelParallelStrategy):
    """--trainer.strategy sharded: every process reads its own windows and keeps its share of the
    network (FSDP2), on a CPU too; checkpoints are one file, as everywhere."""

    def __init__(self, **kwargs) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False, **kwargs)

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()


StrategyRegistry.register("sharded", ShardedStrategy)
