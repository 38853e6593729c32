"""Laws of fetching, against a server of our own that answers well, badly and slowly."""

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
from lightning_app.data.corpora import Corpus, find_corpus
from lightning_app.data.downloads import ATTEMPTS, DOWNLOADS
from lightning_app.errors import UserError

TEXT = b"First Citizen:\nSpeak, speak.\n" * 2000


def zipped(data: bytes, **more: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in {"text8": data, **more}.items():
            archive.writestr(name, content)
    return file.getvalue()


class Server(ThreadingHTTPServer):
    """Gives its answers one after the other, the last one again and again; a str is a fault."""

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
    """A server with these answers, which the corpus `name` is then fetched from."""
    pytest.importorskip("pooch")
    servers = []

    def serve(name: str, *answers: bytes | str, good: bytes = TEXT) -> Server:
        server = Server(*answers)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        end = "text8.zip" if name == "text8" else "input.txt"
        what = replace(
            DOWNLOADS[name],
            url=f"http://127.0.0.1:{server.server_port}/{end}",
            sha256=hashlib.sha256(good).hexdigest(),
            text_hash=f"sha256:{hashlib.sha256(TEXT).hexdigest()}",
            bytes=len(TEXT),
        )
        monkeypatch.setitem(DOWNLOADS, name, what)
        monkeypatch.setattr(downloads, "TIMEOUT", 1)
        monkeypatch.setattr(time, "sleep", lambda _, sleep=time.sleep: sleep(0.01))
        return server

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def refusal(name: str, data_dir: Path) -> str:
    with pytest.raises(UserError) as error:
        find_corpus(name, data_dir)
    message = str(error.value)
    assert "\n" not in message
    return message


def left(folder: Path) -> set[str]:
    return {f.name for f in folder.iterdir() if not f.name.endswith(".lock")}


def test_a_text_is_fetched_once(tmp_path, serve):
    server = serve("tiny_shakespeare", TEXT)
    file = tmp_path / "tiny_shakespeare.txt"
    for _ in range(2):
        assert find_corpus("tiny_shakespeare", tmp_path) == Corpus("tiny_shakespeare", (file,))
    assert file.read_bytes() == TEXT
    assert server.asked == 1
    assert left(tmp_path) == {file.name}


def test_an_archive_is_unpacked_and_gone(tmp_path, serve):
    archive = zipped(TEXT)
    serve("text8", archive, good=archive)
    assert find_corpus("text8", tmp_path).files == (tmp_path / "text8",)
    assert (tmp_path / "text8").read_bytes() == TEXT
    assert left(tmp_path) == {"text8"}


@pytest.mark.parametrize("fault", ["missing", "truncated", b"<html>log in</html>", b""])
def test_a_broken_or_wrong_answer_is_asked_for_again(tmp_path, serve, fault):
    server = serve("tiny_shakespeare", fault, fault, TEXT)
    assert find_corpus("tiny_shakespeare", tmp_path).files[0].read_bytes() == TEXT
    assert server.asked == 3


@pytest.mark.parametrize("fault", ["missing", "truncated", "silent", b"<html>log in</html>", b""])
def test_answers_that_stay_wrong_leave_nothing_and_say_where_to_put_the_file(
    tmp_path, serve, fault
):
    server = serve("tiny_shakespeare", fault)
    message = refusal("tiny_shakespeare", tmp_path)
    assert DOWNLOADS["tiny_shakespeare"].url in message
    assert f"put the file at {tmp_path}/tiny_shakespeare.txt by hand" in message
    assert server.asked == ATTEMPTS
    assert left(tmp_path) == set()


@pytest.mark.parametrize(
    "archive",
    [zipped(TEXT[1:]), zipped(TEXT, other=b"x"), zipped(TEXT[:-1] + b"!"), TEXT, zipped(b"")],
    ids=["short", "two files", "another text", "no archive", "empty"],
)
def test_an_archive_of_something_else_is_refused_whatever_its_hash(tmp_path, serve, archive):
    serve("text8", archive, good=archive)
    assert f"put the file at {tmp_path}/text8 by hand" in refusal("text8", tmp_path)
    assert left(tmp_path) == set()


def test_no_server_at_all_is_said(tmp_path, serve):
    server = serve("tiny_shakespeare", TEXT)
    server.shutdown()
    server.server_close()
    assert "could not fetch http://127.0.0.1" in refusal("tiny_shakespeare", tmp_path)


def test_a_text_put_there_by_hand_is_used(tmp_path, serve):
    server = serve("tiny_shakespeare", "missing")
    (tmp_path / "tiny_shakespeare.txt").write_bytes(TEXT)
    assert find_corpus("tiny_shakespeare", tmp_path).files == (tmp_path / "tiny_shakespeare.txt",)
    assert server.asked == 0


@pytest.mark.parametrize("name", DOWNLOADS)
def test_another_text_in_its_place_is_refused_and_kept(tmp_path, name):
    file = tmp_path / DOWNLOADS[name].file
    file.write_text("mine")
    message = refusal(name, tmp_path)
    assert str(file) in message
    assert "remove it" in message
    assert "rename it" in message
    assert file.read_text() == "mine"


def test_without_pooch_its_command_and_the_place_are_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pooch", None)
    message = refusal("tiny_shakespeare", tmp_path)
    assert "pip install pooch" in message
    assert f"{tmp_path}/tiny_shakespeare.txt" in message


def test_what_is_fetched_comes_over_https_against_a_sha256():
    for what in DOWNLOADS.values():
        assert what.url.startswith("https://")
        assert len(what.sha256) == 64


def test_enwik8_is_cut_into_bytes_and_the_others_into_characters(tmp_path, monkeypatch):
    for name, what in list(DOWNLOADS.items()):
        digest = hashlib.sha256(TEXT).hexdigest()
        fake = replace(what, text_hash=f"sha256:{digest}", bytes=len(TEXT))
        monkeypatch.setitem(DOWNLOADS, name, fake)
        (tmp_path / what.file).write_bytes(TEXT)
        assert find_corpus(name, tmp_path).unit == ("byte" if name == "enwik8" else "char")
