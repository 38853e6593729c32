"""The HTTP interface, as an ASGI application: addresses, access, bodies, streams.

Five addresses do not need a framework: what matters here (who may ask, how much may be sent, a
client that hangs up or does not read) is decided on the level of ASGI itself.
"""

import asyncio
import hmac
import json
import secrets
import time
import traceback
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, urlsplit

from lightning_app.data.tokenizer import Tokenizer
from lightning_app.generation.sampling import GenerateOptions
from lightning_app.serving.batch import Written
from lightning_app.serving.completions import (
    Choice,
    CompletionRequest,
    Limits,
    RequestError,
    parse_request,
    usage,
)
from lightning_app.serving.worker import Worker

BODY_SECONDS = 30  # in which a body must arrive
STREAM_SECONDS = 0.02  # between two parts of a stream, except the last: 64 streams cost little
RETRY_SECONDS = "1"
LOCAL_NAMES = ("127.0.0.1", "localhost", "::1")

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

PAGE_HEADERS = [
    (b"content-type", b"text/html; charset=utf-8"),
    (b"referrer-policy", b"no-referrer"),  # the address may have the token
    (b"x-frame-options", b"DENY"),
]
JSON_HEADERS = [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]
STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
]


@dataclass(frozen=True)
class Service:
    """What is served.

    Args:
        name: The model's, in the interface.
        created: When its checkpoint was written, in seconds since 1970.
        tokenizer: The network's.
        defaults: Options of generation for requests that do not give them.
        page: The HTML of `/`.
        limits: Of requests.
        token: That requests must have; None for none.
        local: Whether only this machine can connect. A request must then be addressed to this
            machine: a web page whose own name points to 127.0.0.1 (DNS rebinding) is refused.
    """

    name: str
    created: int
    tokenizer: Tokenizer
    defaults: GenerateOptions
    page: str
    limits: Limits
    token: str | None = None
    local: bool = True


class App:
    """The ASGI application."""

    def __init__(self, service: Service, worker: Worker) -> None:
        self.service, self.worker = service, worker
        self.answers: set[Answer] = set()  # that are being written
        self.stopping = False
        self.routes: dict[str, tuple[str, Callable[..., Coroutine[Any, Any, None]]]] = {
            "/": ("GET", self.page),
            "/health": ("GET", self.health),
            "/v1/models": ("GET", self.models),
            f"/v1/models/{service.name}": ("GET", self.model),
            "/v1/completions": ("POST", self.completions),
        }

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        request = Request(scope, receive, send)
        try:
            await self.route(request)
        except RequestError as error:
            await request.json(error.status, error.body(), error.headers)
        except ConnectionError:
            pass  # the client hung up
        except Exception:
            traceback.print_exc()
            if not request.started:
                defect = RequestError(500, "the server has a defect; its terminal shows where")
                await request.json(500, defect.body())
            else:
                raise

    async def route(self, request: "Request") -> None:
        self.check_origin(request)
        method, handle = self.routes.get(request.path, ("", None))
        if handle is None:
            hint = ""
            if request.path == "/v1/chat/completions":
                hint = "; this network continues texts: use /v1/completions"
            raise RequestError(404, f"there is no address {request.path}{hint}")
        if request.method != method and (request.method, method) != ("HEAD", "GET"):
            raise RequestError(405, f"{request.path} takes {method}", headers=(("Allow", method),))
        if request.path != "/health":
            self.check_token(request)
        await handle(request)

    def check_origin(self, request: "Request") -> None:
        """Refuse requests from other web pages in the user's browser. Raises RequestError."""
        host = request.header("host")
        if self.service.local and host_name(host) not in LOCAL_NAMES:
            raise RequestError(403, "the Host header does not name this machine")
        origin = request.header("origin")
        if origin and urlsplit(origin).netloc != host:
            raise RequestError(403, "requests from other web pages are refused")

    def check_token(self, request: "Request") -> None:
        """Raises RequestError for a request without the token."""
        if self.service.token is None:
            return
        kind, _, given = request.header("authorization").partition(" ")
        if kind.lower() != "bearer":
            given = request.query.get("token", [""])[0] if request.path == "/" else ""
        right = hmac.compare_digest(given.strip().encode(), self.service.token.encode())
        if not right:
            raise RequestError(
                401,
                "the token is missing or wrong; send the header Authorization: Bearer TOKEN",
                code="invalid_api_key",
                headers=(("WWW-Authenticate", "Bearer"),),
            )

    async def page(self, request: "Request") -> None:
        await request.answer(200, PAGE_HEADERS, self.service.page.encode())

    async def health(self, request: "Request") -> None:
        unfinished = len(self.worker.unfinished)
        await request.json(200, {"status": "ok", "unfinished_texts": unfinished})

    async def models(self, request: "Request") -> None:
        await request.json(200, {"object": "list", "data": [self.description()]})

    async def model(self, request: "Request") -> None:
        await request.json(200, self.description())

    def description(self) -> dict[str, Any]:
        created = self.service.created
        return {"id": self.service.name, "object": "model", "created": created, "owned_by": "user"}

    async def completions(self, request: "Request") -> None:
        limits = self.service.limits
        body = decode_json(await request.body(limits.max_body))
        s = self.service
        parsed = parse_request(body, s.tokenizer, s.defaults, limits, s.name)
        if self.stopping:
            raise stopping_error()
        if len(self.worker.unfinished) + len(parsed.encoded) * parsed.n > limits.texts:
            raise RequestError(
                503,
                f"the server is writing or keeping {len(self.worker.unfinished)} texts; try again",
                code="overloaded",
                headers=(("Retry-After", RETRY_SECONDS),),
            )
        answer = Answer(parsed, s)
        texts = parsed.texts(s.tokenizer, answer.add)
        self.answers.add(answer)
        self.worker.write(texts)
        try:
            send = answer.stream if parsed.stream else answer.whole
            await until_hung_up(send(request), request)
        finally:
            self.worker.cancel(texts)
            self.answers.discard(answer)

    def stop(self) -> None:
        """End all answers now, with an error."""
        self.stopping = True
        for answer in self.answers:
            answer.stop()


class Answer:
    """The answer to one request, while it is written."""

    def __init__(self, request: CompletionRequest, service: Service) -> None:
        self.request = request
        prompts = request.prompts if request.echo else [""] * len(request.prompts)
        self.choices = [Choice(prompt) for prompt in prompts for _ in range(request.n)]
        self.news = asyncio.Event()
        self.ended = asyncio.Event()
        self.unfinished = len(self.choices)
        self.stopped = False
        self.base = {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": service.name,
            "seed": request.seed,
        }

    def add(self, number: int, written: Written) -> None:
        self.choices[number].add(written)
        if written.finish_reason:
            self.unfinished -= 1
        if not self.unfinished:
            self.ended.set()
        if self.request.stream or not self.unfinished:
            self.news.set()

    def stop(self) -> None:
        self.stopped = True
        self.news.set()
        self.ended.set()

    def take(self, index: int) -> dict[str, Any]:
        return self.choices[index].take(index, self.request.logprobs is not None)

    async def whole(self, request: "Request") -> None:
        """Send the answer as one JSON object."""
        await self.news.wait()
        if self.stopped:
            raise stopping_error()
        choices = [self.take(i) for i in range(len(self.choices))]
        totals = {"usage": usage(self.request, self.choices)}
        await request.json(200, self.base | {"choices": choices} | totals)

    async def stream(self, request: "Request") -> None:
        """Send the answer as server-sent events, each text's parts as they are written."""
        await request.start(200, STREAM_HEADERS)
        extra = {"usage": None} if self.request.include_usage else {}
        while True:
            await self.news.wait()
            self.news.clear()
            finished = not self.unfinished
            changed = [i for i, choice in enumerate(self.choices) if choice.changed]
            events = [self.base | {"choices": [self.take(i)]} | extra for i in changed]
            if finished and self.request.include_usage:
                totals = usage(self.request, self.choices)
                events.append(self.base | {"choices": [], "usage": totals})
            if self.stopped and not finished:
                events.append(stopping_error().body())
            await request.part(b"".join(map(event_bytes, events)))
            if finished or self.stopped:
                break
            with suppress(TimeoutError):
                await asyncio.wait_for(self.ended.wait(), STREAM_SECONDS)
        await request.part(b"data: [DONE]\n\n", last=True)


class Request:
    """One request and its answer."""

    def __init__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        self.receive, self.send = receive, send
        self.method, self.path = scope["method"], scope["path"]
        self.headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        self.query = parse_qs(scope["query_string"].decode("latin-1"))
        self.started = False

    def header(self, name: str) -> str:
        return self.headers.get(name, "")

    async def body(self, limit: int) -> bytes:
        """Raises RequestError for a body of more than `limit` bytes, without reading all of it, and
        for one that does not arrive in time."""
        length = self.header("content-length")
        too_long = RequestError(413, f"the body has more than {limit:,} bytes")
        if length.isdecimal() and int(length) > limit:
            raise too_long
        parts, size = [], 0
        try:
            async with asyncio.timeout(BODY_SECONDS):
                while True:
                    message = await self.receive()
                    if message["type"] == "http.disconnect":
                        raise ConnectionError
                    parts.append(message["body"])
                    size += len(message["body"])
                    if size > limit:
                        raise too_long
                    if not message["more_body"]:
                        return b"".join(parts)
        except TimeoutError:
            raise RequestError(408, f"the body took more than {BODY_SECONDS} seconds") from None

    async def start(self, status: int, headers: Sequence[tuple[bytes, bytes]]) -> None:
        self.started = True
        headers = [*headers, (b"x-content-type-options", b"nosniff")]
        await self.send({"type": "http.response.start", "status": status, "headers": headers})

    async def part(self, body: bytes, last: bool = False) -> None:
        await self.send({"type": "http.response.body", "body": body, "more_body": not last})

    async def answer(
        self, status: int, headers: Sequence[tuple[bytes, bytes]], body: bytes
    ) -> None:
        length = (b"content-length", str(len(body)).encode())
        await self.start(status, [*headers, length])
        await self.part(body, last=True)

    async def json(
        self, status: int, body: dict[str, Any], headers: Sequence[tuple[str, str]] = ()
    ) -> None:
        encoded = [(k.lower().encode(), v.encode()) for k, v in headers]
        if status in (408, 413):
            encoded.append((b"connection", b"close"))  # the rest of the body is not read
        await self.answer(status, [*JSON_HEADERS, *encoded], json.dumps(body).encode())


def event_bytes(event: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(event)}\n\n".encode()


def stopping_error() -> RequestError:
    return RequestError(503, "the server is stopping", code="stopping")


def host_name(host: str) -> str:
    """The name in a Host header, without its port: "[::1]:8000" has the name "::1"."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def decode_json(body: bytes) -> Any:
    """Raises RequestError for what is not JSON; NaN and Infinity are not."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not a number")

    try:
        return json.loads(body, parse_constant=refuse)
    except RecursionError:
        raise RequestError(400, "the body is nested too deeply") from None
    except ValueError as error:  # also for text that is not UTF-8
        raise RequestError(400, f"the body is not JSON: {error}") from None


async def until_hung_up(sending: Coroutine[Any, Any, None], request: Request) -> None:
    """Await `sending`, unless the client hangs up first; then cancel it and raise
    ConnectionError."""

    async def hung_up() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    tasks = [asyncio.create_task(sending), asyncio.create_task(hung_up())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not tasks[0].done():
            raise ConnectionError
        tasks[0].result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
