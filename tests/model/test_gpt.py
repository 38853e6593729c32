"""Laws of the network. The independent reference is `transformers`' Qwen3."""

import math
import os

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported
from transformers import Qwen3Config, Qwen3ForCausalLM

from lightning_app.errors import UserError
from lightning_app.export.transformers import qwen3_config, qwen3_name
from lightning_app.hardware import can_compile, multiplies_bf16
from lightning_app.model import attention
from lightning_app.model.dropout import Dropout
from lightning_app.model.gpt import GPT, GPTConfig, Positions, loss_per_character
from lightning_app.training.compile import set_up_compiler

SIZES = {"vocab_size": 11, "block_size": 12, "n_layer": 3, "n_head": 4, "n_embd": 32}
SIZES |= {"mlp_size": 40}
KINDS = {
    "plain": {},
    "grouped": {"n_kv_head": 2},
    "one_kv_head": {"n_kv_head": 1},
    "tied": {"tie_embeddings": True},
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def fresh(**sizes) -> GPT:
    torch.manual_seed(1)
    return GPT(GPTConfig(**(SIZES | sizes))).eval()


def filled(**sizes) -> GPT:
    """A network in which every weight matters: as initialised, blocks and head give 0."""
    gpt = fresh(**sizes)
    for p in gpt.parameters():
        torch.nn.init.normal_(p, mean=float(p.ndim == 1), std=0.3)
    return gpt


def text(gpt: GPT, *shape: int) -> Tensor:
    return torch.randint(gpt.config.vocab_size, shape, generator=torch.Generator().manual_seed(2))


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def reference(gpt: GPT) -> Qwen3ForCausalLM:
    qwen3 = Qwen3ForCausalLM(Qwen3Config(**qwen3_config(gpt))).eval()
    qwen3.load_state_dict({qwen3_name(n): w for n, w in gpt.state_dict().items()})
    return qwen3


@pytest.mark.parametrize("piece", [128, 12, 5, 1])  # queries at a time: all, or fewer
@every_kind
def test_logits_and_gradients_are_those_of_transformers_qwen3(kind, piece, monkeypatch):
    monkeypatch.setattr(attention, "QUERY_BLOCK", piece)
    gpt = filled(**KINDS[kind])
    qwen3 = reference(gpt)
    idx = text(gpt, 3, gpt.config.block_size)
    logits, expected = gpt(idx), qwen3(idx).logits
    close(logits, expected)
    for x in (logits, expected):
        x.square().mean().backward()  # every logit's gradient is another
    gradients = {qwen3_name(name): p.grad for name, p in gpt.named_parameters()}
    for name, p in qwen3.named_parameters():
        assert p.grad.norm() > 1e-3
        torch.testing.assert_close(gradients[name], p.grad, rtol=1e-4, atol=1e-4 * p.grad.norm())


@every_kind
@torch.no_grad()
def test_future_characters_cannot_move_past_logits_and_past_ones_move_all_that_follow(kind):
    gpt = filled(**KINDS[kind])
    idx = text(gpt, 1, gpt.config.block_size)
    logits = gpt(idx)
    for t in range(gpt.config.block_size):
        changed = idx.clone()
        changed[:, t] = (changed[:, t] + 1) % gpt.config.vocab_size
        moved = (gpt(changed) - logits).abs().amax(dim=-1)[0]
        assert (moved[:t] == 0).all()
        assert (moved[t:] > 1e-5).all()


@torch.no_grad()
def test_logits_depend_on_order():
    gpt = filled()
    idx = torch.tensor([[1, 2, 3, 4], [2, 1, 3, 4]])
    first, second = gpt(idx)[:, -1]
    assert (first - second).abs().max() > 1e-3


@torch.no_grad()
def test_loss_at_initialisation_is_ln_v():
    gpt = fresh()
    idx = text(gpt, 4, gpt.config.block_size)
    losses = loss_per_character(gpt(idx), idx)
    close(losses, torch.full_like(losses, math.log(gpt.config.vocab_size)))


@every_kind
@torch.no_grad()
def test_at_initialisation_every_block_is_the_identity(kind):
    gpt = fresh(**KINDS[kind])
    x = torch.randn(2, 5, gpt.config.n_embd)
    at = Positions(gpt.cos[:5], gpt.sin[:5])
    for block in gpt.blocks:
        assert torch.equal(block(x, at), x)


def test_at_initialisation_every_block_can_learn():
    gpt = fresh(tie_embeddings=True)  # untied, the head's zeros hold the first gradient back
    idx = text(gpt, 2, gpt.config.block_size + 1)
    loss_per_character(gpt(idx[:, :-1]), idx[:, 1:]).mean().backward()
    for block in gpt.blocks:
        assert block.attention.o_proj.weight.grad.abs().max() > 0
        assert block.mlp.down_proj.weight.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        *(({name: 0}, f"{name} is 0") for name in SIZES),
        ({"n_kv_head": 0}, "n_kv_head is 0"),
        ({"n_layer": -2}, "n_layer is -2"),
        ({"n_embd": 30}, "n_embd 30 .* multiple of 8"),
        ({"n_embd": 36}, "n_embd 36 .* multiple of 8"),  # divides by 4 heads, but into odd halves
        ({"n_kv_head": 3}, "n_head 4 .* n_kv_head 3"),
        ({"n_kv_head": 8}, "n_head 4 .* n_kv_head 8"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"dropout": -0.1}, "dropout is -0.1"),
    ],
)
def test_sizes_that_cannot_be_built_are_refused_by_name_and_value(wrong, named):
    with pytest.raises(UserError, match=named):
        GPTConfig(**(SIZES | wrong))


@pytest.mark.parametrize(("n_embd", "mlp_size"), [(8, 64), (96, 256), (128, 320), (384, 1024)])
def test_the_mlp_is_eight_thirds_of_n_embd_in_multiples_of_64(n_embd, mlp_size):
    assert GPTConfig(**(SIZES | {"n_embd": n_embd, "mlp_size": None})).mlp_size == mlp_size


@every_kind
def test_the_number_of_parameters_is_the_formulas(kind):
    gpt = fresh(**KINDS[kind])
    c, d = gpt.config, gpt.config.n_embd
    attention = 2 * d * d + 2 * d * (d // c.n_head) * c.n_kv_head + 2 * (d // c.n_head)
    block = attention + 3 * d * c.mlp_size + 2 * d
    tables = c.vocab_size * d * (1 if kind == "tied" else 2)
    assert sum(p.numel() for p in gpt.parameters()) == tables + c.n_layer * block + d


@every_kind
def test_flops_per_character_are_those_a_training_step_does(kind):
    gpt = filled(**KINDS[kind])
    idx = text(gpt, 2, gpt.config.block_size)
    with FlopCounterMode(display=False) as counter:
        loss_per_character(gpt(idx), idx).sum().backward()
    assert counter.get_total_flops() == idx.numel() * gpt.config.flops_per_character()


@every_kind
def test_flops_per_character_are_six_a_matrix_weight_and_attention(kind):
    gpt = fresh(**KINDS[kind])
    c = gpt.config
    matrices = sum(m.weight.numel() for m in gpt.modules() if isinstance(m, torch.nn.Linear))
    attention = 12 * c.n_layer * c.block_size * c.n_embd
    assert c.flops_per_character() == 6 * matrices + attention


@every_kind
@pytest.mark.parametrize("pieces", [[1] * 12, [12], [5, 1, 1, 3, 2]])
@torch.no_grad()
def test_cached_logits_equal_uncached_ones_however_the_text_is_cut(kind, pieces):
    gpt = filled(**KINDS[kind])
    idx = text(gpt, 2, sum(pieces))
    cache = gpt.kv_cache(2)
    parts = [gpt(piece, cache) for piece in idx.split(pieces, dim=1)]
    close(torch.cat(parts, dim=1), gpt(idx))
    assert cache.length.tolist() == [12, 12]


@every_kind
@torch.no_grad()
def test_cached_logits_equal_uncached_ones_at_every_step_in_a_batch_of_different_lengths(kind):
    gpt = filled(**KINDS[kind])
    lengths, size = torch.tensor([0, 2, 6]), gpt.config.block_size
    idx = text(gpt, 3, size)
    cache = gpt.kv_cache(3)
    padded = idx[:, :6].masked_fill(torch.arange(6) >= lengths[:, None], 0)
    gpt(padded, cache)
    cache.length.copy_(lengths)
    for step in range(size - 6):
        at = lengths + step
        logits = gpt(idx[torch.arange(3), at][:, None], cache)[:, 0]
        for row in range(3):
            close(logits[row], gpt(idx[row : row + 1, : at[row] + 1])[0, -1])


@torch.no_grad()
def test_rows_of_a_batch_do_not_see_each_other():
    gpt = filled()
    idx = text(gpt, 3, 7)
    close(gpt(idx), torch.cat([gpt(row[None]) for row in idx]))


@torch.no_grad()
def test_mixed_precision_moves_logits_by_rounding_only():
    gpt = filled()
    idx = text(gpt, 3, gpt.config.block_size)
    exact, dtypes = gpt(idx), set()
    for block in gpt.blocks:
        block.register_forward_hook(lambda _, args, out: dtypes.update({args[0].dtype, out.dtype}))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = gpt(idx)
    assert dtypes == {mixed.dtype} == {torch.bfloat16}  # half the memory, all the way through
    assert 0 < (mixed - exact).norm() < 0.05 * exact.norm()


def test_mixed_precision_moves_gradients_by_rounding_only():
    gpt = filled()
    idx = text(gpt, 3, gpt.config.block_size)
    gradients = []
    for mixed in (False, True):
        gpt.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed):
            gpt(idx).float().square().mean().backward()
        gradients.append([p.grad for p in gpt.parameters()])
    for exact, rounded in zip(*gradients, strict=True):
        assert 0 < (exact - rounded).norm() < 0.2 * exact.norm()  # autograd's own: 0.15


@pytest.mark.skipif(not can_compile("cpu"), reason="needs a C++ compiler")
def test_compiled_gradients_are_the_eager_ones_but_for_rounding():
    """At the recipes' proportions: GCC has got the copies of such sizes wrong."""
    set_up_compiler()
    gpt = filled(vocab_size=65, block_size=256, n_layer=1, n_embd=128, mlp_size=384)
    idx = text(gpt, 8, 256)
    gradients = []
    for call in (gpt, torch.compile(gpt, dynamic=False)):
        gpt.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=multiplies_bf16("cpu")):
            call(idx).float().square().mean().backward()
        gradients.append([p.grad for p in gpt.parameters()])
    for eager, compiled in zip(*gradients, strict=True):
        assert (eager - compiled).norm() < 0.05 * eager.norm()


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_dropout_drops_the_nearest_256th_scales_the_rest_and_the_gradient_alike(p):
    torch.manual_seed(0)
    x = torch.full((1001, 997), 2.0, requires_grad=True)  # not a multiple of eight
    y = Dropout(p)(x)
    dropped = round(256 * p) / 256
    assert float((y == 0).double().mean()) == pytest.approx(dropped, abs=0.002)
    assert y.detach().unique().tolist() == pytest.approx([0, 2 / (1 - dropped)])
    y.sum().backward()
    close(x.grad * 2, y.detach())


def test_dropout_is_repeated_by_the_seed_and_differs_from_layer_to_layer():
    dropout, x = Dropout(0.3), torch.ones(64, 64)
    torch.manual_seed(3)
    first, second = dropout(x), dropout(x)
    torch.manual_seed(3)
    assert torch.equal(dropout(x), first)
    assert not torch.equal(first, second)


@torch.no_grad()
def test_dropout_acts_in_training_only():
    gpt = filled(dropout=0.5)
    idx = text(gpt, 1, 8)
    close(gpt(idx), filled(dropout=0.0)(idx))
    gpt.train()
    assert (gpt(idx) - gpt(idx)).abs().max() > 0.1


def test_tied_embeddings_are_one_parameter_and_untied_ones_two():
    for tied in (True, False):
        gpt = fresh(tie_embeddings=tied)
        assert (gpt.lm_head.weight is gpt.embedding.weight) is tied


def test_loss_per_character_is_minus_log_probability_and_0_at_padding():
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(3))
    targets = torch.tensor([[4, -1, 0], [2, 1, -1]])
    expected = [
        0.0 if t < 0 else math.log(sum(math.exp(x) for x in row)) - row[t]
        for row, t in zip(logits.flatten(0, 1).tolist(), targets.flatten().tolist(), strict=True)
    ]
    for dtype in (torch.float32, torch.bfloat16):
        losses = loss_per_character(logits.to(dtype), targets)
        assert losses.dtype == torch.float32
        tolerance = 1e-6 if dtype == torch.float32 else 0.05
        torch.testing.assert_close(losses, torch.tensor(expected), rtol=0, atol=tolerance)
