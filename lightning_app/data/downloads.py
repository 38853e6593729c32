"""Published texts, downloaded once, or put into the data folder by hand, and checked by hash."""

import hashlib
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from lightning_app.data.encoding import Unit
from lightning_app.errors import UserError
from lightning_app.files import check_readable, locked_temporary_folder

CHUNK_SIZE = 1 << 20  # bytes
TIMEOUT_SECONDS = 30  # without an answer
MAX_ATTEMPTS = 3


@dataclass(frozen=True)
class Download:
    """A text at `url`, plain or as the only file in a zip archive."""

    file_name: str  # in the data folder
    url: str
    sha256: str  # of the file at the url
    text_hash: str  # algorithm:digest of the text itself
    text_size: int  # bytes
    unit: Unit = "char"  # the default of --data.unit

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
        unit="byte",  # published figures are bits per byte
    ),
}


def downloaded_file(name: str, data_dir: Path) -> Path:
    """The text `name` of DOWNLOADS in `data_dir`, downloaded if it is not there.

    Raises UserError if the download fails, or the file there is not the published text.
    """
    download = DOWNLOADS[name]
    file = data_dir / download.file_name
    if not file.exists():
        with locked_temporary_folder(name, data_dir) as temporary:
            if not file.exists():  # another process may have downloaded it meanwhile
                fetch(download, temporary, file).rename(file)
    if not is_published(check_readable(file), download):
        raise UserError(
            f"{file} differs from the published {name}: delete it to download that, "
            "or rename it and give its path as the corpus"
        )
    return file


def is_published(file: Path, download: Download) -> bool:
    """Whether a file has the size and the hash of the published text."""
    if file.stat().st_size != download.text_size:
        return False
    algorithm, expected = download.text_hash.split(":")
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with file.open("rb") as opened:
        while chunk := opened.read(CHUNK_SIZE):
            digest.update(chunk)
    return digest.hexdigest() == expected


def fetch(download: Download, folder: Path, target: Path) -> Path:
    """Download a text into an empty `folder`, with retries, and return its path there.

    Raises UserError, which names `target` as the place where the user can put the file instead.
    """
    by_hand = f"put the file at {target} by hand"
    try:
        import pooch  # takes long to import, and is needed once
    except ImportError as error:
        raise UserError(
            f"downloading {target.name} needs pooch: pip install pooch, or {by_hand}"
        ) from error
    name = download.url.rsplit("/", 1)[1]
    source = pooch.create(
        path=folder,
        base_url="",
        registry={name: f"sha256:{download.sha256}"},
        urls={name: download.url},
        retry_if_failed=MAX_ATTEMPTS - 1,
    )
    bar = sys.stderr.isatty() and download.text_size > 10 * CHUNK_SIZE
    file = folder / download.file_name
    try:
        downloader = pooch.HTTPDownloader(progressbar=bar, timeout=TIMEOUT_SECONDS)
        source.fetch(name, downloader=downloader)
        if download.zipped:
            unpack(folder / name, file, download.text_size)
        else:
            (folder / name).rename(file)
    except Exception as error:  # of requests, urllib3, ssl, pooch, zipfile: the remedy is the same
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"could not download {download.url} ({reason}); {by_hand}") from error
    if not is_published(file, download):
        raise UserError(
            f"the file at {download.url} differs from the published {target.name}; {by_hand}"
        )
    return file


def unpack(archive: Path, file: Path, size: int) -> None:
    """Write the only file of a zip archive to `file`. Raises ValueError unless it has `size`
    bytes, before anything is written."""
    with zipfile.ZipFile(archive) as opened:
        (entry,) = opened.infolist()
        if entry.file_size != size:
            raise ValueError(f"{entry.filename} has {entry.file_size} bytes, not {size}")
        with opened.open(entry) as source, file.open("wb") as output:
            while chunk := source.read(CHUNK_SIZE):
                output.write(chunk)
