"""Published texts, fetched once against a hash. A file put in their place by hand is as good."""

import hashlib
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lightning_app.errors import UserError
from lightning_app.files import lock_file, temporary_folder

CHUNK = 1 << 20
TIMEOUT = 30  # seconds without an answer
ATTEMPTS = 3


@dataclass(frozen=True)
class Download:
    """A text at `url`, by itself or as the only file in a zip archive."""

    file: str  # its name below data_dir
    url: str
    sha256: str  # of what is at the url
    text_hash: str  # algorithm:digest of the text itself
    bytes: int  # of the text

    @property
    def zipped(self) -> bool:
        return self.url.endswith(".zip")


DOWNLOADS = {
    "tiny_shakespeare": Download(
        "tiny_shakespeare.txt",
        "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
        "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
        "sha256:86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
        1_115_394,
    ),
    "text8": Download(
        "text8",
        "https://mattmahoney.net/dc/text8.zip",
        "a6640522afe85d1963ad56c05b0ede0a0c000dddc9671758a6cc09b7a38e5232",
        "md5:3bea1919949baf155f99411df5fada7e",
        100_000_000,
    ),
    "enwik8": Download(
        "enwik8",
        "https://mattmahoney.net/dc/enwik8.zip",
        "547994d9980ebed1288380d652999f38a14fe291a6247c157c3d33d4932534bc",
        "sha256:2b49720ec4d78c3c9fabaee6e4179a5e997302b3a70029f30f2d582218c024a8",
        100_000_000,
    ),
}


def is_published(file: Path, what: Download) -> bool:
    """Whether a file is the text as published."""
    if file.stat().st_size != what.bytes:
        return False
    algorithm, expected = what.text_hash.split(":")
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with file.open("rb") as opened:
        while piece := opened.read(CHUNK):
            digest.update(piece)
    return digest.hexdigest() == expected


def fetch(what: Download, folder: Path, goal: Path) -> Path:
    """The text, fetched into an empty `folder`; broken and wrong answers are asked for again.

    Raises UserError, naming `goal` as the place to put the file by hand.
    """
    by_hand = f"put the file at {goal} by hand"
    try:
        import pooch  # slow to import, and needed once
    except ImportError as error:
        raise UserError(
            f"fetching {goal.name} needs pooch: pip install pooch, or {by_hand}"
        ) from error
    name = what.url.rsplit("/", 1)[1]
    source = pooch.create(
        path=folder,
        base_url="",
        registry={name: f"sha256:{what.sha256}"},
        urls={name: what.url},
        retry_if_failed=ATTEMPTS - 1,
    )
    bar = sys.stderr.isatty() and what.bytes > 10 * CHUNK
    try:
        source.fetch(name, downloader=pooch.HTTPDownloader(progressbar=bar, timeout=TIMEOUT))
        if what.zipped:
            unpack(folder / name, folder / what.file, what)
        else:
            (folder / name).rename(folder / what.file)
    except Exception as error:  # of requests, urllib3, ssl, pooch, zipfile: the remedy is the same
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"could not fetch {what.url} ({reason}); {by_hand}") from error
    if not is_published(folder / what.file, what):
        raise UserError(f"what {what.url} holds is not {goal.name} as published; {by_hand}")
    return folder / what.file


def unpack(archive: Path, file: Path, what: Download) -> None:
    with zipfile.ZipFile(archive) as opened:
        (entry,) = opened.infolist()
        if entry.file_size != what.bytes:
            raise ValueError(f"{entry.filename} has {entry.file_size} bytes, not {what.bytes}")
        with opened.open(entry) as source, file.open("wb") as target:
            while piece := source.read(CHUNK):
                target.write(piece)


@contextmanager
def writing(data_dir: Path, name: str) -> Iterator[Path]:
    """An empty folder to make a named corpus in, for one process at a time.

    What is renamed out of it appears whole or not at all. Raises UserError where `data_dir` cannot
    be written.
    """
    try:
        with (
            lock_file(data_dir / f".{name}.lock"),
            temporary_folder(data_dir / f".{name}") as part,
        ):
            yield part
    except OSError as error:
        raise UserError(
            f"cannot write {name} to {data_dir}: {error.strerror or error}; "
            "make that folder writable or choose another"
        ) from error
