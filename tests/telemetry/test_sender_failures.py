"""Requests that fail side by side."""

import asyncio
import gc
from collections.abc import Sequence
from typing import Any

import pytest

from edge_agent.telemetry.sender import Sender
from edge_agent.telemetry.sinks import SinkUnavailable
from tests.telemetry.test_sender import LIMIT, Batch, Clock, ListSink, MemoryQueue, numbered, run


class FailingPair(ListSink):
    """The first two requests fail, at the same time or one after the other."""

    def __init__(self, apart: bool) -> None:
        super().__init__()
        self.apart = apart
        self.begun = 0
        self.both = asyncio.Event()

    async def send(self, events: Sequence[bytes]) -> None:
        self.begun += 1
        number = self.begun
        if number > 2:
            return await super().send(events)
        if number == 2:
            self.both.set()
        await self.both.wait()
        for _ in range(10 * number if self.apart else 0):
            await asyncio.sleep(0)
        raise SinkUnavailable(f"failure {number}")


@pytest.mark.parametrize("apart", [False, True], ids=["at once", "one after the other"])
def test_the_failure_of_each_request_is_dealt_with(apart: bool) -> None:
    async def work() -> None:
        forgotten: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: forgotten.append(context))
        queue, sink, clock = MemoryQueue(*numbered(5000)), FailingPair(apart), Clock()
        sending: Sender[Batch] = Sender(queue, sink, linger=0, clock=clock, sleep=clock.sleep)
        running = asyncio.create_task(sending.run())
        await queue.emptied()
        await sending.stop(LIMIT)
        await running
        del running
        gc.collect()

        assert forgotten == []
        assert sorted(sink.events) == sorted(numbered(5000))

    run(work)
