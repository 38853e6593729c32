"""The engine thread: the only thread that computes. Everything else happens on the event loop.

The two exchange messages and share nothing else. The event loop puts texts to write, and texts that
nobody wants any more, into a queue; the thread hands what it has written to the event loop with
`call_soon_threadsafe`. Neither waits for the other.
"""

import asyncio
import threading
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Literal, NamedTuple

from lightning_app.serving.batch import ContinuousBatch, Text, Written


class Message(NamedTuple):
    what: Literal["write", "cancel", "stop"]
    texts: Sequence[Text] = ()


class Worker:
    """Writes texts in a thread of its own. Its methods are called on the event loop.

    Args:
        make_batch: Makes the batch, in the thread (numba and OpenMP keep settings per thread).
        on_failure: Called on the event loop with the error that ended the thread: a defect.
    """

    def __init__(
        self,
        make_batch: Callable[[], ContinuousBatch],
        on_failure: Callable[[BaseException], None],
    ) -> None:
        self.make_batch, self.on_failure = make_batch, on_failure
        self.messages: SimpleQueue[Message] = SimpleQueue()
        self.unfinished: set[Text] = set()
        self.loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[None] = self.loop.create_future()
        self.thread = threading.Thread(target=self.run, name="engine")

    async def start(self) -> None:
        """Returns when texts can be written. Raises what `make_batch` raises."""
        self.thread.start()
        await self.ready

    def write(self, texts: Sequence[Text]) -> None:
        """Write texts; `Text.deliver` is called on the event loop."""
        self.unfinished.update(texts)
        self.messages.put(Message("write", texts))

    def cancel(self, texts: Sequence[Text]) -> None:
        """Forget texts; those that have ended are ignored. Nothing more of them is delivered."""
        if unfinished := [text for text in texts if text in self.unfinished]:
            self.unfinished.difference_update(unfinished)
            self.messages.put(Message("cancel", unfinished))

    async def stop(self) -> None:
        """End the thread after its current step."""
        self.unfinished.clear()
        self.messages.put(Message("stop"))
        while self.thread.is_alive():
            await asyncio.sleep(0.005)

    def run(self) -> None:
        """The thread."""
        try:
            batch = self.make_batch()
            self.loop.call_soon_threadsafe(self.ready.set_result, None)
            while self.receive(batch):
                if written := batch.step():
                    self.loop.call_soon_threadsafe(self.deliver, written)
        except BaseException as error:
            self.loop.call_soon_threadsafe(self.fail, error)

    def receive(self, batch: ContinuousBatch) -> bool:
        """Read the messages; wait for one while there is nothing to write. False for a stop."""
        while True:
            try:
                message = self.messages.get(block=batch.idle)
            except Empty:
                return True
            if message.what == "stop":
                return False
            for text in message.texts:
                (batch.add if message.what == "write" else batch.remove)(text)

    def deliver(self, written: list[tuple[Text, Written]]) -> None:
        for text, new in written:
            if text in self.unfinished:
                if new.finish_reason:
                    self.unfinished.discard(text)
                text.deliver(new)

    def fail(self, error: BaseException) -> None:
        if not self.ready.done():
            self.ready.set_exception(error)
        else:
            self.on_failure(error)
