"""Laws of export: transformers opens the folder, with the loss that validate says."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_app.export.transformers import MODELING_FILE
from tests.helpers import is_error, save_run, small_checkpoint


def loss_by_transformers(to: Path, text: str, **trust: bool) -> float:
    """The loss on the validation part of a text, which `validate` says too."""
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(to, **trust)
    tokenizer = transformers.AutoTokenizer.from_pretrained(to, **trust)
    first, last = int(len(text) * 0.9), int(len(text) * 0.95)
    training = text[:first]
    assert training.count(tokenizer.pad_token) == min(map(training.count, set(training)))
    ids = torch.tensor(tokenizer(text)["input_ids"])
    total = 0.0
    with torch.no_grad():
        for at in range(first, last, 16):
            targets = ids[at : min(at + 16, last)]
            logits = model(ids[at - 1 : at - 1 + len(targets)][None]).logits[0]
            total += torch.nn.functional.cross_entropy(logits, targets, reduction="sum").item()
    return total / (last - first)


def test_the_exported_network_has_the_loss_that_validate_says(in_trained, main, tmp_path):
    to = tmp_path / "exported"
    done = main("export", "--run", "tiny", "--to", to)
    assert done.code == 0, done.err
    assert f"wrote {to}" in done.out
    assert "trust_remote_code" not in done.out
    config = json.loads((to / "config.json").read_text())
    assert config["model_type"] == "qwen3"
    assert "auto_map" not in config
    assert not list(to.glob("*.py"))
    loss = loss_by_transformers(to, (in_trained / "text.txt").read_text())
    printed = main("validate", "--run", "tiny", "--baselines", "false").out
    assert np.isclose(loss, float(re.search(r"^loss +([\d.]+)", printed, re.M)[1]), atol=2e-6)


def test_n_gram_tables_are_exported_with_the_file_that_computes_them(folder, main, modules_folder):
    tables = ("--model.ngram_rows", "[20,90]")
    assert main("fit", "--config", "tiny.yaml", *tables).code == 0
    done = main("export", "--run", "tiny", "--to", "exported")
    assert done.code == 0, done.err
    assert done.out.count('from_pretrained("exported", trust_remote_code=True)') == 2
    assert f"lets transformers run {Path('exported/modeling_char_gpt.py')}, " in done.out
    copied = Path("exported/modeling_char_gpt.py").read_bytes()
    assert copied == MODELING_FILE.read_bytes()
    text = Path("text.txt").read_text()
    loss = loss_by_transformers(Path("exported"), text, trust_remote_code=True)
    printed = main("validate", "--run", "tiny", "--baselines", "false").out
    assert np.isclose(loss, float(re.search(r"^loss +([\d.]+)", printed, re.M)[1]), atol=2e-6)


def test_a_folder_with_files_is_not_written_to(in_trained, main, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    is_error(main("export", "--run", "tiny", "--to", tmp_path), str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_folder_must_be_named(main):
    is_error(main("export"), "--to", "required")


def test_an_unknown_format_is_refused_with_those_that_exist(main):
    is_error(main("export", "--format", "onnx", "--to", "x"), "--format is onnx", "transformers")


def test_a_gguf_file_is_written_with_the_sampling_of_the_run(in_trained, main, tmp_path):
    gguf = pytest.importorskip("gguf")
    to = tmp_path / "a folder" / "mine.gguf"
    done = main("export", "--run", "tiny", "--format", "gguf", "--to", to, "--weights", "q8_0")
    assert done.code == 0, done.err
    assert f"wrote {to}" in done.out
    assert f"-m '{to}'" in done.out
    fields = gguf.GGUFReader(to).fields
    assert fields["general.sampling.top_k"].contents() == 3  # that of the run's config
    assert fields["general.file_type"].contents() == gguf.LlamaFileType.MOSTLY_Q8_0
    before = to.read_bytes()
    is_error(main("export", "--run", "tiny", "--format", "gguf", "--to", to), f"--to {to} exists")
    assert to.read_bytes() == before
    assert [path.name for path in to.parent.iterdir()] == ["mine.gguf"]


def test_only_an_alphabet_beyond_ascii_is_warned_of_unknown_characters(folder, main):
    save_run("ascii", small_checkpoint(alphabet="\n ab"))
    save_run("unicode", small_checkpoint())
    for run, warned in (("ascii", False), ("unicode", True)):
        done = main("export", "--run", run, "--format", "gguf", "--to", f"{run}.gguf")
        assert done.code == 0, done.err
        assert ("may never end" in done.out) == warned


def test_weights_that_the_format_does_not_have_are_refused_with_those_it_has(main):
    done = main("export", "--to", "x", "--format", "gguf", "--weights", "q4_0")
    is_error(done, "--weights is q4_0", "f16 or f32 or q8_0")


def test_weights_are_refused_where_a_format_has_no_choice(main):
    done = main("export", "--to", "x", "--weights", "f16")
    is_error(done, "--format transformers has no choice of weights")


def test_a_page_is_written_and_not_over_another(in_trained, main, tmp_path):
    to = tmp_path / "a folder" / "mine.html"
    done = main("export", "--run", "tiny", "--format", "page", "--to", to)
    assert done.code == 0, done.err
    assert f"wrote {to}" in done.out
    before = to.read_bytes()
    assert before.startswith(b"<!doctype html>")
    assert b"text.txt" in before
    assert str(in_trained).encode() not in before
    done = main("export", "--run", "tiny", "--format", "page", "--to", to)
    is_error(done, f"--to {to} exists")
    assert to.read_bytes() == before
