"""Laws of an exported folder: `transformers` opens it and computes the same."""

import os
import sys
from functools import cache
from pathlib import Path

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    TextIteratorStreamer,
    TextStreamer,
    pipeline,
)

from lightning_app.data.encoding import Unit
from lightning_app.data.tokenizer import Tokenizer
from lightning_app.errors import UserError
from lightning_app.export.transformers import export_transformers, padding_character
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


load_tokenizer = AutoTokenizer.from_pretrained


@pytest.fixture(scope="module")
def tokenizer(folders):
    return load_tokenizer(folders["plain"])


def exported(alphabet: str, folder: Path, unit: Unit = "char"):
    """Our tokenizer of an alphabet, and a small network and the tokenizer as transformers has
    them."""
    sizes = {"block_size": 24, "n_layer": 1, "n_head": 2, "n_embd": 16, "mlp_size": 16}
    export_transformers(GPT(GPTConfig(vocab_size=len(alphabet), **sizes)), alphabet, folder, unit)
    model = AutoModelForCausalLM.from_pretrained(folder)
    return Tokenizer(alphabet, unit), model, load_tokenizer(folder)


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
    assert len(tokenizer) == tokenizer.vocab_size == len(ALPHABET)
    assert tokenizer.get_vocab() == {c: i for i, c in enumerate(ALPHABET)}
    assert not any(token.special for token in tokenizer.added_tokens_decoder.values())


def test_a_character_outside_the_alphabet_is_an_error_not_a_gap(tokenizer):
    text = "a\u00dfb"
    with pytest.raises(Exception, match=r"(?i)unk"):
        tokenizer(text)
    assert set(text) - set(tokenizer.get_vocab()) == {"\u00df"}  # as README says


def test_each_token_knows_its_place_in_the_text(tokenizer):
    places = tokenizer("e\u0301 \n", return_offsets_mapping=True)["offset_mapping"]
    assert places == [(0, 1), (1, 2), (2, 3), (3, 4)]


def test_truncation_keeps_the_end_of_a_prompt_as_long_as_the_context(tokenizer):
    text = "".join(TEXTS)
    ids = tokenizer(text, truncation=True, return_tensors="pt")["input_ids"]
    assert tokenizer.decode(ids[0]) == text[-network("plain").config.block_size :]


def test_an_exported_folder_carries_no_ids_that_end_a_text_or_mask_a_character(folders):
    model = AutoModelForCausalLM.from_pretrained(folders["plain"])
    for config in (model.config, model.generation_config):
        assert config.eos_token_id is None
        assert config.pad_token_id is None


@pytest.mark.parametrize(("alphabet", "first"), [("\n a", 0), (" a", 0), ("ab", 0), ("\t\n a", 1)])
def test_a_text_without_a_prompt_starts_with_a_newline_if_there_is_one(alphabet, first, tmp_path):
    _, model, _ = exported(alphabet, tmp_path / "out")
    text = model.generate(max_new_tokens=3)
    assert (text.shape, text[0, 0].item()) == ((1, 4), first)


PROMPTS = ["O God", "caf\u00e9 caf\u00e9 caf\u00e9", "\n", "two  spaces, "]


def new_ids(gpt: GPT, prompt: str, n: int) -> list[int]:
    """The ids that our network chooses after a prompt by itself."""
    idx = torch.from_numpy(Tokenizer(ALPHABET).encode(prompt))[None]
    for _ in range(n):
        idx = torch.cat((idx, gpt(idx)[:, -1:].argmax(dim=-1)), dim=1)
    return idx[0, -n:].tolist()


@every_kind
@torch.no_grad()
def test_a_text_in_a_batch_equals_the_text_of_our_network_alone(kind, folders):
    gpt, folder = network(kind), folders[kind]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), load_tokenizer(folder)
    batch = tokenizer(PROMPTS, padding=True, return_tensors="pt")
    assert batch["attention_mask"].sum(dim=1).tolist() == [len(p) for p in PROMPTS]
    logits = model(**batch).logits
    for row, prompt in zip(logits, PROMPTS, strict=True):
        alone = gpt(torch.from_numpy(Tokenizer(ALPHABET).encode(prompt))[None])[0]
        torch.testing.assert_close(row[-len(prompt) :], alone, rtol=1e-4, atol=1e-4)
    expected = [new_ids(gpt, prompt, 6) for prompt in PROMPTS]
    out = model.generate(**batch, do_sample=False, max_new_tokens=6)
    assert out[:, batch["input_ids"].size(1) :].tolist() == expected
    batched = pipeline("text-generation", str(folder))(
        PROMPTS, batch_size=2, do_sample=False, max_new_tokens=6
    )
    texts = [made["generated_text"] for (made,) in batched]
    ours = Tokenizer(ALPHABET)
    assert texts == [p + ours.decode(e) for p, e in zip(PROMPTS, expected, strict=True)]


def test_bytes_in_a_batch_are_those_of_a_text_alone(tmp_path):
    alphabet = "".join(map(chr, range(256)))
    _, model, tokenizer = exported(alphabet, tmp_path / "out", "byte")
    prompts = ["caf\u00e9 \U0001f642", tokenizer.pad_token, "  \n\x00"]
    batch = tokenizer(prompts, padding=True, return_tensors="pt")
    together = model.generate(**batch, do_sample=False, max_new_tokens=4)[:, -4:]
    for prompt, new in zip(prompts, together, strict=True):
        ids = torch.tensor([list(prompt.encode())])
        alone = model.generate(ids, do_sample=False, max_new_tokens=4)
        assert alone[0, -4:].tolist() == new.tolist()


def test_a_pipeline_says_nothing_and_returns_what_is_asked(folders, caplog, capfd):
    generate = pipeline("text-generation", str(folders["plain"]))
    capfd.readouterr()
    for prompt in ("O ", ""):
        (made,) = generate(prompt, max_new_tokens=5)
        assert made["generated_text"].startswith(prompt)
    (made,) = generate("O ", max_new_tokens=5, return_full_text=False)
    assert len(made["generated_text"]) == 5
    made = generate("O ", max_new_tokens=5, num_return_sequences=2)
    assert [len(m["generated_text"]) for m in made] == [7, 7]
    assert not caplog.records
    assert capfd.readouterr() == ("", "")


@torch.no_grad()
def test_a_prompt_without_a_mask_keeps_its_padding_character(folders, tokenizer):
    gpt, model = network("plain"), AutoModelForCausalLM.from_pretrained(folders["plain"])
    prompt = "O " + tokenizer.pad_token + tokenizer.pad_token + "d"
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    out = model.generate(ids, do_sample=False, max_new_tokens=6)
    assert out[0, ids.size(1) :].tolist() == new_ids(gpt, prompt, 6)


@torch.no_grad()
@pytest.mark.parametrize("length", [1, 2])
def test_a_stop_string_ends_a_text(length, folders, tokenizer):
    model = AutoModelForCausalLM.from_pretrained(folders["plain"])
    new = Tokenizer(ALPHABET).decode(new_ids(network("plain"), "O God", 10))
    stop = new[3 : 3 + length]
    out = model.generate(
        **tokenizer("O God", return_tensors="pt"),
        do_sample=False,
        max_new_tokens=10,
        stop_strings=[stop],
        tokenizer=tokenizer,
    )
    assert tokenizer.decode(out[0]) == "O God" + new[: new.index(stop) + length]


@pytest.mark.parametrize("stop", ["\n", "\u3002"])
@pytest.mark.parametrize("unit", ["char", "byte"])
def test_stop_strings_work_in_an_alphabet_without_latin_letters(stop, unit, tmp_path):
    text = "\n\u4e2d\u6587\u3002"
    alphabet = text if unit == "char" else text.encode().decode("latin-1")
    ours, model, tokenizer = exported("".join(sorted(set(alphabet))), tmp_path / "out", unit)
    ids = ours.encode(text + stop)  # the network writes the stop string, whatever it has learned
    chosen = iter(ids.tolist() + [0] * 9)

    def choose(input_ids, scores):
        return torch.full_like(scores, -9.0).index_fill(1, torch.tensor([next(chosen)]), 9.0)

    out = model.generate(
        **tokenizer(text, return_tensors="pt"),
        do_sample=False,
        max_new_tokens=len(ids),
        logits_processor=[choose],
        stop_strings=[stop],
        tokenizer=tokenizer,
    )
    assert tokenizer.decode(out[0]) == text + text[: text.index(stop) + 1]


def test_streamers_give_the_text_as_it_is_generated(folders, tokenizer, capsys):
    model = AutoModelForCausalLM.from_pretrained(folders["plain"])
    inputs = tokenizer("O God", return_tensors="pt")
    options = {"do_sample": False, "max_new_tokens": 10}
    whole = tokenizer.decode(model.generate(**inputs, **options)[0])
    parts = TextIteratorStreamer(tokenizer, skip_special_tokens=True)
    model.generate(**inputs, **options, streamer=parts)
    assert "".join(parts) == whole
    model.generate(**inputs, **options, streamer=TextStreamer(tokenizer))
    assert capsys.readouterr().out == whole + "\n"


def test_a_saved_copy_of_the_folder_is_the_same(folders, tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    AutoModelForCausalLM.from_pretrained(folders["plain"]).save_pretrained(tmp_path)
    copy, model = load_tokenizer(tmp_path), AutoModelForCausalLM.from_pretrained(tmp_path)
    assert copy.get_vocab() == tokenizer.get_vocab()
    assert (copy.pad_token, copy.padding_side) == (tokenizer.pad_token, "left")
    assert copy.decode(copy(ALPHABET)["input_ids"]) == ALPHABET
    assert model.generation_config.to_dict().keys() >= {"bos_token_id", "temperature"}
    weights, copied = (load_file(f / "model.safetensors") for f in (folders["plain"], tmp_path))
    assert all(torch.equal(w, copied[name]) for name, w in weights.items())


def test_the_rarest_character_pads_and_never_the_one_that_starts_a_text():
    assert padding_character("\n abc", "char", [0, 9, 5, 1, 4]) == "b"
    assert padding_character("\n abc", "char", None) == " "
    assert padding_character("\n abc", "byte", None) == "a"
    assert padding_character("\n\xe4\xb8", "byte", None) is None
    assert padding_character("a", "char", None) is None


@pytest.mark.parametrize(("alphabet", "unit"), [("a", "char"), ("\n\xad\xb8\xe4", "byte")])
def test_an_alphabet_without_a_padding_character_can_still_be_exported(alphabet, unit, tmp_path):
    ours, model, tokenizer = exported(alphabet, tmp_path / "out", unit)
    text = "\u4e2d\n" if unit == "byte" else alphabet
    assert tokenizer(text)["input_ids"] == ours.encode(text).tolist()
    assert model.generate(**tokenizer(text, return_tensors="pt"), max_new_tokens=2).size(1) > 2


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
