"""Requests that fail side by side, and for a long time."""

import asyncio
import gc
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from edge_agent.telemetry.queue.queue import Queue as DiskQueue
from edge_agent.telemetry.sending.pubsub import PubSubSink
from edge_agent.telemetry.sending.sender import Sender
from edge_agent.telemetry.sending.sinks import SinkUnavailable
from tests.servers.pubsub import Fail, Fault, Hang, LoseResponse, PubSubServer
from tests.telemetry.queue.queue_kit import MB
from tests.telemetry.sending.test_sender import LIMIT, TOPIC, Batch, Clock, ListSink, MemoryQueue, numbered, run


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


# -- a server that has a bad time, with the real client library

RETRIED = (
    "UNAVAILABLE",
    "RESOURCE_EXHAUSTED",
    "ABORTED",
    "INTERNAL",
    "UNKNOWN",
    "DEADLINE_EXCEEDED",
    "CANCELLED",
)
PERSONS = ("PERMISSION_DENIED", "UNAUTHENTICATED", "NOT_FOUND")
FAULTS: dict[str, tuple[Fault, ...]] = {
    "every status": tuple(Fail(code) for code in (*RETRIED, *PERSONS)),
    "hung": (Hang(),),
    "answer lost": (LoseResponse(),),
}


@pytest.mark.parametrize("faults", FAULTS.values(), ids=FAULTS)
def test_a_long_bad_time_costs_neither_memory_nor_threads_nor_events(
    tmp_path: Path, pubsub: PubSubServer, faults: tuple[Fault, ...]
) -> None:
    hung = faults == FAULTS["hung"]
    first, last = (10, 40) if hung else (50, 250)
    events = [b'{"event_id":"d/1/%d"}' % number for number in range(1500)]

    async def work() -> None:
        async with DiskQueue(tmp_path, max_size=10**8, commit_interval=1, boot_id="boot") as queue:
            queue.put(queue.next_number, events, 1, 2)
            sink = PubSubSink("project", "events", emulator=pubsub.address, patience=0.03 if hung else 8.0)
            clock = Clock()
            sending: Sender[Any] = Sender(queue, sink, linger=0.25, clock=clock, sleep=clock.sleep)
            running = asyncio.create_task(sending.run())
            await until(lambda: sending.state.failures >= first)
            threads, memory = usage()
            await until(lambda: sending.state.failures >= last)
            more_threads, more_memory = usage()
            # Of the test's own server and of gRPC a few more may wake up; one for each failure would be 200, or 30.
            assert more_threads < threads + (last - first) // 3
            assert more_memory <= memory + 8 * MB
            assert queue.depth == len(events)
            sink._patience = 8.0  # from now on no answer is too late
            pubsub.clear()
            await until(lambda: queue.depth == 0)
            await sending.stop(LIMIT)
            await running
            assert queue.dropped == 0

    pubsub.script(*faults, times=1000)
    run(work)
    arrived = [message.data for message in pubsub.messages(TOPIC)]
    assert set(arrived) == set(events)
    # A request that is on its way as the server comes back may be answered too late for its sender.
    assert len(arrived) == len(events) or hung or faults == FAULTS["answer lost"]


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110  # neither the queue nor the sender tells when; LIMIT ends it
        await asyncio.sleep(0.001)


def usage() -> tuple[int, int]:
    """Threads and resident bytes of this process."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return len(list(Path("/proc/self/task").iterdir())), pages * os.sysconf("SC_PAGE_SIZE")
