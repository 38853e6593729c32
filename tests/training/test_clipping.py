"""Laws of clipping: that of torch.nn.utils, also for sparse gradients."""

import pytest
import torch
from torch import nn

from lightning_app.training.clipping import clip_gradients, gradient_norm


def parameters(sparse: bool) -> list[nn.Parameter]:
    """Three parameters, one of them without a gradient, and the table of an embedding in which a
    row is used twice."""
    torch.manual_seed(0)
    linear, table = nn.Linear(4, 3), nn.Embedding(9, 4, sparse=sparse)
    linear(table(torch.tensor([[1, 5, 1, 8]]))).square().sum().backward()
    return [*linear.parameters(), nn.Parameter(torch.zeros(2)), *table.parameters()]


def dense(p: nn.Parameter) -> torch.Tensor | None:
    return p.grad.to_dense() if p.grad is not None else None


def test_the_norm_is_that_of_the_dense_gradients():
    expected = torch.nn.utils.get_total_norm(
        [p.grad for p in parameters(False) if p.grad is not None]
    )
    assert gradient_norm(parameters(True)) == pytest.approx(expected.item())


@pytest.mark.parametrize("algorithm", ["norm", "value"])
@pytest.mark.parametrize("limit", [0.1, 1000.0])
def test_clipping_is_that_of_torch(algorithm, limit):
    expected, ours = parameters(False), parameters(True)
    clip = torch.nn.utils.clip_grad_norm_
    if algorithm == "value":
        clip = torch.nn.utils.clip_grad_value_
    norm = gradient_norm(expected)
    clip(expected, limit)
    assert clip_gradients(ours, limit, algorithm) == pytest.approx(norm.item())
    assert ours[-1].grad.is_sparse
    for p, q in zip(ours, expected, strict=True):
        torch.testing.assert_close(dense(p), dense(q))
