"""Trains one config on two texts, to show that it is not tuned to one of them.

    python benchmarks/texts.py [--trainer.max_steps N ...]

Trains configs/ten_minutes.yaml (ten minutes on two CPU cores) on the default corpus and on the
standard library of this Python (its .py files except tests, sorted by path; complete files are held
out). For each, prints the table of `validate`, which includes PPMd and other baselines, and that of
dynamic evaluation, in which the network is trained on the text it has just scored, as PPMd is.
"""

import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def copy_standard_library(folder: Path) -> None:
    """Copy the standard library's UTF-8 source files, except tests, to `folder`."""
    source = Path(sysconfig.get_paths()["stdlib"])
    for file in sorted(source.rglob("*.py")):
        path = file.relative_to(source)
        if {"test", "tests", "idle_test", "site-packages", "lib2to3"} & set(path.parts[:-1]):
            continue
        try:
            file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, folder / path)


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        library = Path(temporary) / "library"
        copy_standard_library(library)
        held = ["--data.hold_out", "files"]
        for run, corpus in (("plays", ["shakespeare"]), ("python", [str(library), *held])):
            began = time.perf_counter()
            fit = ["fit", "--config", "ten_minutes", "--run", f"bench_{run}", "--fresh", "true"]
            fit += ["--data.corpus", *corpus, *sys.argv[1:]]
            command = [sys.executable, str(ROOT / "main.py")]
            subprocess.run([*command, *fit], check=True, stdout=subprocess.DEVNULL)
            print(f"\n{run}: {(time.perf_counter() - began) / 60:.1f} minutes of fit", flush=True)
            for how in ("block", "dynamic"):
                validate = ["validate", "--run", f"bench_{run}", "--evaluate", how]
                subprocess.run([*command, *validate], check=True)


if __name__ == "__main__":
    main()
