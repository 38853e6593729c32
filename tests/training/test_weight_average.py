"""Laws of the exponential average of the weights."""

import pytest
import torch
from torch import nn

from lightning_app.training.weight_average import WeightAverage
from tests.helpers import filled_network


def layer() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 2)


def values(module: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in module.parameters()]


def equal(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def set_all(module: nn.Module, value: float) -> None:
    for p in module.parameters():
        nn.init.constant_(p, value)


def averaged() -> tuple[nn.Linear, WeightAverage]:
    """A layer whose weights are 1 and whose average is 0.5."""
    module = layer()
    average = WeightAverage(module, decay=0.5)
    set_all(module, 0)
    average.update(10)
    set_all(module, 1)
    average.update(10)  # from here on the decay is 0.5
    return module, average


def test_the_first_update_takes_the_weights_themselves():
    module = layer()
    average = WeightAverage(module, 0.9)
    average.update(1)
    assert equal(average.other, values(module))


def test_the_average_keeps_decay_of_itself_but_less_in_the_first_steps():
    module = layer()
    average = WeightAverage(module, 0.9)
    set_all(module, 0)
    average.update(1)
    set_all(module, 1)
    expected = 0.0
    for step in range(2, 200):
        average.update(step)
        decay = min(0.9, step / (10 + step))
        expected = decay * expected + 1 - decay
        assert average.other[0][0, 0] == pytest.approx(expected, abs=1e-5)


def test_using_the_average_and_the_raw_weights_again_changes_no_bit():
    module, average = averaged()
    before = values(module), [x.clone() for x in average.other]
    average.use(True)
    assert average.swapped
    assert all((p == 0.5).all() for p in module.parameters())
    assert equal(average.other, before[0])
    average.use(True)  # again: nothing happens
    average.use(False)
    assert not average.swapped
    assert equal(values(module), before[0])
    assert equal(average.other, before[1])


def test_inside_used_the_parameters_hold_the_average_and_after_it_what_they_held():
    module, average = averaged()
    for swapped in (False, True):
        average.use(swapped)
        with average.used():
            assert (module.weight == 0.5).all()
        assert average.swapped is swapped
    average.use(False)
    with pytest.raises(KeyError), average.used():
        raise KeyError
    assert (module.weight == 1).all()


def test_before_the_first_step_there_is_no_average():
    module = layer()
    before = values(module)
    with WeightAverage(module, 0.9).used():
        assert equal(values(module), before)


def test_n_gram_tables_are_saved_with_both_kinds_of_weights():
    gpt = filled_network(ngram_rows=(3, 4))
    average = WeightAverage(gpt, 0.5)
    average.update(1)
    with torch.no_grad():
        for p in gpt.parameters():
            p.add_(1)
    average.update(2)
    saved = {"state_dict": {f"gpt.{n}": w.clone() for n, w in gpt.state_dict().items()}}
    average.write(saved)
    for weights in (saved["state_dict"], saved["current_model_state"]):
        assert torch.equal(weights["gpt.ngrams.counts"], gpt.ngrams.counts)
    assert not torch.equal(saved["state_dict"]["gpt.ngrams.weight"], gpt.ngrams.weight)


def test_reset_forgets_the_average_and_keeps_the_parameters():
    module, average = averaged()
    average.use(True)
    average.reset()
    assert not average.other
    average.use(False)
    assert (module.weight == 0.5).all()


def test_parameters_that_were_replaced_are_followed():
    module, average = averaged()
    module.weight = nn.Parameter(torch.full((2, 3), 7.0))  # as sharding does
    with average.used():
        assert (module.weight == 0.5).all()
    assert (module.weight == 7).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_average_follows_its_module_to_another_device():
    module, average = averaged()
    module.cuda()
    average.update(11)
    assert average.other[0].is_cuda
    assert (average.other[0] == 0.75).all()
