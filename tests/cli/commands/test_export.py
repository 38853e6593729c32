"""Laws of export: transformers opens the folder, with the loss that validate says."""

import json
import re

import numpy as np
import pytest
import torch

from tests.helpers import is_error


def test_the_exported_network_has_the_loss_that_validate_says(in_trained, main, tmp_path):
    transformers = pytest.importorskip("transformers")
    to = tmp_path / "exported"
    done = main("export", "--run", "tiny", "--to", to)
    assert done.code == 0, done.err
    assert f"wrote {to}" in done.out
    assert json.loads((to / "config.json").read_text())["model_type"] == "qwen3"
    model = transformers.AutoModelForCausalLM.from_pretrained(to)
    tokenizer = transformers.AutoTokenizer.from_pretrained(to)
    text = (in_trained / "text.txt").read_text()
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
    printed = main("validate", "--run", "tiny", "--baselines", "false").out
    loss = float(re.search(r"^loss +([\d.]+)", printed, re.M)[1])
    assert np.isclose(total / (last - first), loss, atol=2e-6)


def test_a_folder_with_files_is_not_written_to(in_trained, main, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    is_error(main("export", "--run", "tiny", "--to", tmp_path), str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_folder_must_be_named(main):
    is_error(main("export"), "--to", "required")
