"""Laws of the compiled loops that the engine's own tests do not isolate."""

import numpy as np
import pytest
import torch

from lightning_app.generation.cpu_engine import as_array
from lightning_app.generation.cpu_kernels import (
    activate_rows,
    exponential,
    store,
    store_quantized,
    to_float32,
)
from lightning_app.generation.numba_cache import compiled


def test_bfloat16_is_converted_and_rounded_as_pytorch_does():
    @compiled()
    def both(x, narrow, wide):
        for i in range(len(x)):
            store(narrow, i, x[i])
            wide[i] = to_float32(narrow[i])

    x = torch.randn(10_000, generator=torch.Generator().manual_seed(0)) * 10
    x[:3] = torch.tensor([0.0, 1 + 2**-8, 1 + 3 * 2**-8])  # ties go to the even neighbour
    narrow, wide = np.empty(len(x), dtype=np.uint16), np.empty(len(x), dtype=np.float32)
    both(x.numpy(), narrow, wide)
    assert np.array_equal(narrow, as_array(x.bfloat16()))
    assert np.array_equal(wide, x.bfloat16().float().numpy())


def test_int8_vectors_are_off_by_half_a_step_at_most_and_zero_stays_zero():
    @compiled()
    def store_row(x, array, scale, i):
        store_quantized(x, array, scale, i)

    rows = np.random.default_rng(0).normal(size=(50, 16)).astype(np.float32)
    rows[0] = 0
    codes, scale = np.zeros(rows.shape, dtype=np.int8), np.zeros(len(rows), dtype=np.float32)
    for i, x in enumerate(rows):
        store_row(x, codes, scale, i)
    assert np.abs(codes[1:]).max(axis=1).tolist() == [127] * 49
    assert not codes[0].any()
    error = np.abs(codes * scale[:, None] - rows)
    assert (error <= 0.501 * scale[:, None]).all()


def test_the_exponential_is_exact_to_float32_over_its_range():
    x = np.linspace(-87, 88, 200_001, dtype=np.float32)
    y = np.array([exponential(v) for v in x[::50]])
    np.testing.assert_allclose(y, np.exp(x[::50].astype(np.float64)), rtol=1e-6)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_activation_is_silu_of_the_gate_times_up_for_extreme_inputs_too(threads):
    gate = torch.tensor([[-1e9, -90, -1, 0], [1, 90, 1e9, 3]])
    up = torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8]])
    out = np.empty((2, 4), dtype=np.float32)
    scale = np.full(8, 0.5, dtype=np.float32)
    activate_rows(torch.cat((gate, up), dim=1).mul(2).numpy(), scale, out, threads)
    expected = torch.nn.functional.silu(gate) * up
    np.testing.assert_allclose(out, expected.numpy(), rtol=2e-6, atol=1e-25)
