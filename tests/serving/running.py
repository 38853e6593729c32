"""A server in a thread of its own, with a tiny network."""

import asyncio
import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from lightning_app.generation.sampling import GenerateOptions
from lightning_app.serving import server as server_module
from lightning_app.serving.app import Service
from lightning_app.serving.batch import ContinuousBatch, make_batch
from lightning_app.serving.completions import Limits
from lightning_app.serving.server import Server, open_socket
from tests.helpers import TOKENIZER, UNIGRAM, writing_network

DEFAULTS = GenerateOptions(sampling="prob", temperature=1.0, max_new_tokens=12)


@dataclass
class Running:
    port: int
    server: Server

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)

    def ask(
        self, method: str, path: str, body: Any = None, **headers: str
    ) -> tuple[int, Any, dict[str, str]]:
        """Status, JSON and headers of an answer; a body that is not bytes is sent as JSON."""
        connection = self.connect()
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, named)
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        if answer.getheader("content-type") == "application/json" and data:
            data = json.loads(data)
        return answer.status, data, {k.lower(): v for k, v in answer.getheaders()}

    def complete(self, **body: Any) -> tuple[int, Any]:
        return self.ask("POST", "/v1/completions", {"prompt": "ab"} | body)[:2]

    def unfinished(self) -> int:
        return self.ask("GET", "/health")[1]["unfinished_texts"]

    def stream(self, **body: Any) -> http.client.HTTPResponse:
        """The answer to a request for a stream; not read."""
        connection = self.connect()
        body = {"prompt": "ab", "stream": True} | body
        connection.request("POST", "/v1/completions", json.dumps(body))
        return connection.getresponse()


def events(answer: http.client.HTTPResponse) -> Iterator[Any]:
    """The events of a stream up to its end, which must be [DONE]."""
    line = b""
    for line in answer:
        if line.strip() and line != b"data: [DONE]\n":
            assert line.startswith(b"data: ")
            yield json.loads(line[6:])
    answer.close()


def wait_until(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@contextmanager
def running(
    make: Callable[[], ContinuousBatch] | None = None, limits: Limits | None = None, **given: Any
) -> Iterator[Running]:
    limits = limits or Limits(max_batch=4, max_queue=60)
    described = {"name": "mine", "created": 5, "tokenizer": TOKENIZER, "defaults": DEFAULTS}
    service = Service(**described | {"page": "<h1>é</h1>", "limits": limits} | given)
    ready, servers, codes = threading.Event(), [], []
    gpt = writing_network()

    with open_socket("127.0.0.1", 0) as listener:

        def serve() -> None:
            coroutine = server_module.serve(
                listener,
                service,
                make or (lambda: make_batch(gpt, limits.max_batch, unigram=UNIGRAM)),
                ready.set,
                servers.append,
            )
            codes.append(asyncio.run(coroutine))

        thread = threading.Thread(target=serve)
        port = listener.getsockname()[1]
        thread.start()
        assert ready.wait(120)
        try:
            yield Running(port, servers[0])
        finally:
            servers[0].handle_exit(15, None)
            thread.join(60)
        assert codes == [128 + 15]
