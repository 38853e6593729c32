"""Laws of `serve` on the command line."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

import lightning_app.serving
from lightning_app.cli.commands.serve import make_page, make_parser
from lightning_app.export.page import page
from lightning_app.runs.checkpoint import load
from lightning_app.serving.completions import Limits
from tests.helpers import MAIN, is_error, save_run


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_run("mine")


def test_the_defaults_of_the_limits_are_those_of_the_interface():
    config = make_parser().parse_args([])
    assert Limits(*(config[name] for name in Limits.__dataclass_fields__)) == Limits()
    assert (config.host, config.port, config.token) == ("127.0.0.1", 8000, None)


def test_mistakes_are_one_line(run, main):
    assert is_error(main("serve", "--run", "other", "--port", "0"), "runs: mine")
    assert is_error(main("serve", "--token", "a b"), "--token", "without spaces")
    assert is_error(main("serve", "--max_batch", "0"), "--max_batch", "above 0")
    assert is_error(main("serve", "--threads", "999"), "--threads is 999", "at most")
    assert is_error(main("serve", "--max_quue", "5"), "did you mean --max_queue?")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert is_error(main("serve", "--port", port), f"--port {port} is in use")
    Path("wrong.yaml").write_text("generate: {top_k: 3, top_p: 0.5}")
    assert is_error(
        main("serve", "--run", "mine", "--port", "0", "--config", "wrong.yaml"), "top_p"
    )


def test_a_network_that_is_too_large_for_a_page_is_served_without(run, monkeypatch):
    monkeypatch.setattr(page, "MAX_BYTES", 10)
    assert "There is no page: the network has" in make_page(load(save_run("large")))


def test_without_uvicorn_the_remedy_is_said_and_help_works(run, main, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "lightning_app.serving.server", raising=False)
    monkeypatch.delattr(lightning_app.serving, "server", raising=False)
    assert is_error(
        main("serve", "--run", "other"), "serve needs uvicorn: pip install -e '.[serve]'"
    )


@contextmanager
def serving(*options: str):
    """A process that serves, the lines that it printed when it was ready, and its port."""
    command = [sys.executable, str(MAIN), "serve", "--port", "0", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        lines = []
        for line in process.stderr:
            lines.append(line)
            if "interface" in line:
                break
        port = int(re.search(r"http://\S+:(\d+)/v1", "".join(lines))[1])
        yield process, lines, port
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


@pytest.mark.skipif(os.name == "nt", reason="needs signals")
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_streams_and_the_process(run, signum):
    with serving("--run", "mine", "--max_tokens", "1000000000") as (process, lines, port):
        assert lines[-3:-1] == [
            "serving mine; Ctrl-C stops\n",
            f"  page       http://127.0.0.1:{port}\n",
        ]
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("GET", "/")
        assert b"<textarea" in connection.getresponse().read()
        body = {"prompt": "a", "stream": True, "max_tokens": 10**9}
        connection.request("POST", "/v1/completions", json.dumps(body))
        answer = connection.getresponse()
        assert answer.readline().startswith(b"data: {")
        process.send_signal(signum)
        *_, error, last = answer.read().strip().split(b"\n\n")
        assert b"stopping" in error
        assert last == b"data: [DONE]"
        assert process.wait(60) == 128 + signum
        assert process.stderr.read() == ""


@pytest.mark.skipif(os.name == "nt", reason="needs signals")
def test_another_address_needs_a_token_and_is_said(run):
    with serving("--host", "0.0.0.0") as (process, lines, port):
        token = re.search(r"/\?token=(\S+)", "".join(lines))[1]
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        for headers, status in (({}, 401), ({"Authorization": f"Bearer {token}"}, 200)):
            connection.request("GET", "/v1/models", headers=headers)
            answer = connection.getresponse()
            answer.read()
            assert answer.status == status
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143
        said = process.stderr.read()
        assert token in said
        assert "not encrypted" in said
