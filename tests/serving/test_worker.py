"""Laws of the engine thread."""

import asyncio
import threading

import pytest

from lightning_app.generation.generate import sample_rng
from lightning_app.serving.batch import Text, make_batch
from lightning_app.serving.worker import Worker
from tests.helpers import TOKENIZER, options, writing_network


def text(deliver, length: int = 20) -> Text:
    o = options(max_new_tokens=length)
    return Text(TOKENIZER, [1, 2], sample_rng(0, 0, 0), o, deliver=deliver)


def run(scenario, make=None) -> list[BaseException]:
    """Run a scenario with a worker; returns the errors that were reported. The thread has ended."""
    failures: list[BaseException] = []

    async def main() -> None:
        worker = Worker(make or (lambda: make_batch(writing_network(), 2)), failures.append)
        try:
            await worker.start()
            await scenario(worker)
        finally:
            await worker.stop()
        assert not worker.thread.is_alive()

    asyncio.run(main())
    return failures


def test_texts_are_delivered_on_the_event_loops_thread_in_order():
    async def scenario(worker):
        parts, threads, done = [], set(), asyncio.Event()

        def deliver(written):
            parts.append(written.ids)
            threads.add(threading.current_thread())
            if written.finish_reason:
                done.set()

        worker.write([text(deliver)])
        await done.wait()
        assert parts == sorted(parts)
        assert parts[-1] == 20
        assert threads == {threading.main_thread()}
        assert not worker.unfinished

    assert run(scenario) == []


def test_nothing_is_delivered_of_a_cancelled_text():
    async def scenario(worker):
        other = asyncio.Event()
        endless = text(lambda written: pytest.fail("delivered"), 10**9)
        worker.write([endless])
        worker.cancel([endless])
        worker.cancel([endless])  # again: nothing happens
        worker.write([text(lambda written: written.finish_reason and other.set())])
        await other.wait()

    assert run(scenario) == []


def test_an_error_in_the_thread_is_reported_and_not_swallowed():
    def make():
        batch = make_batch(writing_network(), 2)
        batch.step = lambda: 1 / 0
        return batch

    async def scenario(worker):
        worker.write([text(lambda written: None)])
        while worker.thread.is_alive():
            await asyncio.sleep(0.01)

    (error,) = run(scenario, make)
    assert isinstance(error, ZeroDivisionError)


def test_an_error_while_the_batch_is_made_is_raised_by_start():
    with pytest.raises(ZeroDivisionError):
        run(lambda worker: None, lambda: 1 / 0)
