"""Laws of the process: addresses, connections that do nothing, and OpenAI's own client."""

import gc
import socket
import sys

import pytest

from lightning_app.serving import server as server_module
from lightning_app.serving.server import PatientProtocol, open_socket
from tests.helpers import refusal
from tests.serving.running import running, wait_until


def test_an_address_that_cannot_be_used_is_refused_in_one_line():
    with open_socket("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        assert f"--port {port} is in use" in refusal(open_socket, "127.0.0.1", port)
    assert "--host 192.0.2.1 is not an address of this" in refusal(open_socket, "192.0.2.1", 0)
    assert "--host no.such.name.invalid" in refusal(open_socket, "no.such.name.invalid", 0)
    assert "--port 99999" in refusal(open_socket, "127.0.0.1", 99999)


def test_a_token_is_made_up_anew_each_time():
    first, second = server_module.make_token(), server_module.make_token()
    assert first != second
    assert min(len(first), len(second)) >= 32


@pytest.mark.parametrize("sent", [b"", b"POST /v1/comp", b"GET /health HTTP/1.1\r\nHost: x"])
@pytest.mark.parametrize("before", [b"", b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"])
def test_a_connection_without_a_complete_request_is_closed(monkeypatch, before, sent):
    monkeypatch.setattr(server_module, "IDLE_SECONDS", 0.1)
    with running() as server, socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.settimeout(60)
        connection.sendall(before)
        if before:
            assert connection.recv(12) == b"HTTP/1.1 200"
        connection.sendall(sent)
        try:
            while connection.recv(65536):
                pass
        except ConnectionResetError:
            pass
        assert server.complete()[0] == 200  # a request that takes longer than that is no such


def test_nothing_of_a_connection_is_kept_when_it_is_closed(monkeypatch):
    def kept() -> int:
        gc.collect()
        return sum(type(o) is PatientProtocol for o in gc.get_objects())

    monkeypatch.setattr(server_module, "IDLE_SECONDS", 1e4)
    before = kept()
    with running() as server:
        server.complete(n=3)
        server.complete(prompt="é")
        answer = server.stream(max_tokens=100)
        answer.readline()
        answer.close()  # hangs up
        wait_until(lambda: kept() == before)


@pytest.mark.skipif(sys.platform == "win32", reason="needs a small receive buffer")
def test_a_client_that_does_not_read_is_cut_off_and_stops_no_other(monkeypatch):
    monkeypatch.setattr(server_module, "UNREAD_SECONDS", 0.1)
    with running() as server:
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", server.port))
        connection.settimeout(60)
        body = b'{"prompt": "ab", "n": 60, "max_tokens": 600, "logprobs": 10, "stream": true}'
        head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}"
        connection.sendall(head.encode() + b"\r\n\r\n" + body)
        while server.unfinished():
            assert server.complete(n=1)[0] in (200, 503)
        received = 0
        with connection:
            try:
                while part := connection.recv(1 << 20):
                    received += len(part)
                    end = part
                complete = end.endswith(b"[DONE]\n\n\r\n0\r\n\r\n")
            except ConnectionResetError:
                complete = False
        assert not complete


def test_openais_client_completes_streams_and_reads_errors():
    openai = pytest.importorskip("openai", reason="the test extra has it")
    with running(token="s3cret") as server:
        url = f"http://127.0.0.1:{server.port}/v1"
        with openai.OpenAI(base_url=url, api_key="s3cret", max_retries=0) as client:
            assert [model.id for model in client.models.list()] == ["mine"]
            given = {"model": "mine", "prompt": "ab", "seed": 5, "max_tokens": 20}
            whole = client.completions.create(**given, n=2, logprobs=2, echo=True, top_p=0.9)
            assert len(whole.choices) == 2
            assert whole.usage.completion_tokens == 40
            assert len(whole.choices[0].logprobs.tokens) == 22
            stream = client.completions.create(**given, stream=True, extra_body={"min_p": 0.1})
            parts = list(stream)
            assert len("".join(part.choices[0].text for part in parts)) == 20
            assert parts[-1].choices[0].finish_reason == "length"
            with pytest.raises(openai.BadRequestError) as error:
                client.completions.create(model="mine", prompt="é")
            assert error.value.param == "prompt"
            with pytest.raises(openai.NotFoundError):
                client.completions.create(model="other", prompt="a")
        wrong = openai.OpenAI(base_url=url, api_key="wrong", max_retries=0)
        with wrong, pytest.raises(openai.AuthenticationError):
            wrong.models.list()
