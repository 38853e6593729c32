"""Laws of parameter groups, and of Muon and AdamW as one optimizer."""

import pytest
import torch
from torch import Tensor

from lightning_app.model.gpt import GPT, GPTConfig, loss_per_character
from lightning_app.training import muon
from lightning_app.training import optimizer as optimizer_module
from lightning_app.training.optimizer import MuonAdamW, OptimOptions, parameter_groups


def network(tied: bool = False) -> GPT:
    torch.manual_seed(0)
    sizes = {"vocab_size": 7, "block_size": 8, "n_layer": 2, "n_head": 2, "n_embd": 16}
    return GPT(GPTConfig(**sizes, n_kv_head=1, mlp_size=24, tie_embeddings=tied))


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def muon_group(params: list[Tensor], **options) -> dict:
    group = {"params": params, "muon": True, "lr": 0.1, "momentum": 0.9, "weight_decay": 0.0}
    return group | options


def adam_group(params: list[Tensor], **options) -> dict:
    group = {"params": params, "muon": False, "lr": 0.01, "weight_decay": 0.1}
    return group | {"beta1": 0.9, "beta2": 0.95} | options


# Parameter groups.

every_split = pytest.mark.parametrize(
    ("name", "tied"), [("muon", False), ("muon", True), ("adamw", False), ("adamw", True)]
)


@every_split
def test_every_parameter_is_in_exactly_one_group(name, tied):
    gpt = network(tied)
    grouped = [p for g in parameter_groups(gpt, OptimOptions(name)) for p in g["params"]]
    assert sorted(map(id, grouped)) == sorted(map(id, gpt.parameters()))


@every_split
def test_muon_takes_the_blocks_matrices_and_nothing_else(name, tied):
    gpt = network(tied)
    groups = parameter_groups(gpt, OptimOptions(name))
    taken = {id(p) for g in groups if g["muon"] for p in g["params"]}
    matrices = {id(p) for n, p in gpt.named_parameters() if n.startswith("blocks.") and p.ndim == 2}
    assert taken == (matrices if name == "muon" else set())


@every_split
def test_matrices_decay_and_embedding_and_gains_do_not(name, tied):
    gpt = network(tied)
    groups = parameter_groups(gpt, OptimOptions(name, weight_decay=0.3))
    decay = {id(p): g["weight_decay"] for g in groups for p in g["params"]}
    for n, p in gpt.named_parameters():
        spared = p.ndim == 1 or n == "embedding.weight"
        assert decay[id(p)] == (0.0 if spared else 0.3), n


def test_each_kind_of_group_gets_its_own_learning_rate():
    options = OptimOptions("muon", learning_rate=0.5, muon_learning_rate=0.25)
    for group in parameter_groups(network(), options):
        assert group["lr"] == group["peak_lr"] == (0.25 if group["muon"] else 0.5)
    adamw = OptimOptions("adamw", learning_rate=0.5, muon_learning_rate=0.25)
    assert {g["lr"] for g in parameter_groups(network(), adamw)} == {0.5}


# AdamW.


def test_adamw_groups_move_as_torchs_adamw():
    start = [randn(5, 3, seed=1), randn(4, seed=2)]
    ours = [p.clone().requires_grad_() for p in start]
    theirs = [p.clone().requires_grad_() for p in start]
    optimizer = MuonAdamW([adam_group(ours[:1]), adam_group(ours[1:], weight_decay=0.0)])
    reference = torch.optim.AdamW(
        [{"params": theirs[:1]}, {"params": theirs[1:], "weight_decay": 0.0}],
        lr=0.01,
        betas=(0.9, 0.95),
        weight_decay=0.1,
        eps=1e-8,
    )
    for step in range(8):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = randn(*p.shape, seed=10 + step)
            q.grad = p.grad.clone()
        optimizer.step()
        reference.step()
        for p, q in zip(ours, theirs, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


# Muon.


@pytest.mark.parametrize("hardware", [True, False])
def test_muon_multiplies_in_bfloat16_only_where_the_hardware_does(monkeypatch, hardware):
    seen = []
    monkeypatch.setattr(optimizer_module, "multiplies_bf16", lambda accelerator: hardware)
    monkeypatch.setattr(muon, "orthogonalize", lambda g: seen.append(g.dtype) or g)
    p = randn(4, 6).requires_grad_()
    p.grad = torch.ones_like(p)
    MuonAdamW([muon_group([p], lr=0.1)]).step()
    assert seen == [torch.bfloat16 if hardware else torch.float32]


def test_muon_moves_a_matrix_the_same_alone_and_among_others():
    shapes = [(16, 24), (24, 16), (16, 16), (16, 24), (24, 16), (8, 16), (16, 16)]
    together = [torch.zeros(shape, requires_grad=True) for shape in shapes]
    alone = [torch.zeros(shape, requires_grad=True) for shape in shapes]
    optimizer = MuonAdamW([muon_group(together, lr=1.0)])
    single = [MuonAdamW([muon_group([p], lr=1.0)]) for p in alone]
    for step in range(2):
        for i, (p, q) in enumerate(zip(together, alone, strict=True)):
            p.grad = randn(*p.shape, seed=100 * step + i)
            q.grad = p.grad.clone()
            single[i].step()
        optimizer.step()
    for p, q in zip(together, alone, strict=True):
        assert q.norm() > 1
        assert (p - q).norm() < 0.02 * q.norm()


# One optimizer.


def test_parameters_without_a_gradient_stay_and_the_rest_move():
    params = [randn(4, 4, seed=i).requires_grad_() for i in range(4)]
    before = [p.detach().clone() for p in params]
    params[0].grad, params[2].grad = randn(4, 4), randn(4, 4)
    MuonAdamW([muon_group(params[:2], weight_decay=0.1), adam_group(params[2:])]).step()
    same = [torch.equal(p, q) for p, q in zip(params, before, strict=True)]
    assert same == [False, True, False, True]


def test_step_runs_its_closure_with_gradients_and_returns_the_loss():
    p = torch.ones(2, 2, requires_grad=True)

    def closure():
        loss = (p * p).sum()
        loss.backward()
        return loss

    assert MuonAdamW([adam_group([p])]).step(closure) == 4
    assert (p < 1).all()


def trained(gpt: GPT, optimizer: MuonAdamW, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        idx = torch.randint(7, (2, 9), generator=generator)
        optimizer.zero_grad()
        loss_per_character(gpt(idx[:, :-1]), idx[:, 1:]).mean().backward()
        optimizer.step()


@every_split
def test_saved_and_loaded_it_goes_on_bit_for_bit(name, tied, tmp_path):
    options = OptimOptions(name, weight_decay=0.1)
    unbroken = network(tied)
    trained(unbroken, MuonAdamW(parameter_groups(unbroken, options)), range(6))

    gpt = network(tied)
    optimizer = MuonAdamW(parameter_groups(gpt, options))
    trained(gpt, optimizer, range(3))
    torch.save([gpt.state_dict(), optimizer.state_dict()], tmp_path / "half")

    resumed = network(tied)
    again = MuonAdamW(parameter_groups(resumed, options))
    weights, state = torch.load(tmp_path / "half", weights_only=True)
    resumed.load_state_dict(weights)
    again.load_state_dict(state)
    trained(resumed, again, range(3, 6))
    for (n, p), q in zip(resumed.named_parameters(), unbroken.parameters(), strict=True):
        assert torch.equal(p, q), n

    forgetful = network(tied)  # the state matters: without it, another end
    forgetful.load_state_dict(weights)
    trained(forgetful, MuonAdamW(parameter_groups(forgetful, options)), range(3, 6))
    assert not torch.equal(forgetful.norm.weight, unbroken.norm.weight)


@every_split
def test_training_lowers_the_loss(name, tied):
    gpt = network(tied)
    optimizer = MuonAdamW(parameter_groups(gpt, OptimOptions(name)))
    idx = torch.arange(9).remainder(7)[None]

    def loss() -> Tensor:
        return loss_per_character(gpt(idx[:, :-1]), idx[:, 1:]).mean()

    start = loss().item()
    for _ in range(30):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert loss().item() < start / 2
