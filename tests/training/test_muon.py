"""Laws of Muon: updates are nearly orthogonal, momentum is Nesterov's, decay is decoupled."""

import math

import pytest
import torch
from torch import Tensor

from lightning_app.training import muon
from lightning_app.training.muon import muon_step, orthogonalize


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def step(
    params: list[Tensor],
    grads: list[Tensor],
    momenta: list[Tensor] | None = None,
    lr: float = 0.1,
    weight_decay: float = 0.0,
    momentum: float = 0.9,
    dtype: torch.dtype = torch.float32,
) -> None:
    momenta = [torch.zeros_like(p) for p in params] if momenta is None else momenta
    rates = torch.tensor(lr), torch.tensor(weight_decay)
    muon_step(params, grads, momenta, *rates, momentum, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(16, 16), (16, 48), (48, 16), (1, 8), (32, 40)])
def test_orthogonalize_brings_every_singular_value_near_1(shape, dtype):
    for scale in (1e-3, 1.0, 1e3):
        g = scale * randn(3, *shape, seed=3)
        lying = g.mT if shape[0] > shape[1] else g
        singular = torch.linalg.svdvals(orthogonalize(lying.to(dtype)).float())
        assert singular.min() > 0.6
        assert singular.max() < 1.31


@pytest.mark.parametrize("smallest", [1, 0.1, 0.02])
def test_orthogonalize_lifts_directions_of_a_hundredth_part(smallest):
    u, _, vt = torch.linalg.svd(randn(2, 48, 96, seed=6), full_matrices=False)
    singular = torch.logspace(0, math.log10(smallest), 48)
    singular /= singular.pow(4).sum() ** 0.25
    lifted = u.mT @ orthogonalize((u * singular @ vt).bfloat16()).float() @ vt.mT
    assert lifted.diagonal(dim1=1, dim2=2).min() > 0.65
    assert lifted.diagonal(dim1=1, dim2=2).max() < 1.31


def test_orthogonalize_keeps_a_zero_matrix_and_the_directions_of_others():
    assert not orthogonalize(torch.zeros(1, 4, 6)).any()
    u, _, vt = torch.linalg.svd(randn(2, 8, 12, seed=7), full_matrices=False)
    inside = u.mT @ orthogonalize((u * torch.linspace(1, 0.1, 8)) @ vt) @ vt.mT
    assert (inside - inside.diagonal(dim1=1, dim2=2).diag_embed()).abs().max() < 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(16, 16), (8, 24), (24, 8)])
def test_a_step_goes_against_the_orthogonal_factor_of_the_gradient(shape, dtype):
    p, grad = torch.zeros(shape), randn(*shape, seed=4)
    step([p], [grad], dtype=dtype)
    scale = max(1.0, shape[0] / shape[1]) ** 0.5
    u, _, vt = torch.linalg.svd(grad, full_matrices=False)
    inside = u.T @ (-p / (0.1 * scale)) @ vt.T  # diagonal, if the directions are right
    assert (inside.diag() > 0.6).all()
    assert (inside.diag() < 1.31).all()
    assert (inside - inside.diag().diag()).abs().max() < 0.05


def test_a_step_does_not_depend_on_the_gradients_size():
    results = []
    for scale in (1e-3, 1.0, 1e3):
        p = torch.zeros(6, 4)
        step([p], [scale * randn(6, 4, seed=5)])
        results.append(p)
    torch.testing.assert_close(results[0], results[1], rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(results[2], results[1], rtol=1e-3, atol=1e-6)


def test_a_matrix_moves_the_same_alone_and_among_others_of_its_shape_or_the_transpose():
    shapes = [(16, 24), (24, 16), (16, 24), (24, 16), (24, 16)]
    together, alone = ([torch.zeros(shape) for shape in shapes] for _ in range(2))
    grads = [randn(*shape, seed=i) for i, shape in enumerate(shapes)]
    step(together, grads)
    for p, grad in zip(alone, grads, strict=True):
        step([p], [grad])
    for p, q in zip(together, alone, strict=True):
        assert q.norm() > 0.1
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)


def test_a_transposed_matrix_moves_as_the_matrix():
    grad = randn(16, 16, seed=8)
    p, transposed = torch.zeros(16, 16), torch.zeros(16, 16)
    step([p, transposed], [grad, grad.T.contiguous()])
    torch.testing.assert_close(p, transposed.T, rtol=1e-4, atol=1e-6)


def test_momentum_is_nesterovs_and_weight_decay_decoupled(monkeypatch):
    monkeypatch.setattr(muon, "orthogonalize", lambda g: g)
    p, memory = randn(3, 3, seed=5), torch.zeros(3, 3)
    expected, average = p.clone(), torch.zeros(3, 3)
    for i in range(4):
        grad = randn(3, 3, seed=i)
        average = 0.8 * average + 0.2 * grad
        ahead = 0.8 * average + 0.2 * grad
        expected = expected * (1 - 0.1 * 0.5) - 0.1 * ahead
        step([p], [grad], [memory], momentum=0.8, weight_decay=0.5)
        torch.testing.assert_close(p, expected)
        torch.testing.assert_close(memory, average)


def test_a_zero_gradient_changes_a_matrix_by_weight_decay_only():
    p = randn(4, 6)
    before = p.clone()
    step([p], [torch.zeros(4, 6)], weight_decay=0.5)
    torch.testing.assert_close(p, before * 0.95)
