"""The server process: sockets, connections that do nothing, signals. By uvicorn.

uvicorn reads and writes HTTP (with h11); the standard library's http.server needs a thread for each
connection and has no limits or timeouts for slow clients.
"""

import asyncio
import errno
import secrets
import socket
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, cast

from lightning_app.errors import UserError
from lightning_app.serving.app import App, Service
from lightning_app.serving.batch import ContinuousBatch
from lightning_app.serving.worker import Worker

try:
    import uvicorn
    from uvicorn.protocols.http.h11_impl import H11Protocol
except ImportError:
    raise UserError("serve needs uvicorn: pip install -e '.[serve]'") from None

IDLE_SECONDS = 20.0  # between the checks whether a connection is used
UNREAD_SECONDS = 60.0  # in which a client must read some of an answer that it lets wait
STOP_SECONDS = 3  # for answers to end after a signal
# After each compiled call the engine thread waits for Python's lock. While the event loop is busy
# with many streams, each wait takes this long; with Python's 0.005, texts took twice as long.
SWITCH_SECONDS = 0.0005
CONNECTIONS = 256  # in addition to those whose texts are written or wait


def make_token() -> str:
    return secrets.token_urlsafe(24)


def open_socket(host: str, port: int) -> socket.socket:
    """A listening socket. Raises UserError for an address that cannot be used."""
    if port > 65535:
        raise UserError(f"--port {port} is not a port; give a number up to 65535")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=512)
    except socket.gaierror:
        raise UserError(f"--host {host} is not an address of this machine") from None
    except OSError as error:
        reasons = {
            errno.EADDRINUSE: f"--port {port} is in use; give another one, or 0 for a free one",
            errno.EACCES: f"--port {port} needs more rights; give one above 1023",
            errno.EADDRNOTAVAIL: f"--host {host} is not an address of this machine",
        }
        if error.errno not in reasons:
            raise
        raise UserError(reasons[error.errno]) from None


class PatientProtocol(H11Protocol):
    """A connection that is closed when its client neither sends a request nor reads the answer.

    uvicorn itself would wait for ever for a client that sends half a request, and for one that does
    not read. Overrides callbacks of asyncio.Protocol, and reads `cycle`, uvicorn's current request.
    """

    idle: asyncio.TimerHandle
    unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.idle = self.loop.call_later(IDLE_SECONDS, self.close_if_idle, None)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.idle.cancel()  # otherwise it would keep this connection in memory until then

    def close_if_idle(self, earlier: Any) -> None:
        """`earlier` is the request that had ended at the previous check, if that has been all."""
        ended = self.cycle is None or self.cycle.response_complete
        unused = ended and (self.cycle is None or self.cycle is earlier)
        if unused or self.transport.is_closing():  # or closed, but its last bytes are not read
            self.transport.abort()
        else:
            last = self.cycle if ended else None
            self.idle = self.loop.call_later(IDLE_SECONDS, self.close_if_idle, last)

    def pause_writing(self) -> None:
        super().pause_writing()
        self.unread = self.loop.call_later(UNREAD_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.unread:
            self.unread.cancel()


class Server(uvicorn.Server):
    """uvicorn's server. On the first signal it ends all answers, and keeps the signal's number."""

    def __init__(self, config: uvicorn.Config, app: App) -> None:
        super().__init__(config)
        self.app, self.signum = app, 0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            self.force_exit = True
        self.should_exit, self.signum = True, sig
        self.app.worker.loop.call_soon_threadsafe(self.app.stop)


async def serve(
    listener: socket.socket,
    service: Service,
    make_batch: Callable[[], ContinuousBatch],
    on_ready: Callable[[], None],
    on_server: Callable[[Server], None] = lambda server: None,
) -> int:
    """Serve until a signal arrives; returns 128 + its number.

    make_batch: Called in the engine thread. on_ready: Called when requests are answered. on_server:
    Gets the server, for tests that stop it without a signal. Raises the error that ended the engine
    thread, if one did.
    """
    failures: list[BaseException] = []

    def on_failure(error: BaseException) -> None:
        failures.append(error)
        server.should_exit = True
        app.stop()

    worker = Worker(make_batch, on_failure)
    app = App(service, worker)
    config = uvicorn.Config(
        cast(Any, app),
        http=PatientProtocol,
        loop="none",
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="critical",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=service.limits.texts + CONNECTIONS,
        timeout_graceful_shutdown=STOP_SECONDS,
    )
    server = Server(config, app)
    on_server(server)
    switch_seconds = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_SECONDS)
    try:
        await worker.start()
        on_ready()
        await server.serve(sockets=[listener])
    finally:
        await worker.stop()
        sys.setswitchinterval(switch_seconds)
    if failures:
        raise failures[0]
    return 128 + server.signum if server.signum else 0
