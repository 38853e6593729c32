"""Laws of dropout on a CPU."""

import pytest
import torch

from lightning_app.model.dropout import Dropout
from tests.helpers import assert_close


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_dropout_drops_the_nearest_256th_scales_the_rest_and_the_gradient_alike(p):
    torch.manual_seed(0)
    x = torch.full((1001, 997), 2.0, requires_grad=True)  # not a multiple of eight
    y = Dropout(p)(x)
    dropped = round(256 * p) / 256
    assert float((y == 0).double().mean()) == pytest.approx(dropped, abs=0.002)
    assert y.detach().unique().tolist() == pytest.approx([0, 2 / (1 - dropped)])
    y.sum().backward()
    assert_close(x.grad * 2, y.detach())


def test_dropout_is_repeated_by_the_seed_and_differs_from_layer_to_layer():
    dropout, x = Dropout(0.3), torch.ones(64, 64)
    torch.manual_seed(3)
    first, second = dropout(x), dropout(x)
    torch.manual_seed(3)
    assert torch.equal(dropout(x), first)
    assert not torch.equal(first, second)
