"""What the program suggests works as printed, and what it says about a run is true."""

import csv
import shlex
from pathlib import Path

import pytest

from tests.helpers import sentences

NAMES = "".join(f"{a}{b}{c}\n" for a in "AKMT" for b in "aeio" for c in ("nna", "ra", "lo")) * 12
TEXTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "names": (NAMES, ()),
    "tabs": ("\t".join(NAMES.split()) + "\n", ()),
    "chinese": ("一二三四\u3000五六七八。九十\n" * 60, ()),
    "nul": ("ab\0cd\0" * 150, ()),
    "a b": ("it's \"quoted\" \\ and 'so' \\n on\n" * 40, ()),
    "dollar": ("$HOME `ls` $(x) !! ${a}\n" * 40, ()),
    "bytes": ("é天x" * 200, ("--data.unit", "byte")),
    "emoji": ("🙂👍🏽👨\u200d👩🎉\n" * 100, ()),
    "dash": ("--stop -x --\n-- " * 60, ()),
    "blank": (" \n\t" * 300, ()),
    "no test": (sentences(40), ("--data.splits", "[0.9,0.1]")),
}
QUICK = ("--trainer.max_steps", "4", "--trainer.val_check_interval", "4")


@pytest.mark.parametrize("run", TEXTS)
def test_every_command_of_the_last_screen_works(folder, main, monkeypatch, run):
    text, flags = TEXTS[run]
    Path("text.txt").write_text(text, encoding="utf-8", newline="")
    done = main("fit", "--config", "tiny.yaml", "--run", run, *flags, *QUICK)
    assert done.code == 0, done.err
    commands = [shlex.split(line) for line in done.out.partition("\nnext:\n")[2].splitlines()]
    ours = [words[2:] for words in commands if words[:2] == ["python", "main.py"]]
    assert len(ours) == len(commands) - 1 == 2
    assert commands[-1] == ["tensorboard", "--logdir", "logs"]
    for arguments in ours:
        again = main(*arguments)
        assert again.code == 0, (arguments, again.err)


def test_a_run_that_a_users_early_stopping_stopped_is_not_trained_further(folder, main):
    option = "--trainer.callbacks"
    command = ("fit", "--config", "tiny.yaml", "--trainer.max_steps", "90")
    command += (f"{option}+=lightning.pytorch.callbacks.EarlyStopping",)
    command += (f"{option}.monitor=val/loss", f"{option}.min_delta=9")
    assert "stopped early after 20 steps" in main(*command, f"{option}.patience=1").out
    again = main(*command, f"{option}.patience=1")
    assert (again.code, again.out.count("stopped early at step 20 by EarlyStopping")) == (0, 1)
    assert "stopped early after 30 steps" in main(*command, f"{option}.patience=2").out
    assert "finished: 40 steps" in main(*command[:3], "--trainer.max_steps", "40").out


@pytest.mark.parametrize("version", [(), ("--trainer.logger.version=7",)])
def test_a_resumed_run_has_one_csv_table_without_gaps(folder, main, version):
    command = ("fit", "--config", "tiny.yaml", "--trainer.logger=CSVLogger")
    command += ("--trainer.logger.save_dir=csv", *version)

    def logged() -> list[tuple[str, bool]]:
        (table,) = folder.glob("csv/**/metrics.csv")
        with table.open(newline="") as file:
            return [(row["step"], bool(row["val/loss"])) for row in csv.DictReader(file)]

    assert main(*command).code == 0
    first = [("5", False), ("10", False), ("10", True), ("15", False), ("20", False), ("20", True)]
    assert logged() == first
    more = ("--trainer.max_steps", "25")
    assert main(*command, *more).code == 0
    assert logged() == [*first, ("25", False), ("25", True)]
    done = main(*command, "--fresh", "true")
    assert "the old table is now" in done.err
    assert logged() == first
    assert len(list(folder.glob("csv/**/metrics.csv.*"))) == 1


def test_a_project_that_was_moved_is_scored(folder, main, monkeypatch):
    (folder / "one").mkdir()
    for name in ("text.txt", "tiny.yaml"):
        (folder / name).rename(folder / "one" / name)
    monkeypatch.chdir(folder / "one")
    assert main("fit", "--config", "tiny.yaml", "--data.corpus", folder / "one/text.txt").code == 0
    monkeypatch.chdir(folder)
    (folder / "one").rename("two")
    monkeypatch.chdir(folder / "two")
    validate = ("validate", "--run", "tiny", "--baselines", "false")
    assert main(*validate).code == 0
    Path("text.txt").rename("other.txt")
    gone = main(*validate)
    assert (gone.code, gone.err.count("--data.corpus PATH")) == (2, 1)
    found = main(*validate, "--data.corpus", "other.txt")
    assert (found.code, found.err.count("not the text")) == (0, 0)
    Path("other.txt").write_text(Path("other.txt").read_text()[:-9])
    assert "not the text that the run was trained on" in (
        main(*validate, "--data.corpus", "other.txt").err
    )


def test_without_validations_nothing_is_said_about_them(folder, main):
    done = main("fit", "--config", "tiny.yaml", "--trainer.limit_val_batches", "0", *QUICK)
    assert done.code == 0
    assert "each validation" not in done.err
    assert "no validation ran" in done.out
