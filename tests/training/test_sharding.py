"""Laws of FSDP2 with one process; tests/end_to_end/test_processes.py runs it with two."""

import copy

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import StrategyRegistry
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from lightning_app.training.optimizer import MuonAdamW, OptimOptions, parameter_groups
from lightning_app.training.sharding import (
    ShardedStrategy,
    copy_weights,
    gather,
    load_optimizer,
    shard,
    shard_like,
)
from tests.helpers import filled_network, fresh_network, random_ids


@pytest.fixture(scope="module")
def mesh():
    """A group of this process alone."""
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def test_every_block_and_the_rest_are_sharded_and_the_logits_stay(mesh):
    gpt = filled_network()
    idx = random_ids(gpt, 2, 12)
    expected = gpt(idx)
    whole = copy.deepcopy(gpt.state_dict())
    shard(gpt, mesh)
    assert all(isinstance(part, FSDPModule) for part in (*gpt.blocks, gpt))
    assert all(isinstance(p, DTensor) for p in gpt.parameters())
    assert list(gpt.state_dict()) == list(whole)
    for name, p in gpt.named_parameters():
        assert torch.equal(gather(p), whole[name])
    torch.testing.assert_close(gpt(idx), expected)


def test_whole_weights_are_copied_into_a_sharded_network(mesh):
    weights = filled_network().state_dict()
    gpt = fresh_network()
    shard(gpt, mesh)
    copy_weights(weights, gpt)
    for name, p in gpt.named_parameters():
        assert torch.equal(gather(p), weights[name])


def test_an_optimizers_whole_state_is_loaded_into_a_sharded_one(mesh):
    plain, sharded = filled_network(), fresh_network()
    shard(sharded, mesh)
    one, other = (MuonAdamW(parameter_groups(gpt, OptimOptions())) for gpt in (plain, sharded))
    for p in plain.parameters():
        p.grad = torch.randn_like(p)
    one.step()
    load_optimizer(one.state_dict(), other)
    for p, q in zip(plain.parameters(), sharded.parameters(), strict=True):
        for name, moment in one.state[p].items():
            assert torch.equal(gather(other.state[q][name]), moment)
            assert isinstance(other.state[q][name], DTensor) == (name != "step")


def test_a_whole_tensor_is_sharded_as_a_parameter_is(mesh):
    gpt = fresh_network()
    plain = torch.arange(11.0)
    assert shard_like(plain, gpt.norm.weight) is plain
    assert gather(plain) is plain
    shard(gpt, mesh)
    x = torch.rand(gpt.norm.weight.shape)
    sharded = shard_like(x, gpt.norm.weight)
    assert isinstance(sharded, DTensor)
    assert sharded.placements == gpt.norm.weight.placements
    assert torch.equal(gather(sharded), x)
    assert shard_like(sharded, gpt.norm.weight) is sharded


def test_the_trainer_knows_the_strategy_by_its_name():
    strategy = StrategyRegistry.get("sharded")
    assert isinstance(strategy, ShardedStrategy)
    assert strategy._tensor_parallel_size == 1
    assert not strategy._save_distributed_checkpoint  # a checkpoint is one file


def test_weights_are_copied_with_the_n_gram_tables():
    source, target = filled_network(ngram_rows=(20, 50)), fresh_network(ngram_rows=(20, 50))
    copy_weights(source.state_dict(), target)
    for name, weight in source.state_dict().items():
        assert torch.equal(weight, target.state_dict()[name]), name
