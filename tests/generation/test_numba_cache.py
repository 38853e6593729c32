"""Laws of the compiled code's cache, and the parts of numba that may move with an upgrade."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numba

import lightning_app
from lightning_app.generation import numba_cache
from lightning_app.generation.generate import generate_ids, sample_rng
from lightning_app.generation.numba_cache import (
    SOURCES,
    CompileNotice,
    compiled,
    has_compiled_code,
    max_threads,
)
from lightning_app.generation.sampling import GenerateOptions
from tests.helpers import filled_network


def test_numba_still_has_the_parts_used_here():
    from numba.core.event import Listener, install_listener

    assert issubclass(CompileNotice, Listener)
    assert numba_cache.install_listener is install_listener
    assert hasattr(numba.config, "CACHE_DIR")
    assert max_threads() == numba.config.NUMBA_NUM_THREADS >= 1


def test_the_cache_folder_of_other_code_stays_as_it_was():
    @compiled()
    def double(x):
        return 2 * x

    assert double(2) == 4
    assert numba_cache.CACHE_FOLDER != numba.config.CACHE_DIR
    cached = Path(double.stats.cache_path)
    assert cached.parent == Path(numba_cache.CACHE_FOLDER)
    assert os.environ.get("NUMBA_CACHE_DIR", "") == numba.config.CACHE_DIR


def test_every_source_of_compiled_code_is_in_the_folders_name():
    package = Path(lightning_app.__file__).parent
    using = {p for p in package.rglob("*.py") if "import compiled\n" in p.read_text()}
    assert using <= {package / name for name in SOURCES}


def test_the_notice_appears_once_when_compiling_and_not_when_loading_or_running(capsys):
    @numba.njit
    def double(x):
        return 2 * x

    with CompileNotice("a moment").active():
        double(1)
        double(1.0)  # for another type: compiled again
        assert capsys.readouterr().err == "a moment\n"

    def kept():
        @compiled()
        def triple(x):
            return 3 * x

        return triple

    kept()(1)  # kept on disk from here on
    with CompileNotice("a moment").active():
        double(3)
        assert kept()(3) == 9
        assert capsys.readouterr().err == ""


def test_loops_are_compiled_when_they_have_run_and_not_when_they_are_imported(tmp_path):
    script = (
        "from lightning_app.generation import cpu_engine\n"
        "from lightning_app.generation.numba_cache import CACHE_FOLDER, has_compiled_code\n"
        "import os; print(os.path.isdir(CACHE_FOLDER), has_compiled_code())\n"
    )
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    found = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert found.stdout.split() == ["True", "False"]
    gpt = filled_network()
    next(generate_ids(gpt, [[0]], [sample_rng(0, 0, 0)], GenerateOptions().resolve()))
    assert has_compiled_code()


KERNELS = """
from lightning_app.generation.numba_cache import compiled
from lightning_app.generation.sampling import choose

@compiled()
def draw():
    return choose()
"""
SAMPLING = """
from lightning_app.generation.numba_cache import compiled

@compiled()
def choose():
    return 2
"""


def test_code_compiled_from_other_sources_is_not_used(tmp_path):
    package = tmp_path / "lightning_app"
    source = Path(__file__).parents[2] / package.name
    shutil.copytree(source, package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "generation" / "cpu_kernels.py").write_text(KERNELS)  # small, to compile fast
    sampling = package / "generation" / "sampling.py"

    def drawn() -> int:
        code = "from lightning_app.generation.cpu_kernels import draw; print(draw())"
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
        return int(done.stdout)

    sampling.write_text(SAMPLING)
    assert drawn() == 2
    # Not the file of `draw`, whose compiled code contains `choose`.
    sampling.write_text(SAMPLING.replace("return 2", "return 0"))
    assert drawn() == 0
