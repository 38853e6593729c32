"""Laws of the repository's layout: where tests are, what may import what, where configs are."""

import tomllib
from pathlib import Path

import yaml
from importlinter.cli import lint_imports

from lightning_app.cli.configs import project_configs

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "lightning_app"


def test_each_module_has_a_test_file_at_the_same_place_under_tests():
    modules = {path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py")}
    wanted = {
        path.with_name(f"test_{path.name}") for path in modules if not path.stem.startswith("__")
    }
    missing = sorted(str(path) for path in wanted if not (ROOT / "tests" / path).is_file())
    assert not missing, "\n".join(["write under tests/:", *missing])


def test_packages_import_only_from_those_below_them(capsys):
    code = lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True, no_logo=True)
    assert code == 0, capsys.readouterr().out


def test_configs_are_in_the_package_when_installed_and_else_next_to_it(tmp_path):
    package = tmp_path / "lightning_app"
    (package / "cli").mkdir(parents=True)
    assert project_configs(package) == tmp_path / "configs"
    (package / "configs").mkdir()
    assert project_configs(package) == package / "configs"


def test_the_checkouts_configs_are_found():
    assert (project_configs(PACKAGE) / "gpt_char.yaml").is_file()


def test_pre_commit_has_the_versions_of_the_test_extra():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pinned = {x for x in project["optional-dependencies"]["test"] if "==" in x.split(";")[0]}
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    names = {"ruff-pre-commit": "ruff", "codespell": "codespell"}  # repository: package
    used = {f"{names[x['repo'].split('/')[-1]]}=={x['rev'].removeprefix('v')}" for x in hooks}
    assert used == pinned
