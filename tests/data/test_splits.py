"""Laws of splits: contiguous, disjoint, and together the whole text."""

from dataclasses import asdict

import numpy as np
import pytest

from lightning_app.data import splits as splits_module
from lightning_app.data.corpora import Corpus
from lightning_app.data.splits import SPLIT_NAMES, TextSource, check_splits, split_bounds
from tests.helpers import refusal

TEXT = "".join(chr(97 + i % 26) for i in range(600))


@pytest.mark.parametrize(
    ("fractions", "cumulative"),
    [
        ([0.9, 0.05, 0.05], [0.9, 0.95, 1]),
        ([0.9, 0.1], [0.9, 1]),
        ([0.7, 0.2, 0.1], [0.7, 0.9, 1]),  # 0.7 + 0.2 is 0.8999... in floating point
        ([0.1, 0.2, 0.7], [0.1, 0.3, 1]),  # 0.1 + 0.2 is 0.3000...4
        ([1 / 3, 1 / 3, 1 / 3], [1 / 3, 2 / 3, 1]),
        ([1.0], [1]),
        ([0.5, 0.0, 0.5], [0.5, 0.5, 1]),
    ],
)
@pytest.mark.parametrize("n", [1, 10, 100, 599, 600, 1_115_394])
def test_boundaries_are_the_cumulative_fractions_rounded_down(fractions, cumulative, n):
    ends = [int(n * share) for share in cumulative] + [n, n]
    bounds = split_bounds(n, fractions)
    assert bounds == {"train": (0, ends[0]), "val": (ends[0], ends[1]), "test": (ends[1], n)}


def test_the_ids_of_the_splits_are_together_the_whole_text(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text(TEXT)
    text = TextSource(str(file), [0.7, 0.2, 0.1], data_dir=str(tmp_path / "data")).read()
    parts = [text.ids(name) for name in SPLIT_NAMES]
    assert [len(part) for part in parts] == [420, 120, 60]
    assert (np.concatenate(parts) == text.text.ids).all()


@pytest.mark.parametrize(
    "fractions",
    [
        *([0.9, 0.2], [0.5], [0.9, 0.05], [1.2, -0.2], [], [0.25, 0.25, 0.25, 0.25]),
        [float("nan"), 0.5],
    ],
)
def test_fractions_that_are_not_those_of_a_whole_are_refused_with_the_option(fractions):
    assert f"--data.splits is {fractions}" in refusal(check_splits, fractions)
    assert refusal(TextSource, splits=fractions) == refusal(check_splits, fractions)


@pytest.mark.parametrize(
    ("fractions", "ends"),
    [
        ([0.7, 0.25, 0.05], [54, 95, 102]),  # 71 is nearer to 54, 96 to 95
        ([0.76, 0.14, 0.1], [95, 95, 102]),  # 77 and 91: validation is empty
        ([0.995, 0.005], [102, 102, 102]),
    ],
)
def test_with_starts_of_files_boundaries_are_at_the_nearest_start_or_the_end(fractions, ends):
    bounds = split_bounds(102, fractions, starts=[0, 54, 95, 99])
    assert [last for _, last in bounds.values()] == ends


FILES = (("a", 53), ("b", 40), ("c", 3), ("d", 3))  # start at 0, 54, 95, 99 of 102


@pytest.fixture
def texts(tmp_path):
    """A folder of four files."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for name, length in FILES:
        (folder / f"{name}.txt").write_text(name * length)
    return folder


def test_the_boundaries_of_a_corpus_of_plays_move_to_the_nearest_start_of_a_play(
    texts, tmp_path, monkeypatch
):
    found = Corpus("plays", tuple(sorted(texts.iterdir())), snap=True)
    monkeypatch.setattr(splits_module, "find_corpus", lambda corpus, data_dir: found)
    bounds = TextSource("plays", [0.7, 0.25, 0.05], data_dir=str(tmp_path)).read().bounds
    assert bounds == {"train": (0, 54), "val": (54, 95), "test": (95, 102)}


def test_whole_files_of_a_folder_can_be_held_out(texts, tmp_path):
    source = TextSource(str(texts), [0.7, 0.25, 0.05], "files", data_dir=str(tmp_path / "data"))
    held_out = source.read()
    assert held_out.bounds == {"train": (0, 54), "val": (54, 95), "test": (95, 102)}
    assert set(held_out.ids("train")) & set(held_out.ids("val")) == {0}  # the newline between
    cut = TextSource(**asdict(source) | {"hold_out": "characters"}).read()
    assert cut.bounds["train"] == (0, 71)


def test_a_source_is_described_by_the_names_it_has_whatever_else_a_mapping_holds():
    source = TextSource("a.txt", [0.5, 0.5], "files", "byte", "elsewhere")
    assert TextSource.of(asdict(source) | {"block_size": 8}) == source
    assert TextSource.of({"corpus": "a.txt"}) == TextSource("a.txt")
    assert set(TextSource.names()) == set(asdict(source))


@pytest.mark.parametrize(("unit", "characters"), [(None, 3), ("char", 3), ("byte", 6)])
def test_the_unit_is_the_sources_or_the_corpuss(tmp_path, unit, characters):
    file = tmp_path / "text.txt"
    file.write_text("aé天", encoding="utf-8")
    source = TextSource(str(file), [1.0], unit=unit, data_dir=str(tmp_path / "data"))
    assert len(source.read().text.ids) == characters
