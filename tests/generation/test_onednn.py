"""Laws of the products with a weight laid out beforehand; private parts of torch."""

import pytest
import torch

from lightning_app.generation import onednn


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")
def test_torch_still_has_the_private_operators():
    assert onednn.available()


@pytest.mark.parametrize("private", [onednn.PRIVATE, ("_moved_elsewhere",)], ids=["yes", "no"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_product_is_the_plain_one_with_the_private_operators_and_without(
    private, dtype, monkeypatch
):
    monkeypatch.setattr(onednn, "PRIVATE", private)
    generator = torch.Generator().manual_seed(0)
    weight, x = (torch.randn(n, 24, generator=generator).to(dtype) for n in (40, 5))
    y = onednn.linear(weight, len(x))(x)
    assert y.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 0.02
    torch.testing.assert_close(
        y.float(), x.float() @ weight.float().mT, rtol=tolerance, atol=10 * tolerance
    )
