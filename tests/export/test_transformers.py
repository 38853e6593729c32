"""Laws of an exported folder: `transformers` opens it and computes the same."""

import os
import sys
from functools import cache

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightning_app.data.tokenizer import Tokenizer
from lightning_app.errors import UserError
from lightning_app.export.transformers import export_transformers
from lightning_app.model.gpt import GPT, GPTConfig

TEXTS = [
    "O God, O God!\nHow weary, stale, flat and unprofitable\n",
    "  leading and trailing  ",
    "\n\n two  spaces,\n\n\ttabs\t\n",
    " ",
    "\r\n\r",
    "caf\u00e9 cafe\u0301 \u00c5 A\u030a",  # composed and combining: different characters
    "\u4e2d\u6587\uff0c\u65e5\u672c\u3002",
    "\U0001f642\U0001f469\u200d\U0001f469\u200d\U0001f467\U0001f1e9\U0001f1ea\ufe0f",
    "\x00\x01\x1b\x7f\x85\u2028\ufeff\u00ad",
    "don't . , ! ? n't 's",  # what a clean-up of spaces would join
    "<unk> </s> [PAD] <|endoftext|> \u2581\u0120##",
    "\U0010ffff\ue000\ufffd",
]
ALPHABET = "".join(sorted(set("".join(TEXTS))))
KINDS = {
    "plain": {},
    "grouped": {"n_kv_head": 2},
    "tied": {"tie_embeddings": True},
    "theta": {"rope_theta": 100.0},
}
every_kind = pytest.mark.parametrize("kind", KINDS)


@cache
def network(kind: str) -> GPT:
    torch.manual_seed(0)
    sizes = {"vocab_size": len(ALPHABET), "block_size": 24, "n_layer": 2, "n_head": 4}
    gpt = GPT(GPTConfig(**sizes, n_embd=32, mlp_size=40, **KINDS[kind])).eval()
    for p in gpt.parameters():
        torch.nn.init.normal_(p, std=1.0 if p.ndim == 1 else 0.3)
    return gpt


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {kind: tmp_path_factory.mktemp("exported") / kind for kind in KINDS}
    for kind, folder in made.items():
        export_transformers(network(kind), ALPHABET, folder)
    return made


@pytest.fixture(scope="module")
def tokenizer(folders):
    return AutoTokenizer.from_pretrained(folders["plain"])


@every_kind
@torch.no_grad()
def test_an_exported_network_has_the_same_logits(kind, folders):
    gpt, model = network(kind), AutoModelForCausalLM.from_pretrained(folders[kind])
    idx = torch.randint(len(ALPHABET), (3, gpt.config.block_size))
    torch.testing.assert_close(model.eval()(idx).logits, gpt(idx), rtol=1e-5, atol=1e-5)


@every_kind
@torch.no_grad()
def test_an_exported_network_writes_the_same_greedy_text(kind, folders):
    gpt, model = network(kind), AutoModelForCausalLM.from_pretrained(folders[kind])
    for prompt in ([3], [1, 4, 1, 5, 9]):
        idx = torch.tensor([prompt])
        new = gpt.config.block_size - len(prompt)
        theirs = model.generate(idx, do_sample=False, max_new_tokens=new)
        while idx.size(1) < gpt.config.block_size:
            idx = torch.cat((idx, gpt(idx)[:, -1:].argmax(dim=-1)), dim=1)
        assert theirs.tolist() == idx.tolist()
        assert len(set(theirs[0].tolist())) > 3  # not one character again and again


@every_kind
def test_an_exported_file_holds_every_weight_once(kind, folders):
    weights = load_file(folders[kind] / "model.safetensors")
    assert sum(w.numel() for w in weights.values()) == sum(
        p.numel() for p in network(kind).parameters()
    )


def test_a_half_precision_network_is_exported_in_float32(tmp_path):
    half = GPT(network("plain").config).bfloat16()
    export_transformers(half, ALPHABET, tmp_path / "half")
    weights = load_file(tmp_path / "half" / "model.safetensors")
    assert {w.dtype for w in weights.values()} == {torch.float32}
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "half")
    assert torch.equal(model.model.embed_tokens.weight, half.embedding.weight.float())


@pytest.mark.parametrize("text", [*TEXTS, ALPHABET, ALPHABET[::-1], "".join(TEXTS), ""], ids=ascii)
def test_the_exported_tokenizer_has_our_ids_and_decodes_to_the_text(text, tokenizer):
    ids = tokenizer(text)["input_ids"]
    assert ids == Tokenizer(ALPHABET).encode(text).tolist()
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_the_exported_tokenizer_has_a_token_for_each_character_and_no_other(tokenizer):
    assert len(tokenizer) == len(ALPHABET)
    assert tokenizer.get_vocab() == {c: i for i, c in enumerate(ALPHABET)}
    assert tokenizer.all_special_tokens == []


def test_a_character_outside_the_alphabet_is_an_error_not_a_gap(tokenizer):
    assert "\u00df" not in ALPHABET
    with pytest.raises(Exception, match=r"(?i)unk"):
        tokenizer("a\u00dfb")


def test_an_exported_folder_carries_no_ids_that_end_or_pad_a_text(folders):
    model = AutoModelForCausalLM.from_pretrained(folders["plain"])
    for config in (model.config, model.generation_config):
        assert config.bos_token_id is None
        assert config.eos_token_id is None


def test_an_exported_network_samples_when_asked_for_nothing(folders):
    defaults = AutoModelForCausalLM.from_pretrained(folders["plain"]).generation_config
    assert defaults.do_sample
    assert (defaults.temperature, defaults.top_p, defaults.top_k) == (0.8, 0.9, 0)


def test_an_empty_folder_and_a_missing_one_are_filled_alike(tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("empty", "a/b/missing"):
        export_transformers(network("plain"), ALPHABET, tmp_path / name)
    files = [sorted(p.name for p in (tmp_path / n).iterdir()) for n in ("empty", "a/b/missing")]
    assert files[0] == files[1]
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= set(
        files[0]
    )


def test_a_folder_that_holds_something_is_refused_and_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"--to .* not an empty folder"):
        export_transformers(network("plain"), ALPHABET, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]
    with pytest.raises(UserError, match=r"--to .*notes\.txt"):
        export_transformers(network("plain"), ALPHABET, tmp_path / "notes.txt")
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("library", ["safetensors.torch", "tokenizers"])
def test_a_missing_library_is_named_before_anything_is_written(library, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UserError, match="pip install"):
        export_transformers(network("plain"), ALPHABET, tmp_path / "folder")
    assert not (tmp_path / "folder").exists()
