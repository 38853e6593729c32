"""Laws of downloads, against a local server with right, wrong and missing answers."""

import hashlib
import io
import sys
import threading
import time
import zipfile
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from lightning_app.data import downloads
from lightning_app.data.corpora import find_corpus
from lightning_app.data.downloads import DOWNLOADS, MAX_ATTEMPTS, downloaded_file, unpack
from lightning_app.errors import UserError

TEXT = b"First Citizen:\nSpeak, speak.\n" * 2000


def zipped(data: bytes, **more: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in {"text8": data, **more}.items():
            archive.writestr(name, content)
    return file.getvalue()


class Server(ThreadingHTTPServer):
    """Gives its answers in order, then repeats the last one; a str names an error."""

    def __init__(self, *answers: bytes | str) -> None:
        self.answers, self.asked = list(answers), 0
        super().__init__(("127.0.0.1", 0), Handler)

    def next(self) -> bytes | str:
        self.asked += 1
        return self.answers[min(self.asked, len(self.answers)) - 1]


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        answer = self.server.next()
        if isinstance(answer, bytes):
            self.reply(answer, len(answer))
        elif answer == "missing":
            self.send_error(404)
        elif answer == "truncated":
            self.reply(TEXT[:1000], len(TEXT))
        elif answer == "silent":
            time.sleep(3)

    def reply(self, data: bytes, length: int) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def serve(monkeypatch):
    """Starts a server with these answers, from which the text `name` is downloaded."""
    pytest.importorskip("pooch")
    servers = []

    def serve(name: str, *answers: bytes | str, good: bytes = TEXT) -> Server:
        server = Server(*answers)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        end = "text8.zip" if name == "text8" else "input.txt"
        download = replace(
            DOWNLOADS[name],
            url=f"http://127.0.0.1:{server.server_port}/{end}",
            sha256=hashlib.sha256(good).hexdigest(),
            text_hash=f"sha256:{hashlib.sha256(TEXT).hexdigest()}",
            text_size=len(TEXT),
        )
        monkeypatch.setitem(DOWNLOADS, name, download)
        monkeypatch.setattr(downloads, "TIMEOUT_SECONDS", 1)
        monkeypatch.setattr(time, "sleep", lambda _, sleep=time.sleep: sleep(0.01))
        return server

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def refusal(name: str, data_dir: Path) -> str:
    with pytest.raises(UserError) as error:
        downloaded_file(name, data_dir)
    message = str(error.value)
    assert "\n" not in message
    return message


def left(folder: Path) -> set[str]:
    return {f.name for f in folder.iterdir() if not f.name.endswith(".lock")}


def test_a_text_is_downloaded_once(tmp_path, serve):
    server = serve("tiny_shakespeare", TEXT)
    file = tmp_path / "tiny_shakespeare.txt"
    for _ in range(2):
        assert downloaded_file("tiny_shakespeare", tmp_path) == file
    assert file.read_bytes() == TEXT
    assert server.asked == 1
    assert left(tmp_path) == {file.name}


def test_an_archive_is_unpacked_and_deleted(tmp_path, serve):
    archive = zipped(TEXT)
    serve("text8", archive, good=archive)
    assert downloaded_file("text8", tmp_path) == tmp_path / "text8"
    assert (tmp_path / "text8").read_bytes() == TEXT
    assert left(tmp_path) == {"text8"}


@pytest.mark.parametrize("fault", ["missing", "truncated", b"<html>log in</html>", b""])
def test_a_broken_or_wrong_answer_is_requested_again(tmp_path, serve, fault):
    server = serve("tiny_shakespeare", fault, fault, TEXT)
    assert downloaded_file("tiny_shakespeare", tmp_path).read_bytes() == TEXT
    assert server.asked == 3


@pytest.mark.parametrize("fault", ["missing", "truncated", "silent", b"<html>log in</html>", b""])
def test_after_repeated_errors_nothing_is_left_and_the_message_says_where_to_put_the_file(
    tmp_path, serve, fault
):
    server = serve("tiny_shakespeare", fault)
    message = refusal("tiny_shakespeare", tmp_path)
    assert DOWNLOADS["tiny_shakespeare"].url in message
    assert f"put the file at {tmp_path}/tiny_shakespeare.txt by hand" in message
    assert server.asked == MAX_ATTEMPTS
    assert left(tmp_path) == set()


@pytest.mark.parametrize(
    "archive",
    [zipped(TEXT[1:]), zipped(TEXT, other=b"x"), zipped(TEXT[:-1] + b"!"), TEXT, zipped(b"")],
    ids=["short", "two files", "another text", "no archive", "empty"],
)
def test_an_archive_of_another_text_is_refused_even_with_the_expected_hash(
    tmp_path, serve, archive
):
    serve("text8", archive, good=archive)
    assert f"put the file at {tmp_path}/text8 by hand" in refusal("text8", tmp_path)
    assert left(tmp_path) == set()


def test_an_unreachable_server_is_named(tmp_path, serve):
    server = serve("tiny_shakespeare", TEXT)
    server.shutdown()
    server.server_close()
    assert "could not download http://127.0.0.1" in refusal("tiny_shakespeare", tmp_path)


def test_a_file_put_there_by_hand_is_used(tmp_path, serve):
    server = serve("tiny_shakespeare", "missing")
    (tmp_path / "tiny_shakespeare.txt").write_bytes(TEXT)
    assert downloaded_file("tiny_shakespeare", tmp_path) == tmp_path / "tiny_shakespeare.txt"
    assert server.asked == 0


@pytest.mark.parametrize("name", DOWNLOADS)
def test_another_text_under_its_name_is_refused_and_kept(tmp_path, name):
    file = tmp_path / DOWNLOADS[name].file_name
    file.write_text("mine")
    message = refusal(name, tmp_path)
    assert str(file) in message
    assert "delete it" in message
    assert "rename it" in message
    assert file.read_text() == "mine"


def test_without_pooch_the_message_names_the_command_and_the_place(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pooch", None)
    message = refusal("tiny_shakespeare", tmp_path)
    assert "pip install pooch" in message
    assert f"{tmp_path}/tiny_shakespeare.txt" in message


def test_downloads_use_https_and_a_sha256():
    for download in DOWNLOADS.values():
        assert download.url.startswith("https://")
        assert len(download.sha256) == 64


def test_enwik8_is_read_as_bytes_and_the_others_as_characters(tmp_path, monkeypatch):
    for name, download in list(DOWNLOADS.items()):
        digest = hashlib.sha256(TEXT).hexdigest()
        fake = replace(download, text_hash=f"sha256:{digest}", text_size=len(TEXT))
        monkeypatch.setitem(DOWNLOADS, name, fake)
        (tmp_path / download.file_name).write_bytes(TEXT)
        assert find_corpus(name, tmp_path).unit == ("byte" if name == "enwik8" else "char")


def test_unpacking_writes_nothing_if_the_size_is_wrong(tmp_path):
    (tmp_path / "a.zip").write_bytes(zipped(TEXT))
    with pytest.raises(ValueError, match=f"text8 has {len(TEXT)} bytes, not 5"):
        unpack(tmp_path / "a.zip", tmp_path / "text8", size=5)
    assert not (tmp_path / "text8").exists()
    unpack(tmp_path / "a.zip", tmp_path / "text8", size=len(TEXT))
    assert (tmp_path / "text8").read_bytes() == TEXT
