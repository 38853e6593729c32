"""Laws of the metric behind loss, perplexity and bits per character."""

import math

import pytest
import torch
from torch import nn

from lightning_app.evaluation.metrics import CharacterLoss, loss_metrics
from lightning_app.model.gpt import loss_per_character


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Losses and targets of batches of different sizes, with padding; one is padding only."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for n in (7, 1, 64, 3):
        logits = 3 * torch.randn(1, n, 5, generator=generator)
        targets = torch.randint(-1, 5, (1, n), generator=generator)
        made.append((logits, targets))
    made.append((torch.randn(1, 4, 5, generator=generator), torch.full((1, 4), -1)))
    return [(loss_per_character(logits, t), t.flatten()) for logits, t in made]


def test_loss_is_the_mean_over_all_characters_of_unequal_batches_and_padding_does_not_count():
    metric, scored = CharacterLoss(), []
    for losses, targets in batches():
        metric.update(losses, targets)
        pairs = zip(losses.tolist(), targets.tolist(), strict=True)
        scored += [loss for loss, target in pairs if target >= 0]
    assert metric.count.item() == len(scored)
    assert metric.compute().dtype == torch.float64
    assert metric.scored == len(scored)
    assert metric.compute().item() == pytest.approx(math.fsum(scored) / len(scored), rel=1e-14)


def test_a_long_sum_of_small_losses_stays_exact():
    metric = CharacterLoss()
    losses, targets = torch.full((1000,), 0.1), torch.zeros(1000, dtype=torch.long)
    metric.update(torch.tensor([1e9]), torch.tensor([0]))  # in float32 it swallows the rest
    for _ in range(10):
        metric.update(losses, targets)
    exact = (1e9 + 10_000 * losses[0].item()) / 10_001
    assert metric.compute().item() == pytest.approx(exact, rel=1e-13)


def test_half_precision_losses_are_summed_in_float64():
    metric = CharacterLoss()
    metric.update(torch.ones(4099, dtype=torch.bfloat16), torch.zeros(4099, dtype=torch.long))
    assert metric.total.item() == 4099


def test_the_order_and_the_size_of_batches_do_not_matter():
    parts = batches()
    joined = [torch.cat(side) for side in zip(*parts, strict=True)]
    one, many = CharacterLoss(), CharacterLoss()
    one.update(*joined)
    for part in reversed(parts):
        many.update(*part)
    assert one.compute().item() == pytest.approx(many.compute().item(), rel=1e-14)


def test_calling_the_metric_gives_the_batchs_loss_and_keeps_the_sum():
    metric, other = CharacterLoss(), CharacterLoss()
    for losses, targets in batches()[:4]:
        alone = CharacterLoss()
        alone.update(losses, targets)
        other.update(losses, targets)
        torch.testing.assert_close(metric(losses, targets), alone.compute())
    assert metric.compute() == other.compute()


def test_reset_starts_a_new_sum():
    metric = CharacterLoss()
    for part in batches():
        metric.update(*part)
        metric.reset()
    metric.update(torch.tensor([2.0, 4.0]), torch.tensor([0, 1]))
    assert metric.compute() == 3


@pytest.mark.parametrize(
    "convert",
    [nn.Module.half, nn.Module.bfloat16, nn.Module.float, lambda m: m.to(torch.float16)],
    ids=["half", "bfloat16", "float", "to"],
)
def test_converting_the_module_around_it_leaves_it_float64(convert):
    module = nn.ModuleDict({"linear": nn.Linear(1, 1), "loss": CharacterLoss()})
    module["loss"].update(torch.tensor([0.1]), torch.tensor([0]))
    convert(module)
    module["loss"].update(torch.tensor([0.1]), torch.tensor([0]))
    assert module["loss"].total.dtype == torch.float64
    assert module["loss"].count.dtype == torch.int64
    assert module["loss"].compute().item() == torch.tensor(0.1).double().item()


def test_it_keeps_no_graph():
    metric = CharacterLoss()
    batch = metric(torch.ones(2, requires_grad=True) * 2, torch.tensor([0, 0]))
    assert not batch.requires_grad
    assert not metric.total.requires_grad


def test_perplexity_is_exp_of_the_loss_and_bpc_the_loss_in_bits():
    assert loss_metrics(math.log(8)) == pytest.approx(
        {"loss": math.log(8), "perplexity": 8, "bpc": 3}
    )
    assert loss_metrics(0.0) == {"loss": 0.0, "perplexity": 1.0, "bpc": 0.0}


def test_a_very_large_loss_has_infinite_perplexity():
    assert loss_metrics(1000.0)["perplexity"] == math.inf
    assert math.isnan(loss_metrics(math.nan)["loss"])
