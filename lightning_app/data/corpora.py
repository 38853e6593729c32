"""Where texts come from: plays carried by a package, published texts, or files of one's own.

`find_corpus` turns what a user asks for into UTF-8 files on disk. It reads none of them,
except to build `shakespeare` and to check what was published; decoding is for whoever encodes them.
"""

import difflib
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from lightning_app.data.downloads import DOWNLOADS, fetch, is_published, writing
from lightning_app.data.shakespeare import shakespeare_files
from lightning_app.errors import UserError

CORPUS_NAMES = ("shakespeare", *DOWNLOADS)


@dataclass(frozen=True)
class Corpus:
    """A text: its files in order; joined by one newline they are the corpus."""

    name: str  # how it was asked for: a known name, or an absolute path or glob
    files: tuple[Path, ...]
    snap: bool = False  # split boundaries move to the nearest start of a file
    unit: str = "char"  # what it is cut into where --data.unit does not say: char or byte


def find_corpus(corpus: str, data_dir: Path = Path("data")) -> Corpus:
    """The files of a corpus: a path to a file, a folder or a glob, or one of `CORPUS_NAMES`.

    A path that exists wins over a glob or a name. Of a folder come all regular files below it;
    `**` in a glob crosses folders. Both are sorted by path, leave hidden files and folders out,
    and do not follow links to folders, so that loops of them end. `data_dir` receives the named
    corpora, once.

    Raises UserError for what is not there, empty, unreadable or no regular file.
    """
    given = os.path.expanduser(corpus)
    if given and os.path.exists(given):
        path = Path(os.path.abspath(given))
        return Corpus(str(path), _below(path) if path.is_dir() else (_regular(path),))
    if _is_glob(given):
        return _glob(Path(given))
    if corpus == "shakespeare":
        return Corpus(corpus, shakespeare_files(data_dir), snap=True)
    if corpus in DOWNLOADS:
        unit = "byte" if corpus == "enwik8" else "char"
        return Corpus(corpus, (_published(corpus, data_dir),), unit=unit)
    raise _missing(given)


def _below(folder: Path) -> tuple[Path, ...]:
    def refuse(error: OSError):
        raise UserError(f"cannot read the folder {error.filename}: {error.strerror}")

    files = []
    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files += [Path(parent, name) for name in names if not name.startswith(".")]
    files = tuple(_regular(file) for file in sorted(files) if file.is_file())
    if not files:
        raise UserError(f"no files in the folder {folder}: put UTF-8 texts there or name another")
    return files


def _is_glob(text: str) -> bool:
    return any(mark in text for mark in "*?[")


def _glob(pattern: Path) -> Corpus:
    # pathlib and not the module glob, whose `**` follows links round and round. Only what was
    # given is a pattern: the folder one stands in may have brackets in its name.
    first = next(i for i, part in enumerate(pattern.parts) if _is_glob(part))
    base = Path(os.path.abspath(Path(*pattern.parts[:first])))
    rest = pattern.parts[first:]
    name = str(Path(base, *rest))
    if rest[-1] == "**":
        rest += ("*",)  # otherwise it means folders only
    try:
        found = sorted(set(base.glob("/".join(rest))))
    except ValueError as error:
        raise UserError(f"{name} is no glob: {error}") from error
    files = tuple(
        _regular(file)
        for file in found
        if not file.is_dir()
        and not any(part.startswith(".") for part in file.relative_to(base).parts)
    )
    if not files:
        raise UserError(f"no file matches {name}: check the pattern, and quote it for the shell")
    return Corpus(name, files)


def _regular(file: Path) -> Path:
    try:
        # Before opening: to open a pipe waits for its other end.
        if not stat.S_ISREG(file.stat().st_mode):
            raise UserError(f"{file} is no regular file: save its text as one and name that")
        file.open("rb").close()
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}; check its permissions") from error
    return file


def _missing(given: str) -> UserError:
    path = Path(os.path.abspath(given))
    # The first part of the path that is not there, against what is there instead.
    while not os.path.exists(path.parent):
        path = path.parent
    try:
        there = os.listdir(path.parent)
    except OSError:  # a file, or a folder one may not read
        there = []
    names = CORPUS_NAMES if os.path.basename(given) == given else ()
    near = difflib.get_close_matches(path.name, [*names, *there], n=1)
    hint = ""
    if near:
        hint = f"; did you mean {near[0] if near[0] in names else path.parent / near[0]}?"
    return UserError(
        f"no corpus {given!r}: give a file, a folder or a glob that exists, "
        f"or one of {', '.join(CORPUS_NAMES)}{hint}"
    )


def _published(name: str, data_dir: Path) -> Path:
    what = DOWNLOADS[name]
    file = data_dir / what.file
    if not file.exists():
        with writing(data_dir, name) as part:
            if not file.exists():  # another process may have been first
                fetch(what, part, goal=file).rename(file)
    if not is_published(_regular(file), what):
        raise UserError(
            f"{file} is not {name} as published: remove it to have that fetched, "
            "or rename it and give its path as the corpus"
        )
    return file
