"""Laws of configs: which file, what it says, old names of options, which run it means."""

from pathlib import Path

import pytest
import yaml
from jsonargparse import ArgumentParser, Namespace

from lightning_app.cli import configs
from lightning_app.cli.configs import (
    GROUPS,
    OLD_NAMES_END,
    RENAMED_OPTIONS,
    config_arguments,
    config_group,
    find_config,
    read_config,
    read_configs,
    rename_arguments,
    rename_values,
    run_name,
    split_configs,
)
from tests.helpers import refusal, written

SHIPPED = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    """An empty working folder; `logs` and `configs` are relative to it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(configs, "PROJECT_CONFIGS", tmp_path / "project")
    return tmp_path


# Which config.


@pytest.mark.parametrize("name", ["small", "small.yaml"])
def test_a_bare_name_is_a_file_in_configs_with_or_without_its_ending(name):
    path = written("configs/small.yaml")
    assert find_config(name) == path


def test_the_projects_own_configs_have_bare_names_in_every_folder(folder):
    path = written("project/small.yaml")
    assert find_config("small") == folder / path
    nearer = written("configs/small.yaml")
    assert find_config("small") == nearer


def test_a_literal_path_wins_over_a_bare_name():
    written("configs/small.yaml")
    written("configs/small")
    path = written("small")
    assert find_config("small") == path
    path = written("small.yaml")
    assert find_config("small.yaml") == path


def test_a_folder_of_that_name_is_no_config():
    path = written("configs/small.yaml")
    Path("small").mkdir()
    assert find_config("small") == path


def test_a_path_is_not_looked_for_in_configs():
    written("configs/sub/small.yaml")
    assert find_config("configs/sub/small.yaml") == Path("configs/sub/small.yaml")
    assert "does not exist" in refusal(find_config, "sub/small.yaml")


@pytest.mark.parametrize("name", ["gpt_chr", "gtp_char.yaml", "else/gpt_charr.yaml"])
def test_a_config_that_is_not_there_suggests_the_nearest(name):
    written("configs/gpt_char.yaml")
    written("project/other.yaml")
    assert refusal(find_config, name).endswith("did you mean gpt_char?")


def test_without_a_near_name_the_configs_there_are_named():
    written("configs/one.yaml")
    written("project/two.yaml")
    message = refusal(find_config, "zzzzzz")
    assert "--config zzzzzz does not exist" in message
    assert "one, two" in message


def test_a_config_by_url_is_refused():
    assert "is a URL" in refusal(find_config, "https://example.com/a.yaml")


def test_configs_are_taken_out_and_the_rest_keeps_its_order():
    a, b, c = (written(f"{name}.yaml") for name in "abc")
    argv = ["--run", "x", "--config", "a.yaml", "--fresh", "--config=b.yaml", "y", "-c", "c.yaml"]
    assert split_configs(argv) == ([a, b, c], ["--run", "x", "--fresh", "y"])
    assert split_configs(["--configs", "a.yaml"]) == ([], ["--configs", "a.yaml"])


@pytest.mark.parametrize("option", ["--config", "-c"])
def test_config_without_a_value_is_refused(option):
    assert "--config needs" in refusal(split_configs, ["--run", "x", option])


# What configs say.


def test_later_configs_win_key_by_key_and_leave_the_rest():
    a = written(
        "a.yaml", "run: one\ndata: {corpus: x, splits: [1.0], seed: 5}\nmodel: {n_layer: 1}\n"
    )
    b = written("b.yaml", "data: {corpus: y, splits: [0.9, 0.1]}\nnew: {k: 1}\n")
    assert read_configs([a, b]) == {
        "run": "one",
        "data": {"corpus": "y", "splits": [0.9, 0.1], "seed": 5},
        "model": {"n_layer": 1},
        "new": {"k": 1},
    }
    assert read_configs([b, a])["data"]["corpus"] == "x"


def test_a_later_config_changes_only_the_keys_it_names():
    # Aliases of YAML are one object under two keys.
    a = written("a.yaml", "train: &same {k: 1}\ntest: *same\n")
    b = written("b.yaml", "train: {k: 2}\n")
    assert read_configs([a, b]) == {"train": {"k": 2}, "test": {"k": 1}}


@pytest.mark.parametrize("text", ["", "# nothing but a comment\n", "---\n"])
def test_an_empty_config_says_nothing(text):
    assert read_configs([written("a.yaml", text)]) == {}


def test_broken_yaml_is_refused_in_one_line_with_its_place():
    path = written("a.yaml", "data:\n  corpus: [x\nmodel: 1\n")
    assert f"{path} is not valid YAML in line 3" in refusal(read_configs, [path])


@pytest.mark.parametrize(
    "text", ["a: b: c", "\tx: 1", "a: *none", "a: !!python/name:os.system", "? [a]\n: 1", "a: \x00"]
)
def test_yaml_that_cannot_be_read_is_refused(text):
    path = written("a.yaml", text)
    assert f"{path} is not valid YAML" in refusal(read_configs, [path])


def test_a_date_is_text_and_a_power_of_ten_a_number_as_for_the_parser():
    path = written("a.yaml", "run: 2020-13-45\nrate: 1e-3\ntext: '1e-3'\n")
    assert read_configs([path]) == {"run": "2020-13-45", "rate": 0.001, "text": "1e-3"}


def test_a_config_that_is_not_utf8_is_refused():
    path = Path("a.yaml")
    path.write_bytes(b"run: caf\xe9\n")
    assert f"{path} is not valid YAML: not UTF-8 text" in refusal(read_configs, [path])


@pytest.mark.parametrize("text", ["just words", "- a\n- b\n", "7"])
def test_a_config_without_keys_is_refused(text):
    path = written("a.yaml", text)
    assert f"{path} has no `key: value` lines" in refusal(read_configs, [path])


@pytest.mark.parametrize("empty", ["", " null", " ~", "  # nothing yet"])
@pytest.mark.parametrize("name", GROUPS)
def test_an_empty_group_is_no_group(name, empty):
    assert read_configs([written("a.yaml", f"{name}:{empty}\n")]) == {}
    filled = written("b.yaml", f"run: one\n{name}: {{k: 1}}\n")
    assert read_configs([filled, Path("a.yaml")]) == {"run": "one", name: {"k": 1}}
    assert config_group([filled, Path("a.yaml")], name) == {"k": 1}
    assert config_group([Path("a.yaml")], name) == {}


@pytest.mark.parametrize("value", ["3", "text", "[1, 2]", "false"])
def test_a_value_in_place_of_a_group_is_refused(value):
    path = written("a.yaml", f"model: {value}\n")
    message = refusal(read_configs, [path])
    assert message.startswith(f"{path}: model: ")
    assert "model is a group of options" in message


# Options that have been renamed.

every_renamed_option = pytest.mark.parametrize(("old", "new"), RENAMED_OPTIONS.items())


def nested(option: str, value: object) -> dict:
    *group, key = option.split(".")
    return {group[0]: {key: value}} if group else {key: value}


def test_an_option_is_renamed_once():
    assert not set(RENAMED_OPTIONS) & set(RENAMED_OPTIONS.values())
    assert len(set(RENAMED_OPTIONS.values())) == len(RENAMED_OPTIONS)


@every_renamed_option
def test_an_old_name_on_the_command_line_becomes_the_new_one_and_is_reported_once(old, new):
    argv = ["--run", "x", f"--{old}", "0.7", f"--{old}=a=b\nc", f"--{old}+=1", old, "--x=--" + old]
    renamed, notes = rename_arguments(argv)
    assert renamed == [
        *("--run", "x", f"--{new}", "0.7", f"--{new}=a=b\nc", f"--{new}+=1", old, "--x=--" + old)
    ]
    assert notes == [f"--{old} is now --{new}; the old name works until version {OLD_NAMES_END}"]


def test_new_names_and_longer_names_on_the_command_line_are_left_alone():
    argv = [f"--{new}=1" for new in RENAMED_OPTIONS.values()]
    argv += [f"--{old}x" for old in RENAMED_OPTIONS] + [f"-{old}" for old in RENAMED_OPTIONS]
    assert rename_arguments(argv) == (argv, [])


@every_renamed_option
@pytest.mark.parametrize("form", [["--{}", "1"], ["--{}=1"], ["--{}+=1"]])
def test_the_old_and_the_new_name_on_one_command_line_are_refused(old, new, form):
    for one, other in ((old, new), (new, old)):
        argv = [part.format(option) for option in (one, other) for part in form]
        message = refusal(rename_arguments, argv)
        assert message == f"--{old} is the old name of --{new}; give only --{new}"


@every_renamed_option
@pytest.mark.parametrize("value", [0.7, None, [[0, 0.5], [0.6, 1]]])
def test_an_old_name_in_a_config_becomes_the_new_one(old, new, value):
    values = nested(old, value)
    renamed, notes = rename_values(values, Path("a.yaml"))
    assert renamed == nested(new, value)
    assert values == nested(old, value)
    assert notes == [
        f"a.yaml: {old} is now {new}; the old name works until version {OLD_NAMES_END}"
    ]
    assert rename_values(renamed, Path("a.yaml")) == (renamed, [])


def test_an_option_that_changes_its_group_leaves_the_others_where_they_are():
    text = "data: {corpus: x}\nschedule: {name: linear, windows: [[0, 1]]}\n"
    assert read_config(written("a.yaml", text))[0] == {
        "data": {"corpus": "x", "window_schedule": [[0, 1]]},
        "schedule": {"name": "linear"},
    }


@every_renamed_option
def test_the_old_and_the_new_name_in_one_config_are_refused(old, new):
    values: dict = {}
    for option in (old, new):
        configs.merge_values(values, nested(option, 1))
    message = refusal(rename_values, values, Path("a.yaml"))
    assert message == f"a.yaml: {old} is the old name of {new}; give only {new}"


def test_a_later_config_wins_under_either_name():
    a, b = written("a.yaml", "data: {rename: 0.1}"), written("b.yaml", "data: {replace_names: 0.2}")
    assert read_configs([a, b]) == {"data": {"replace_names": 0.2}}
    assert read_configs([b, a]) == {"data": {"replace_names": 0.1}}


def test_old_names_are_reported_when_a_command_line_is_split(capsys):
    path = written("a.yaml", "data: {rename: 0.1}\nyardsticks: false")
    assert split_configs(["--config", "a.yaml", "--yardsticks", "true"]) == (
        [path],
        ["--baselines", "true"],
    )
    out, err = capsys.readouterr()
    assert out == ""
    assert [line.split(";")[0] for line in err.splitlines()] == [
        "--yardsticks is now --baselines",
        "a.yaml: data.rename is now data.replace_names",
        "a.yaml: yardsticks is now baselines",
    ]
    read_configs([path])
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK", "SLURM_PROCID"])
def test_one_process_reports_old_names(name, capsys, monkeypatch):
    for rank, lines in (("0", 1), ("1", 0)):
        monkeypatch.setenv(name, rank)
        split_configs(["--yardsticks", "true"])
        assert len(capsys.readouterr().err.splitlines()) == lines


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_configs_use_the_names_of_today(path):
    values, notes = read_config(path)
    assert notes == []
    assert values["data"]["corpus"]


# For a parser.


def parsed(*paths: Path) -> Namespace:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_argument("--run", type=str | None)
    parser.add_argument("--data.corpus", type=str)
    parser.add_argument("--data.replace_names", type=float)
    parser.add_argument("--data.splits", type=list[float])
    return parser.parse_args(config_arguments(list(paths)))


def test_a_parser_gets_the_values_under_the_names_of_today_the_last_one_winning():
    a = written("a.yaml", "data: {rename: 1e-1, corpus: '1e5', splits: [1, 1.0e-1]}\nschedule:\n")
    b = written("b.yaml", "run: 2024-01-02\ndata: {rename: 0.2}\n")
    config = parsed(a, written("empty.yaml", "# nothing\n"), b)
    assert config.data == Namespace(corpus="1e5", replace_names=0.2, splits=[1.0, 0.1])
    assert config.run == "2024-01-02"
    assert parsed(b, a).data.replace_names == 0.1


def test_a_config_of_any_length_and_any_character_reaches_the_parser():
    corpus = "a: b # {天} \n\t" * 1000
    path = written("a.yaml", "data:\n  corpus: " + repr_yaml(corpus))
    assert parsed(path).data.corpus == corpus


def repr_yaml(text: str) -> str:
    return yaml.safe_dump(text, default_style='"', width=10**6)


# Which run.


def test_a_run_is_named_by_the_last_configs_stem():
    assert run_name(None, [Path("configs/a.yaml"), Path("else/b.small.yaml")]) == "b.small"
    assert run_name(None, [Path("config.yaml")]) == "config"
    assert run_name(None, []) is None


def test_the_option_run_wins():
    assert run_name("mine", [Path("logs/X/config.yaml")]) == "mine"
    assert run_name("mine", []) == "mine"


def test_a_runs_own_config_means_that_run(folder, monkeypatch):
    written("logs/X/config.yaml")
    assert run_name(None, [Path("logs/X/config.yaml")]) == "X"
    assert run_name(None, [folder / "logs/X/config.yaml"]) == "X"
    assert run_name(None, [Path("logs/X/other.yaml")]) == "other"
    assert run_name(None, [Path("logs/X/deep/config.yaml")]) == "config"
    assert run_name(None, [Path("old/logs/X/config.yaml")]) == "config"
