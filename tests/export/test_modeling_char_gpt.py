"""Laws of an exported network with n-gram tables: what transformers computes is what ours does."""

import ast
import copy
import os
import sys
from functools import cache

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    DynamicCache,
    StaticCache,
    pipeline,
)

from lightning_app.data.tokenizer import Tokenizer
from lightning_app.export.modeling_char_gpt import CACHE, ngram_hashes, without_padding
from lightning_app.export.transformers import MODELING_FILE, export_transformers
from lightning_app.model.gpt import GPT, GPTConfig
from tests.helpers import count_random_text
from tests.model.test_ngram_counting import TEST_VECTOR

ALPHABET = "\n abcdefgh\u00e9\u5929\U0001f642"
BLOCK_SIZE, ROWS = 24, (7, 30, 0, 101)
KINDS = {"plain": {}, "grouped": {"n_kv_head": 2}, "tied": {"tie_embeddings": True}}
PROMPTS = ["abcabc", "\u5929", "h ", "dead beef\n"]
every_kind = pytest.mark.parametrize("kind", KINDS)


@cache
def network(kind: str = "plain") -> GPT:
    torch.manual_seed(0)
    sizes = {"vocab_size": len(ALPHABET), "block_size": BLOCK_SIZE, "n_layer": 2, "n_head": 4}
    gpt = GPT(GPTConfig(**sizes, n_embd=32, mlp_size=40, ngram_rows=ROWS, **KINDS[kind])).eval()
    for p in gpt.parameters():
        torch.nn.init.normal_(p, std=1.0 if p.ndim == 1 else 0.3)
    gpt.ngrams.use_code_points(ALPHABET)
    count_random_text(gpt)
    return gpt


@pytest.fixture(scope="module")
def folders(tmp_path_factory, modules_folder):
    made = {kind: tmp_path_factory.mktemp("exported") / kind for kind in KINDS}
    for kind, folder in made.items():
        export_transformers(network(kind), ALPHABET, folder)
    return made


def load(folder, auto=AutoModelForCausalLM):
    return auto.from_pretrained(folder, trust_remote_code=True).eval()


@pytest.fixture(scope="module")
def model(folders):
    return load(folders["plain"])


@pytest.fixture(scope="module")
def batch(folders):
    """PROMPTS, padded on the left."""
    tokenizer = AutoTokenizer.from_pretrained(folders["plain"], trust_remote_code=True)
    return tokenizer(PROMPTS, padding=True, return_tensors="pt")


def cache_of(output) -> DynamicCache:
    return getattr(output, CACHE)


def assert_close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def ids(prompt: str) -> torch.Tensor:
    return torch.from_numpy(Tokenizer(ALPHABET).encode(prompt))[None]


def random_ids(*shape: int) -> torch.Tensor:
    return torch.randint(len(ALPHABET), shape, generator=torch.Generator().manual_seed(0))


@cache
def new_ids(prompt: str, n: int, kind: str = "plain") -> list[int]:
    """The ids that our network chooses after a prompt by itself."""
    return network(kind).generate(ids(prompt), n, temperature=0)[0, -n:].tolist()


@pytest.mark.parametrize(("codes", "hashes"), TEST_VECTOR.items())
def test_the_hash_is_that_of_the_test_vector(codes, hashes):
    found = ngram_hashes(torch.tensor([codes]), (2, 3, 4))
    assert [int(h[0, -1]) for h in found] == hashes
    assert [int(h[0, -1]) for h in ngram_hashes(torch.tensor([codes]), (2, 4))] == hashes[::2]


def test_padding_is_skipped_wherever_it_is():
    ids = torch.tensor([[0, 0, 5, 6, 7], [5, 0, 6, 0, 7], [5, 6, 7, 0, 0]])
    text = without_padding(ids, ids != 0, T=5)
    assert text.ids[:, :3].tolist() == [[5, 6, 7]] * 3
    assert torch.equal(text.ids.gather(1, text.columns), ids)
    assert torch.equal(without_padding(ids, ids != 0, T=2).columns, text.columns[:, -2:])


def test_the_modelling_file_needs_nothing_of_this_project():
    nodes = list(ast.walk(ast.parse(MODELING_FILE.read_text())))
    imported = {x.module for x in nodes if isinstance(x, ast.ImportFrom)}
    imported |= {alias.name for x in nodes if isinstance(x, ast.Import) for alias in x.names}
    ours = {name.split(".")[0] for name in imported} - set(sys.stdlib_module_names)
    assert ours == {"torch", "transformers"}


@every_kind
@torch.no_grad()
def test_an_exported_network_has_the_same_logits(kind, folders):
    gpt, model = network(kind), load(folders[kind])
    idx = random_ids(3, BLOCK_SIZE)
    assert_close(model(idx).logits, gpt(idx))
    assert_close(model(idx, use_cache=False).logits, gpt(idx))
    hidden = load(folders[kind], AutoModel)(idx).last_hidden_state
    assert_close(hidden, model.model(idx).last_hidden_state)
    for kept in (1, 3, torch.tensor([2, 5])):
        columns = slice(-kept, None) if isinstance(kept, int) else kept
        assert_close(model(idx, logits_to_keep=kept).logits, gpt(idx)[:, columns])


@every_kind
@pytest.mark.parametrize("use_cache", [True, False])
@torch.no_grad()
def test_a_text_in_a_batch_equals_the_text_of_our_network_alone(kind, use_cache, folders, batch):
    model = load(folders[kind])
    for row, prompt in zip(model(**batch, use_cache=use_cache).logits, PROMPTS, strict=True):
        assert_close(row[-len(prompt) :], network(kind)(ids(prompt))[0])
    out = model.generate(**batch, do_sample=False, max_new_tokens=10, use_cache=use_cache)
    assert out[:, -10:].tolist() == [new_ids(prompt, 10, kind) for prompt in PROMPTS]


def test_a_pipeline_opens_the_folder_and_pads(folders):
    generate = pipeline("text-generation", str(folders["plain"]), trust_remote_code=True)
    made = generate(PROMPTS, batch_size=3, do_sample=False, max_new_tokens=6)
    decode = Tokenizer(ALPHABET).decode
    texts = [m["generated_text"] for (m,) in made]
    assert texts == [prompt + decode(new_ids(prompt, 6)) for prompt in PROMPTS]


@torch.no_grad()
@pytest.mark.parametrize("sizes", [[1] * 12, [5, 1, 6], [11, 1]])
def test_a_text_in_pieces_has_the_logits_of_the_whole(sizes, model):
    idx = random_ids(2, sum(sizes))
    past, logits = DynamicCache(), []  # without a config, it makes its layers as they are used
    for piece in idx.split(sizes, dim=1):
        logits.append(model(piece, **{CACHE: past}).logits)
    assert_close(torch.cat(logits, dim=1), network()(idx))


@torch.no_grad()
def test_padding_between_pieces_is_skipped(model):
    first, second = ids("abc"), ids("defgh")
    pad = torch.zeros_like(first)
    mask = torch.tensor([[0, 0, 0, 1, 1, 1, 0, 0, 0, 1, 1, 1, 1, 1]])
    positions = mask.cumsum(dim=1) - 1
    output = model(
        torch.cat((pad, first, pad), dim=1),
        attention_mask=mask[:, :9],
        position_ids=positions[:, :9].clamp(min=0),
    )
    past = {CACHE: cache_of(output)}
    output = model(second, attention_mask=mask, position_ids=positions[:, 9:], **past)
    assert_close(output.logits, network()(ids("abcdefgh"))[:, 3:])


@torch.no_grad()
def test_several_texts_in_a_row_are_told_apart_by_their_positions(model):
    idx = torch.cat((ids("abcd"), ids("efg")), dim=1)
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2]])
    logits = model(idx, position_ids=positions, use_cache=False).logits
    assert_close(logits[:, :4], network()(ids("abcd")))
    assert_close(logits[:, 4:], network()(ids("efg")))


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 3},
        {"num_beams": 4, "num_return_sequences": 3},
        {"do_sample": True, "num_return_sequences": 3},
    ],
    ids=str,
)
def test_the_cache_changes_no_generated_text(options, model, batch):
    made = []
    for use_cache in (True, False):
        torch.manual_seed(0)
        options = {"do_sample": False, "max_new_tokens": 8} | options
        made.append(model.generate(**batch, **options, use_cache=use_cache))
    assert torch.equal(*made)


@pytest.mark.parametrize("option", ["prompt_lookup_num_tokens", "prefill_chunk_size"])
def test_a_cache_that_is_cropped_or_filled_in_pieces_changes_no_text(option, model):
    made = model.generate(ids("abcabcab"), do_sample=False, max_new_tokens=12, **{option: 3})
    assert made[0, -12:].tolist() == new_ids("abcabcab", 12)


@torch.no_grad()
def test_generation_continues_a_cache_and_leaves_a_copy_of_it_alone(model):
    prefix = cache_of(model(ids("abcabc")))
    for end in ("de", "fgh"):
        prompt = ids("abcabc" + end)
        out = model.generate(
            prompt, **{CACHE: copy.deepcopy(prefix)}, do_sample=False, max_new_tokens=6
        )
        assert out[0, -6:].tolist() == new_ids("abcabc" + end, 6)


def copied(layers) -> DynamicCache:
    """A cache with these layers' keys and values, as a program makes one from tensors."""
    return DynamicCache([(layer.keys, layer.values) for layer in layers])


@torch.no_grad()
def test_a_cache_whose_characters_are_unknown_is_refused(model):
    known = cache_of(model(ids("abc")))
    cropped = copied(known.layers)
    cropped.layers[2].keys = cropped.layers[2].keys[:, :, :2]
    with_a_layer_more = copied([*known.layers[:2], known.layers[0]])
    for past in (copied(known.layers[:2]), cropped, with_a_layer_more):
        with pytest.raises(ValueError, match="3 characters that are not known"):
            model(ids("d"), **{CACHE: past})
    logits = model(ids("d"), **{CACHE: copied(known.layers)}).logits
    assert_close(logits, network()(ids("abcd"))[:, 3:])


def test_what_cannot_say_which_characters_precede_is_refused(model):
    with pytest.raises(ValueError, match="StaticCache; use the default"):
        model(ids("abc"), **{CACHE: StaticCache(model.config, max_cache_len=9)})
    with pytest.raises(ValueError, match=r"attention_mask of shape \(1, 3\)"):
        model(ids("abc"), attention_mask=torch.ones(1, 1, 3, 3))
    past = {CACHE: cache_of(model(ids("abc")))}
    with pytest.raises(ValueError, match=r"attention_mask of shape \(1, 4\)"):
        model(ids("d"), attention_mask=torch.ones(1, 1), **past)
    with pytest.raises(ValueError, match="without inputs_embeds"):
        model(inputs_embeds=model.get_input_embeddings()(ids("abc")))


@torch.no_grad()
def test_a_saved_copy_of_the_folder_is_the_same_and_can_be_saved_again(folders, tmp_path):
    idx, source = random_ids(2, 9), folders["tied"]
    for name in ("copy", "copy of the copy"):
        load(source).save_pretrained(tmp_path / name)
        source = tmp_path / name
        assert (source / MODELING_FILE.name).read_text() == MODELING_FILE.read_text()
        assert_close(load(source)(idx).logits, network("tied")(idx))


def test_the_codes_of_a_network_in_half_precision_stay_exact(folders):
    half = AutoModelForCausalLM.from_pretrained(
        folders["plain"], trust_remote_code=True, dtype=torch.bfloat16
    )
    assert half.model.ngrams.weight.dtype == torch.bfloat16
    assert half.model.ngrams.codes.tolist() == [ord(c) + 1 for c in ALPHABET]


def test_an_exported_network_can_be_trained(folders):
    model = load(folders["plain"]).train()
    idx = random_ids(2, 9)
    model(idx, labels=idx).loss.backward()
    assert model.model.ngrams.weight.grad.abs().sum() > 0
