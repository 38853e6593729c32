"""Find a corpus: from a name or a path to a list of UTF-8 files on disk.

The files are not decoded here. Only `shakespeare`, which is built, and downloaded texts, whose hash
is checked, are read.
"""

import difflib
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NoReturn

from lightning_app.data.downloads import DOWNLOADS, downloaded_file
from lightning_app.data.encoding import Unit
from lightning_app.data.shakespeare import shakespeare_files
from lightning_app.errors import UserError
from lightning_app.files import check_readable


@dataclass(frozen=True)
class Corpus:
    """A text: its files, in order, joined by one newline."""

    name: str  # one of CORPUS_NAMES, or an absolute path or glob
    files: tuple[Path, ...]
    snap: bool = False  # split boundaries move to the nearest start of a file
    unit: Unit = "char"  # the default of --data.unit for this corpus


@dataclass(frozen=True)
class NamedCorpus:
    """How to get the files of a corpus that is asked for by name, and its defaults."""

    files: Callable[[Path], tuple[Path, ...]]  # given the data folder, builds or downloads them
    snap: bool = False
    unit: Unit = "char"


def _downloaded(name: str, data_dir: Path) -> tuple[Path, ...]:
    return (downloaded_file(name, data_dir),)


NAMED_CORPORA = {
    "shakespeare": NamedCorpus(shakespeare_files, snap=True),
    **{
        name: NamedCorpus(partial(_downloaded, name), unit=download.unit)
        for name, download in DOWNLOADS.items()
    },
}
CORPUS_NAMES = tuple(NAMED_CORPORA)


def find_corpus(corpus: str, data_dir: Path = Path("data")) -> Corpus:
    """The files of a corpus, given as a path to a file, a folder, a glob, or a name.

    An existing path takes precedence over a glob, and a glob over one of `CORPUS_NAMES`. A folder
    means all regular files in it and its subfolders; `**` in a glob matches any subfolders. Files
    are sorted by path. Hidden files and folders are left out, and links to folders are not
    followed, because they can form loops. Named corpora are built or downloaded into `data_dir`
    once.

    Raises UserError if nothing is found, or a file is unreadable or not a regular file.
    """
    given = os.path.expanduser(corpus)
    if given and os.path.exists(given):
        path = Path(os.path.abspath(given))
        return Corpus(str(path), _files_below(path) if path.is_dir() else (check_readable(path),))
    if _is_glob(given):
        return _glob(Path(given))
    if named := NAMED_CORPORA.get(corpus):
        return Corpus(corpus, named.files(data_dir), named.snap, named.unit)
    raise _not_found(given)


def _files_below(folder: Path) -> tuple[Path, ...]:
    def refuse(error: OSError) -> NoReturn:
        raise UserError(f"cannot read the folder {error.filename}: {error.strerror}")

    found: list[Path] = []
    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(parent, name) for name in names if not name.startswith(".")]
    files = tuple(check_readable(file) for file in sorted(found) if file.is_file())
    if not files:
        raise UserError(
            f"no files in the folder {folder}: put UTF-8 texts there or name another folder"
        )
    return files


def _is_glob(text: str) -> bool:
    return any(c in text for c in "*?[")


def _glob(pattern: Path) -> Corpus:
    # Not the module `glob`, whose `**` follows links. The folders before the first wildcard, and
    # the working folder, are taken literally: their names may contain brackets.
    first = next(i for i, part in enumerate(pattern.parts) if _is_glob(part))
    base = Path(os.path.abspath(Path(*pattern.parts[:first])))
    rest = pattern.parts[first:]
    name = str(Path(base, *rest))
    if rest[-1] == "**":
        rest += ("*",)  # `**` alone matches only folders
    try:
        found = sorted(set(base.glob("/".join(rest))))
    except ValueError as error:
        raise UserError(f"{name} is not a valid glob: {error}") from error
    files = tuple(
        check_readable(file)
        for file in found
        if not file.is_dir()
        and not any(part.startswith(".") for part in file.relative_to(base).parts)
    )
    if not files:
        raise UserError(f"no file matches {name}: check the pattern, and quote it for the shell")
    return Corpus(name, files)


def _not_found(given: str) -> UserError:
    path = Path(os.path.abspath(given))
    # Compare the first part of the path that does not exist with what its folder contains.
    while not os.path.exists(path.parent):
        path = path.parent
    try:
        siblings = os.listdir(path.parent)
    except OSError:  # the parent is a file, or an unreadable folder
        siblings = []
    names = CORPUS_NAMES if os.path.basename(given) == given else ()
    similar = difflib.get_close_matches(path.name, [*names, *siblings], n=1)
    hint = ""
    if similar:
        suggestion = similar[0] if similar[0] in names else path.parent / similar[0]
        hint = f"; did you mean {suggestion}?"
    return UserError(
        f"no corpus {given!r}: give a file, a folder or a glob that exists, "
        f"or one of {', '.join(CORPUS_NAMES)}{hint}"
    )
