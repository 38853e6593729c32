"""Laws of the network. The independent reference is `transformers`' Qwen3."""

import math
import os
from itertools import islice

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported
from transformers import Qwen3Config, Qwen3ForCausalLM

from lightning_app.errors import UserError
from lightning_app.export.transformers import model_config, qwen3_name
from lightning_app.generation.cpu_engine import CPUEngine
from lightning_app.generation.generate import generate_compiled, generate_text, sample_rng
from lightning_app.generation.torch_engine import CachedLogits, generate_torch, uncached_logits
from lightning_app.hardware import can_compile, multiplies_bf16
from lightning_app.model import attention
from lightning_app.model.gpt import GPT, GPTConfig, loss_per_character
from lightning_app.torch_internals import set_up_compiler
from tests.helpers import (
    GPT_KINDS,
    GPT_SIZES,
    TOKENIZER,
    assert_close,
    filled_network,
    fresh_network,
    options,
    random_ids,
    writing_network,
)

every_kind = pytest.mark.parametrize("kind", GPT_KINDS)


def reference(gpt: GPT) -> Qwen3ForCausalLM:
    qwen3 = Qwen3ForCausalLM(Qwen3Config(**model_config(gpt))).eval()
    qwen3.load_state_dict({qwen3_name(n): w for n, w in gpt.state_dict().items()})
    return qwen3


@pytest.mark.parametrize("queries", [128, 12, 5, 1])  # per block: all, or fewer
@every_kind
def test_logits_and_gradients_are_those_of_transformers_qwen3(kind, queries, monkeypatch):
    monkeypatch.setattr(attention, "QUERY_BLOCK", queries)
    gpt = filled_network(**GPT_KINDS[kind])
    qwen3 = reference(gpt)
    idx = random_ids(gpt, 3, gpt.config.block_size)
    logits, expected = gpt(idx), qwen3(idx).logits
    assert_close(logits, expected)
    for x in (logits, expected):
        x.square().mean().backward()  # a different gradient for every logit
    gradients = {qwen3_name(name): p.grad for name, p in gpt.named_parameters()}
    for name, p in qwen3.named_parameters():
        assert p.grad.norm() > 1e-3
        torch.testing.assert_close(gradients[name], p.grad, rtol=1e-4, atol=1e-4 * p.grad.norm())


@every_kind
@torch.no_grad()
def test_future_characters_cannot_move_past_logits_and_past_ones_move_all_that_follow(kind):
    gpt = filled_network(**GPT_KINDS[kind])
    idx = random_ids(gpt, 1, gpt.config.block_size)
    logits = gpt(idx)
    for t in range(gpt.config.block_size):
        changed = idx.clone()
        changed[:, t] = (changed[:, t] + 1) % gpt.config.vocab_size
        moved = (gpt(changed) - logits).abs().amax(dim=-1)[0]
        assert (moved[:t] == 0).all()
        assert (moved[t:] > 1e-5).all()


@torch.no_grad()
def test_logits_depend_on_order():
    gpt = filled_network()
    idx = torch.tensor([[1, 2, 3, 4], [2, 1, 3, 4]])
    first, second = gpt(idx)[:, -1]
    assert (first - second).abs().max() > 1e-3


@torch.no_grad()
def test_loss_at_initialisation_is_ln_v():
    gpt = fresh_network()
    idx = random_ids(gpt, 4, gpt.config.block_size)
    losses = loss_per_character(gpt(idx), idx)
    assert_close(losses, torch.full_like(losses, math.log(gpt.config.vocab_size)))


@every_kind
@torch.no_grad()
def test_at_initialisation_every_block_is_the_identity(kind):
    gpt = fresh_network(**GPT_KINDS[kind])
    x = torch.randn(2, 5, gpt.config.n_embd)
    for block in gpt.blocks:
        assert torch.equal(block(x, gpt.cos[:5], gpt.sin[:5]), x)


def test_at_initialisation_every_block_can_learn():
    gpt = fresh_network(
        tie_embeddings=True
    )  # untied, the head's zeros hold the first gradient back
    idx = random_ids(gpt, 2, gpt.config.block_size + 1)
    loss_per_character(gpt(idx[:, :-1]), idx[:, 1:]).mean().backward()
    for block in gpt.blocks:
        assert block.attention.o_proj.weight.grad.abs().max() > 0
        assert block.mlp.down_proj.weight.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        *(({name: 0}, f"{name} is 0") for name in GPT_SIZES),
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
        GPTConfig(**(GPT_SIZES | wrong))


@torch.no_grad()
def test_a_window_longer_than_block_size_is_refused_with_both_numbers():
    gpt = fresh_network(block_size=1200)
    with pytest.raises(UserError, match=r"1,201 characters .* block_size 1,200"):
        gpt(random_ids(gpt, 1, 1201))
    assert gpt(random_ids(gpt, 1, 1200)).shape == (1, 1200, GPT_SIZES["vocab_size"])


@pytest.mark.parametrize(("n_embd", "mlp_size"), [(8, 64), (96, 256), (128, 320), (384, 1024)])
def test_the_mlp_is_eight_thirds_of_n_embd_in_multiples_of_64(n_embd, mlp_size):
    assert GPTConfig(**(GPT_SIZES | {"n_embd": n_embd, "mlp_size": None})).mlp_size == mlp_size


@every_kind
def test_the_number_of_parameters_is_the_formulas(kind):
    gpt = fresh_network(**GPT_KINDS[kind])
    c, d = gpt.config, gpt.config.n_embd
    attention = 2 * d * d + 2 * d * (d // c.n_head) * c.n_kv_head + 2 * (d // c.n_head)
    block = attention + 3 * d * c.mlp_size + 2 * d
    tables = c.vocab_size * d * (1 if kind == "tied" else 2)
    assert sum(p.numel() for p in gpt.parameters()) == tables + c.n_layer * block + d


@every_kind
def test_flops_per_character_are_those_a_training_step_does(kind):
    gpt = filled_network(**GPT_KINDS[kind])
    idx = random_ids(gpt, 2, gpt.config.block_size)
    with FlopCounterMode(display=False) as counter:
        loss_per_character(gpt(idx), idx).sum().backward()
    assert counter.get_total_flops() == idx.numel() * gpt.config.flops_per_character()


@every_kind
def test_flops_per_character_are_six_a_matrix_weight_and_attention(kind):
    gpt = fresh_network(**GPT_KINDS[kind])
    c = gpt.config
    matrices = sum(m.weight.numel() for m in gpt.modules() if isinstance(m, torch.nn.Linear))
    attention = 12 * c.n_layer * c.block_size * c.n_embd
    assert c.flops_per_character() == 6 * matrices + attention


@torch.no_grad()
def test_rows_of_a_batch_do_not_see_each_other():
    gpt = filled_network()
    idx = random_ids(gpt, 3, 7)
    assert_close(gpt(idx), torch.cat([gpt(row[None]) for row in idx]))


@torch.no_grad()
def test_mixed_precision_moves_logits_by_rounding_only():
    gpt = filled_network()
    idx = random_ids(gpt, 3, gpt.config.block_size)
    exact, dtypes = gpt(idx), set()
    for block in gpt.blocks:
        block.register_forward_hook(lambda _, args, out: dtypes.update({args[0].dtype, out.dtype}))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = gpt(idx)
    assert dtypes == {mixed.dtype} == {torch.bfloat16}  # half the memory, all the way through
    assert 0 < (mixed - exact).norm() < 0.05 * exact.norm()


def test_mixed_precision_moves_gradients_by_rounding_only():
    gpt = filled_network()
    idx = random_ids(gpt, 3, gpt.config.block_size)
    gradients = []
    for mixed in (False, True):
        gpt.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed):
            gpt(idx).float().square().mean().backward()
        gradients.append([p.grad for p in gpt.parameters()])
    for exact, rounded in zip(*gradients, strict=True):
        assert 0 < (exact - rounded).norm() < 0.2 * exact.norm()  # autograd's own: 0.15


@pytest.mark.skipif(not can_compile("cpu"), reason="needs a C++ compiler")
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # of torch.compile, at the look-up
def test_compiled_gradients_are_the_eager_ones_but_for_rounding():
    """At the recipes' proportions: GCC has got the copies of such sizes wrong."""
    set_up_compiler()
    sizes = {"vocab_size": 65, "block_size": 256, "n_layer": 1, "n_embd": 128, "mlp_size": 384}
    gpt = filled_network(**sizes, ngram_rows=(200, 500))
    idx = random_ids(gpt, 8, 256)
    gradients = []
    for compiled in (False, True):
        gpt.zero_grad()
        if compiled:
            gpt.compile(dynamic=False)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=multiplies_bf16("cpu")):
            gpt(idx).float().square().mean().backward()
        gradients.append([p.grad.to_dense() for p in gpt.parameters()])
    for eager, compiled in zip(*gradients, strict=True):
        assert (eager - compiled).norm() < 0.05 * eager.norm()


@torch.no_grad()
def test_dropout_acts_in_training_only():
    gpt = filled_network(dropout=0.5)
    idx = random_ids(gpt, 1, 8)
    assert_close(gpt(idx), filled_network(dropout=0.0)(idx))
    gpt.train()
    assert (gpt(idx) - gpt(idx)).abs().max() > 0.1


def test_tied_embeddings_are_one_parameter_and_untied_ones_two():
    for tied in (True, False):
        gpt = fresh_network(tie_embeddings=tied)
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


PROMPTS = [[2, 7, 1, 8], [1, 8, 2, 8], [3, 3, 3, 3]]


@pytest.mark.parametrize("block_size", [1, 5, 40])  # texts far longer, longer, shorter than it
@pytest.mark.parametrize(
    ("reference", "given"),
    [
        ({}, {"sampling": "prob", "temperature": 1.0}),
        ({"temperature": 0.5}, {"sampling": "prob", "temperature": 0.5}),
        ({"temperature": 1.7, "top_k": 3}, {"temperature": 1.7, "top_k": 3}),
        ({"temperature": 0.8, "top_k": 99}, {"temperature": 0.8, "top_k": 99}),
        ({"top_k": 1}, {"sampling": "argmax"}),
        ({"temperature": 0}, {"temperature": 0.0}),
    ],
    ids=str,
)
def test_the_short_reference_generates_the_ids_of_every_engine(reference, given, block_size):
    gpt, n, o = writing_network(block_size), 30, options(**given)

    def rngs() -> list[np.random.Generator]:
        return [sample_rng(4, i, 0) for i in range(len(PROMPTS))]

    uniform = torch.from_numpy(np.stack([rng.random(n) for rng in rngs()]))
    ids = gpt.generate(torch.tensor(PROMPTS), n, uniform=uniform, **reference)[:, 4:]
    assert len(ids.unique()) > 3
    for steps in (
        generate_compiled(CPUEngine(gpt, len(PROMPTS)), PROMPTS, rngs(), o),
        generate_torch(gpt, PROMPTS, rngs(), o, None, CachedLogits()),
        generate_torch(gpt, PROMPTS, rngs(), o, None, uncached_logits),
    ):
        assert np.array_equal(np.stack(list(islice(steps, n)), axis=1), ids.numpy())
    prompts, o = [TOKENIZER.decode(p) for p in PROMPTS], options(max_new_tokens=n, **given)
    texts = [TOKENIZER.decode(row) for row in ids.tolist()]
    assert list(generate_text(gpt, TOKENIZER, prompts, o, seed=4)) == texts
    assert list(generate_text(gpt, TOKENIZER, prompts[:1], o, seed=4)) == texts[:1]


def test_the_short_reference_ranks_equally_likely_characters_by_id():
    gpt = fresh_network()  # every logit is 0
    idx = torch.zeros(500, 1, dtype=torch.long)
    uniform = torch.arange(500)[:, None] / 500
    assert gpt.generate(idx, 1, top_k=4, uniform=uniform)[:, 1].bincount().tolist() == [125] * 4
    assert gpt.generate(idx, 1, temperature=0)[:, 1].unique().tolist() == [0]


def test_the_short_reference_is_repeated_by_torchs_seed():
    gpt, idx = writing_network(), torch.tensor([[1]])
    texts = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        texts.append(gpt.generate(idx, 20).tolist())
    assert texts[0] == texts[1] != texts[2]
