"""Laws of the repository's layout: where tests are, what may import what, where configs are."""

from pathlib import Path

import pytest
from importlinter.cli import lint_imports

from lightning_app.cli.configs import project_configs

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "lightning_app"
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if not path.stem.startswith("__"))


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_each_module_has_a_test_file_at_the_same_place_under_tests(module):
    place = module.relative_to(PACKAGE)
    test_file = ROOT / "tests" / place.with_name(f"test_{place.name}")
    assert test_file.is_file(), f"{place} is tested nowhere: write {test_file.relative_to(ROOT)}"


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
