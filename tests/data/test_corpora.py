"""Laws of finding a corpus by path, glob or name. Nothing is downloaded."""

import os
from pathlib import Path

import pytest

from lightning_app.data.corpora import CORPUS_NAMES, NAMED_CORPORA, Corpus, NamedCorpus, find_corpus
from lightning_app.errors import UserError


def written(folder: Path, *names: str) -> list[Path]:
    files = [folder / name for name in names]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{file.name}\n")
    return files


def refusal(corpus: str | Path, data_dir: Path = Path("data")) -> str:
    with pytest.raises(UserError) as error:
        find_corpus(str(corpus), data_dir)
    message = str(error.value)
    assert "\n" not in message
    return message


# Files, folders, globs.


def test_a_file_is_a_corpus_under_its_absolute_path(tmp_path, monkeypatch):
    [file] = written(tmp_path, "a.txt")
    monkeypatch.chdir(tmp_path)
    assert find_corpus("a.txt") == Corpus(str(file), (file,), snap=False)


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    [file] = written(tmp_path, "a.txt")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_corpus("~/a.txt").files == (file,)
    assert find_corpus("~/*.txt").files == (file,)


def test_a_folder_means_all_files_below_it_sorted_by_path_without_hidden_ones(tmp_path):
    files = written(tmp_path, "a/2.txt", "b.md", "c/d/1.txt", "c/e.txt")
    written(tmp_path, ".hidden", ".git/config", "c/.cache/x.txt")
    corpus = find_corpus(str(tmp_path))
    assert corpus.files == tuple(files)
    assert corpus.name == str(tmp_path)


def test_links_that_form_a_loop_are_not_followed(tmp_path):
    [file] = written(tmp_path, "a/1.txt")
    for name in ("up", "again"):
        (tmp_path / "a" / name).symlink_to(tmp_path)
    assert find_corpus(str(tmp_path)).files == (file,)
    assert find_corpus(f"{tmp_path}/**/*.txt").files == (file,)


def test_a_glob_is_sorted_and_two_stars_match_subfolders(tmp_path):
    one, two, three = written(tmp_path, "a/b/1.txt", "a/c.txt", "d.txt")
    written(tmp_path, "e.md", ".hidden/f.txt")
    assert find_corpus(f"{tmp_path}/*.txt").files == (three,)
    assert find_corpus(f"{tmp_path}/**/*.txt").files == (one, two, three)
    assert find_corpus(f"{tmp_path}/a/**").files == (one, two)
    assert find_corpus(f"{tmp_path}/[ad]*").files == (three,)


def test_a_glob_is_named_by_its_absolute_pattern_in_a_folder_with_brackets(tmp_path, monkeypatch):
    [file] = written(tmp_path / "x[1]", "a.txt")
    monkeypatch.chdir(file.parent)
    corpus = find_corpus("*.txt")
    assert corpus.files == (file,)
    assert corpus.name == f"{file.parent}/*.txt"


def test_an_existing_path_takes_precedence_over_a_name_and_over_a_glob(tmp_path, monkeypatch):
    name, starred = written(tmp_path, "shakespeare", "a*.txt")
    written(tmp_path, "ab.txt")
    monkeypatch.chdir(tmp_path)
    assert find_corpus("shakespeare").files == (name,)
    assert find_corpus("a*.txt").files == (starred,)


# Refusals: one line that names the path and a remedy.


def test_a_path_that_does_not_exist_is_named_with_the_known_names(tmp_path):
    message = refusal(tmp_path / "xyz")
    assert f"{tmp_path}/xyz" in message
    assert all(name in message for name in CORPUS_NAMES)
    assert "did you mean" not in message


@pytest.mark.parametrize("given", ["shakespere", "Shakespeare"])
def test_a_misspelt_name_gets_the_most_similar_one(given):
    assert refusal(given).endswith("did you mean shakespeare?")


def test_a_misspelt_path_gets_the_most_similar_one_at_its_first_wrong_part(tmp_path):
    [file] = written(tmp_path, "texts/poems.txt")
    assert refusal(tmp_path / "texts/poem.txt").endswith(f"did you mean {file}?")
    assert refusal(tmp_path / "textes/poems.txt").endswith(f"did you mean {file.parent}?")


def test_an_empty_name_is_refused():
    assert "no corpus ''" in refusal("")


def test_an_empty_folder_and_a_glob_without_a_match_are_refused_by_name(tmp_path):
    written(tmp_path, ".hidden")
    assert str(tmp_path) in refusal(tmp_path)
    assert f"{tmp_path}/*.txt" in refusal(f"{tmp_path}/*.txt")
    assert f"{tmp_path}/a**b" in refusal(f"{tmp_path}/a**b")


def test_an_unreadable_file_is_refused_by_name(tmp_path, monkeypatch):
    [file] = written(tmp_path, "a.txt")

    def denied(*_):  # chmod would not stop root
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    for corpus in (file, tmp_path, f"{tmp_path}/*.txt"):
        assert f"{file}: Permission denied" in refusal(corpus)


def test_pipes_and_devices_are_refused_and_not_opened(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    # Opening a pipe would block.
    monkeypatch.setattr(Path, "open", lambda *_: pytest.fail("opened"))
    assert "not a regular file" in refusal(tmp_path / "pipe")
    assert "not a regular file" in refusal(f"{tmp_path}/p*")
    assert "not a regular file" in refusal("/dev/null")


# Names.


def test_a_named_corpus_takes_files_and_defaults_from_its_entry(tmp_path, monkeypatch):
    [file] = written(tmp_path, "mine.txt")
    entry = NamedCorpus(lambda data_dir: (data_dir / "mine.txt",), snap=True, unit="byte")
    monkeypatch.setitem(NAMED_CORPORA, "mine", entry)
    assert find_corpus("mine", tmp_path) == Corpus("mine", (file,), snap=True, unit="byte")


def test_only_the_bytes_of_enwik8_and_the_plays_of_shakespeare_are_special():
    assert [name for name, entry in NAMED_CORPORA.items() if entry.unit == "byte"] == ["enwik8"]
    assert [name for name, entry in NAMED_CORPORA.items() if entry.snap] == ["shakespeare"]


def test_a_data_folder_that_cannot_be_written_is_refused_by_name(tmp_path, monkeypatch):
    def denied(*_, **__):  # chmod would not stop root
        raise PermissionError(13, "Permission denied")

    for step in ("mkdir", "touch"):
        with monkeypatch.context() as patch:
            patch.setattr(Path, step, denied)
            for name in CORPUS_NAMES:
                message = refusal(name, tmp_path)
                assert f"cannot write {name} to {tmp_path}: Permission denied" in message
