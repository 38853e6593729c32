"""Laws of dynamic evaluation, with weights that do not change as the reference."""

import numpy as np
import pytest
import torch

from lightning_app.data.windows import count_eval_windows, eval_batch
from lightning_app.evaluation.dynamic import DynamicOptions, dynamic_loss
from lightning_app.model.gpt import GPT, GPTConfig, loss_per_character

V, BLOCK = 7, 16


def network() -> GPT:
    torch.manual_seed(1)
    gpt = GPT(GPTConfig(vocab_size=V, block_size=BLOCK, n_layer=1, n_head=2, n_embd=16)).eval()
    for p in gpt.parameters():
        if p.ndim == 2:
            torch.nn.init.normal_(p, std=p.size(1) ** -0.5)
    return gpt


def batches(ids: np.ndarray, stride: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    n = count_eval_windows(0, len(ids), stride)
    rows = (eval_batch(ids, 0, len(ids), BLOCK, stride, np.array([row]))[:2] for row in range(n))
    return [(torch.from_numpy(idx), torch.from_numpy(targets)) for idx, targets in rows]


def text(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(V, size=n)


@pytest.mark.parametrize("stride", [1, 5, 16])
def test_at_a_learning_rate_of_almost_zero_it_is_the_loss_of_the_weights(stride):
    gpt, reading = network(), batches(text(60), stride)
    still = dynamic_loss(gpt, reading, DynamicOptions(learning_rate=1e-30, decay=0.0))
    losses = torch.cat([loss_per_character(gpt(idx), targets) for idx, targets in reading])
    assert float(still.compute()) == pytest.approx(float(losses.detach().sum()) / 59, rel=1e-6)
    assert still.scored == 59


def test_a_character_is_scored_before_the_weights_are_trained_on_it():
    one, stride = text(60), 4
    other = one.copy()
    other[1 + 4 * stride :] = text(len(one) - 1 - 4 * stride, seed=9)
    options = DynamicOptions(learning_rate=0.1)
    shared = [dynamic_loss(network(), batches(ids, stride)[:4], options) for ids in (one, other)]
    longer = [dynamic_loss(network(), batches(ids, stride)[:5], options) for ids in (one, other)]
    assert float(shared[0].compute()) == float(shared[1].compute())
    assert float(longer[0].compute()) != float(longer[1].compute())


def test_the_loss_of_a_repeated_text_falls():
    reading = batches(np.tile(text(20), 30), stride=8)
    still = dynamic_loss(network(), reading, DynamicOptions(learning_rate=1e-30, decay=0.0))
    moving = dynamic_loss(network(), reading, DynamicOptions(learning_rate=0.01, decay=0.0))
    assert float(moving.compute()) < 0.7 * float(still.compute())


def test_decay_1_restores_the_trained_weights():
    reading = batches(text(60), stride=4)
    free, held = network(), network()
    dynamic_loss(free, reading, DynamicOptions(learning_rate=0.01, decay=0.0))
    dynamic_loss(held, reading, DynamicOptions(learning_rate=0.01, decay=1.0))
    trained = network().state_dict()
    moved = [not torch.equal(w, trained[name]) for name, w in free.state_dict().items()]
    assert any(moved)
    for name, w in held.state_dict().items():
        torch.testing.assert_close(w, trained[name], rtol=0, atol=1e-6)
