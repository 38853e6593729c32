"""Laws of micro-batches: loss and gradient are those of the whole batch."""

import pytest
import torch

from lightning_app.training.microbatch import MAX_CHARACTERS, MicrobatchedLoss, rows_per_microbatch
from lightning_app.training.module import CharGPT


def test_micro_batches_divide_the_batch_and_are_neither_large_nor_small():
    for rows in (1, 2, 3, 7, 8, 12, 13, 17, 48, 64, 97, 1000):
        for length in (1, 31, 64, 256, 1000, 2048, 5000):
            chosen = rows_per_microbatch(rows, length)
            assert rows % chosen == 0
            if chosen < rows:
                assert chosen * length >= MAX_CHARACTERS / 2
                assert chosen == 1 or chosen * length <= MAX_CHARACTERS
    assert rows_per_microbatch(64, 256) == 8
    assert rows_per_microbatch(8, 256) == 8  # a batch of the shipped configs is one micro-batch
    assert rows_per_microbatch(4, 8192) == 1


@pytest.mark.parametrize("kind", [{}, {"tie_embeddings": True}, {"ngram_rows": [50, 90]}], ids=str)
def test_loss_and_gradient_are_those_of_the_whole_batch(kind):
    torch.manual_seed(0)
    alphabet = "".join(map(chr, range(65, 85)))
    module = CharGPT(alphabet, block_size=256, n_layer=2, n_embd=32, **kind)
    for p in module.parameters():
        torch.nn.init.normal_(p, std=0.2)
    if module.gpt.ngrams is not None:
        module.gpt.ngrams.count(torch.randint(20, (3000,)).numpy())
    batch = *torch.randint(20, (2, 24, 256)), torch.arange(24) * 100
    whole = module.losses_in_training_text(*batch).mean()
    expected = torch.autograd.grad(whole, list(module.parameters()))

    seen = []
    module.gpt.register_forward_hook(lambda gpt, args, logits: seen.append(len(args[0])))
    loss = module.training_step(batch, 0)
    (3 * loss).backward()
    assert seen == [8, 8, 8]
    torch.testing.assert_close(loss, whole)
    assert float(module.train_loss.compute()) == pytest.approx(whole.item())
    for p, gradient in zip(module.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, 3 * gradient, rtol=1e-4, atol=1e-6)


def test_the_losses_are_each_characters_in_order():
    weight = torch.arange(5.0, requires_grad=True)
    idx = torch.arange(5).expand(4, 5)
    mean, losses = MicrobatchedLoss.apply(
        lambda i, t: (weight[i] * t).flatten(), (idx, idx), 2, weight
    )
    assert losses.tolist() == [0, 1, 4, 9, 16] * 4
    assert not losses.requires_grad
    mean.backward()
    assert weight.grad.tolist() == pytest.approx([0, 0.2, 0.4, 0.6, 0.8])
