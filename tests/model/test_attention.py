"""Laws of attention on a CPU; the reference is PyTorch's own."""

import pytest
import torch
import torch.nn.functional as F

from lightning_app.model import attention as attention_module
from lightning_app.model.attention import attention


def queries_keys_values(n_kv_head: int, T: int, S: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 4, T, 6), (2, n_kv_head, S, 6), (2, n_kv_head, S, 6)]
    return [torch.randn(s, generator=generator, dtype=torch.float32) for s in shapes]


def outputs_and_gradients(function, *inputs: torch.Tensor) -> list[torch.Tensor]:
    inputs = [x.clone().requires_grad_() for x in inputs]
    y = function(*inputs)
    (y * torch.linspace(-1, 1, y.numel()).view(y.shape)).sum().backward()
    return [y.detach(), *(x.grad for x in inputs)]


@pytest.mark.parametrize("n_kv_head", [4, 2, 1])
@pytest.mark.parametrize("queries", [128, 7, 3, 1])  # per block
def test_causal_attention_and_its_gradients_are_pytorchs(n_kv_head, queries, monkeypatch):
    monkeypatch.setattr(attention_module, "QUERY_BLOCK", queries)

    def reference(q, k, v):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

    inputs = queries_keys_values(n_kv_head, 10, 10)
    actual = outputs_and_gradients(attention, *inputs)
    torch.testing.assert_close(actual, outputs_and_gradients(reference, *inputs))


@pytest.mark.parametrize("n_kv_head", [4, 2, 1])
def test_masked_attention_and_its_gradients_are_pytorchs(n_kv_head):
    mask = torch.rand(2, 1, 3, 9, generator=torch.Generator().manual_seed(1)) < 0.5
    mask[..., 0] = True  # every query has a key

    def reference(q, k, v):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)

    inputs = queries_keys_values(n_kv_head, 3, 9)
    actual = outputs_and_gradients(lambda q, k, v: attention(q, k, v, mask), *inputs)
    torch.testing.assert_close(actual, outputs_and_gradients(reference, *inputs))


def test_a_key_that_is_masked_changes_nothing():
    q, k, v = queries_keys_values(2, 3, 9)
    mask = torch.ones(2, 1, 3, 9, dtype=torch.bool)
    mask[..., 4] = False
    before = attention(q, k, v, mask)
    k[:, :, 4], v[:, :, 4] = 100, 100
    assert torch.equal(attention(q, k, v, mask), before)
