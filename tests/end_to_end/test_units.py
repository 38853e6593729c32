"""A text cut into bytes: any file as it is, and whole characters where people read."""

import random

import numpy as np
import pytest
import torch

from lightning_app.data.encoding import encode_files
from lightning_app.data.tokenizer import Tokenizer
from lightning_app.errors import UserError
from lightning_app.evaluation.baselines import ids_to_bytes
from lightning_app.export.transformers import export_transformers
from lightning_app.generation.generate import generate_text
from lightning_app.generation.sampling import GenerateOptions
from lightning_app.model.gpt import GPT, GPTConfig

EVERY_BYTE = "".join(map(chr, range(256)))
TEXT = "naïve café, 天地玄黃 🙂\r\n\ufeffa\x00"


def test_a_file_is_its_bytes_whatever_they_are(tmp_path):
    data = random.Random(0).randbytes(5000) + b"\r\n\xef\xbb\xbf\xff"
    file = tmp_path / "a.bin"
    file.write_bytes(data)
    text = encode_files([file], tmp_path / "cache", "byte")
    assert "".join(text.alphabet[i] for i in text.ids).encode("latin-1") == data
    assert text.notes == ()
    assert ids_to_bytes(text.ids, text.alphabet, "byte") == data


def test_the_same_file_in_bytes_and_in_characters_are_two_texts(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text(TEXT, encoding="utf-8", newline="")
    texts = [
        encode_files([file], tmp_path / "cache", unit) for unit in ("char", "byte", "char", "byte")
    ]
    assert texts[0].fingerprint == texts[2].fingerprint != texts[1].fingerprint
    assert len(texts[1].ids) == len(TEXT.encode())
    assert (texts[1].ids == texts[3].ids).all()


def test_text_becomes_bytes_and_comes_back():
    tokenizer = Tokenizer(EVERY_BYTE, "byte")
    assert tokenizer.encode(TEXT).tolist() == list(TEXT.encode())
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT
    assert tokenizer.decode(list("é".encode())[:1]) == "\ufffd"


def test_a_decoder_hands_out_characters_when_they_are_whole():
    tokenizer = Tokenizer(EVERY_BYTE, "byte")
    decode = tokenizer.decoder()
    pieces = [decode(i) for i in tokenizer.encode("a天🙂")]
    assert pieces == ["a", "", "", "天", "", "", "", "🙂"]
    assert [tokenizer.decoder()(i) for i in b"\xe5"] == [""]  # each text has its own


def test_bytes_outside_the_alphabet_are_named():
    with pytest.raises(
        UserError, match=r"the prompt has bytes .*: 0xc3, 0xa9 \(the first at position 1"
    ):
        Tokenizer("abc", "byte").encode("aéb", "the prompt")


@pytest.mark.parametrize(("alphabet", "unit"), [("aĀ", "byte"), ("ab", "word")])
def test_what_no_byte_can_be_is_refused(alphabet, unit):
    with pytest.raises(AssertionError):
        Tokenizer(alphabet, unit)


def network() -> GPT:
    torch.manual_seed(0)
    sizes = {"block_size": 16, "n_layer": 1, "n_head": 2, "n_embd": 16}
    gpt = GPT(GPTConfig(vocab_size=256, **sizes)).eval()
    for p in gpt.parameters():
        torch.nn.init.normal_(p, mean=float(p.ndim == 1), std=0.5)
    return gpt


def test_written_bytes_are_shown_as_text_as_they_come():
    shown: list[str] = []
    o = GenerateOptions(max_new_tokens=60)
    tokenizer = Tokenizer(EVERY_BYTE, "byte")
    (text,) = generate_text(
        network(), tokenizer, ["é"], o, seed=1, on_characters=lambda new: shown.append(new[0])
    )
    assert "".join(shown) == text
    assert len(shown) == 60


def test_an_exported_tokenizer_cuts_into_the_same_bytes(tmp_path):
    transformers = pytest.importorskip("transformers")
    export_transformers(network(), EVERY_BYTE, tmp_path / "out", "byte")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert theirs(TEXT)["input_ids"] == list(TEXT.encode())
    assert theirs.decode(theirs(TEXT)["input_ids"]) == TEXT


def test_a_run_in_bytes_trains_scores_and_writes(folder, main):
    text = "".join(random.Random(1).choices("né天🙂 \n", k=2000))
    (folder / "text.txt").write_text(text, encoding="utf-8")
    done = main("fit", "--config", "tiny.yaml", "--data.unit", "byte", "--trainer.max_steps", 2)
    assert done.code == 0, done.err
    assert f"{len(text.encode()):,} bytes" in done.err
    done = main("validate", "--run", "tiny")
    assert done.code == 0, done.err
    scored = len(text.encode()) * np.array([0.9, 0.95])
    assert f"characters  {int(scored[1]) - int(scored[0])} " in done.out
    done = main("predict", "--run", "tiny", "--prompt", "天", "--max_new_tokens", 20)
    assert done.code == 0, done.err
    assert done.out.startswith("天")
    refused = main("fit", "--config", "tiny.yaml", "--trainer.max_steps", 4)
    assert refused.code == 2
    assert "data.unit: byte -> char" in refused.err
