"""The sender between a queue and a sink, whatever the sink does."""

import asyncio
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from edge_agent.telemetry.priority import Priority
from edge_agent.telemetry.pubsub import PubSubSink
from edge_agent.telemetry.queue import Queue as DiskQueue
from edge_agent.telemetry.sender import Sender, SenderState
from edge_agent.telemetry.sinks import SinkError, SinkNeedsPerson, SinkRejected, SinkUnavailable
from tests.servers.pubsub import Fail, Hang, LoseResponse, PubSubServer

TOPIC = "projects/project/topics/events"
LIMIT = 60


@dataclass(eq=False)
class Batch:
    events: list[bytes]
    priority: Priority = Priority.RESULT


class MemoryQueue:
    """What the sender needs of a queue, in memory."""

    def __init__(self, *events: bytes) -> None:
        self.lanes: dict[Priority, deque[bytes]] = {priority: deque() for priority in Priority}
        self.waiting = self.lanes[Priority.RESULT]
        self.waiting.extend(events)
        self.out: list[Batch] = []
        self.rejected: list[tuple[bytes, str]] = []
        self.changed = asyncio.Condition()

    @property
    def depth(self) -> int:
        return sum(map(len, self.lanes.values())) + sum(len(batch.events) for batch in self.out)

    def put(self, *events: bytes, priority: Priority = Priority.RESULT) -> None:
        self.lanes[priority].extend(events)
        self._tell()

    def _tell(self) -> None:
        async def tell() -> None:
            async with self.changed:
                self.changed.notify_all()

        asyncio.get_running_loop().create_task(tell())

    async def _until(self, condition: Callable[[], bool]) -> None:
        async with self.changed:
            await self.changed.wait_for(condition)

    async def wait(self, least: Priority = Priority.RESULT) -> None:
        await self._until(lambda: any(lane for priority, lane in self.lanes.items() if priority <= least))

    async def take(self, max_events: int, max_bytes: int, least: Priority = Priority.RESULT) -> Batch | None:
        priority = next((priority for priority, lane in self.lanes.items() if lane and priority <= least), None)
        if priority is None:
            return None
        lane, events = self.lanes[priority], list[bytes]()
        while lane and len(events) < max_events:
            if events and sum(map(len, events)) + len(lane[0]) > max_bytes:
                break
            events.append(lane.popleft())
        self.out.append(Batch(events, priority))
        return self.out[-1]

    def ack(self, batch: Batch) -> None:
        self.out.remove(batch)
        self._tell()

    def reject(self, batch: Batch, index: int, reason: str) -> None:
        assert batch in self.out
        self.rejected.append((batch.events[index], reason))

    def release(self, batch: Batch) -> None:
        self.out.remove(batch)
        self.lanes[batch.priority].extendleft(reversed(batch.events))
        self._tell()

    async def emptied(self) -> None:
        """Return when everything was acknowledged."""
        await self._until(lambda: self.depth == 0)


class ListSink:
    """A sink that keeps what it gets, and first raises what it was given to raise."""

    description = "list"

    def __init__(self, *errors: SinkError | None) -> None:
        self.errors = deque(errors)
        self.requests: list[list[bytes]] = []
        self.refused: set[bytes] = set()
        self.closed = False
        self.gate = asyncio.Event()
        self.gate.set()
        self.waiting = asyncio.Event()
        self.most = 0
        self._under_way = 0

    @property
    def events(self) -> list[bytes]:
        return [event for request in self.requests for event in request]

    async def send(self, events: Sequence[bytes]) -> None:
        self._under_way += 1
        self.most = max(self.most, self._under_way)
        try:
            self.waiting.set()
            await asyncio.sleep(0)
            await self.gate.wait()
        finally:
            self._under_way -= 1
        if self.closed:
            raise SinkUnavailable("closed")
        if self.errors and (error := self.errors.popleft()) is not None:
            raise error
        if self.refused.intersection(events):
            raise SinkRejected("bad content")
        self.requests.append(list(events))

    async def close(self) -> None:
        self.closed = True
        self.gate.set()


class Clock:
    """Time passes only when somebody sleeps, and then at once."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)


def numbered(count: int, start: int = 0) -> list[bytes]:
    return [b'{"n":%d}' % number for number in range(start, start + count)]


def run(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(LIMIT):
            await work()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        assert not others, f"tasks left behind: {others}"

    asyncio.run(limited())


def sender(queue: MemoryQueue, sink: ListSink, clock: Clock, **options: Any) -> Sender[Batch]:
    options = {"linger": 0.25, "chance": lambda: 0.0, **options}
    return Sender(queue, sink, clock=clock, sleep=clock.sleep, **options)


async def drained(sending: Sender[Batch], queue: MemoryQueue) -> None:
    """Run the sender until the queue is empty, then stop it."""
    running = asyncio.create_task(sending.run())
    await queue.emptied()
    await sending.stop(LIMIT)
    await running


def test_drains_in_full_batches() -> None:
    async def work() -> None:
        queue, sink, clock = MemoryQueue(*numbered(2500)), ListSink(), Clock()
        sending = sender(queue, sink, clock)
        await drained(sending, queue)

        assert sorted(map(len, sink.requests)) == [500, 1000, 1000]
        assert sorted(sink.events) == sorted(numbered(2500))
        assert clock.slept == []
        assert sending.state == SenderState("idle", "", 0.0, 2500, 3, 0)
        assert sink.closed

    run(work)


def test_batches_are_bounded_in_bytes() -> None:
    async def work() -> None:
        queue, sink = MemoryQueue(*[b"x" * 4_000_000] * 3), ListSink()
        await drained(sender(queue, sink, Clock()), queue)

        assert sorted(map(len, sink.requests)) == [1, 2]

    run(work)


def test_lingers_to_gather() -> None:
    async def work() -> None:
        queue, sink, clock = MemoryQueue(*numbered(1)), ListSink(), Clock()

        async def sleep(seconds: float) -> None:
            queue.put(*numbered(1, len(clock.slept) + 1))
            await clock.sleep(seconds)

        sending: Sender[Batch] = Sender(queue, sink, linger=0.6, clock=clock, sleep=sleep)
        await drained(sending, queue)

        assert sink.requests == [numbered(4)]
        assert clock.slept == pytest.approx([0.25, 0.25, 0.1])

    run(work)


def test_full_batch_does_not_wait_for_the_rest_of_the_linger_time() -> None:
    async def work() -> None:
        queue, sink, clock = MemoryQueue(*numbered(1)), ListSink(), Clock()

        async def sleep(seconds: float) -> None:
            queue.put(*numbered(999, 1))
            await clock.sleep(seconds)

        sending: Sender[Batch] = Sender(queue, sink, linger=10, clock=clock, sleep=sleep)
        await drained(sending, queue)

        assert sink.requests == [numbered(1000)]
        assert clock.slept == [0.25]

    run(work)


def test_two_requests_at_a_time() -> None:
    async def work() -> None:
        queue, sink = MemoryQueue(*numbered(5000)), ListSink()
        await drained(sender(queue, sink, Clock()), queue)

        assert sink.most == 2
        assert sorted(sink.events) == sorted(numbered(5000))

    run(work)


def test_waits_longer_after_each_failure_and_begins_small() -> None:
    async def work() -> None:
        queue, sink, clock = MemoryQueue(*numbered(1000)), ListSink(*[SinkUnavailable("away")] * 6), Clock()
        await drained(sender(queue, sink, clock), queue)

        waits = [seconds for seconds in clock.slept if seconds != 0.25]
        assert waits == [0.5, 1, 2, 4, 5, 5]
        assert [len(request) for request in sink.requests] == [16, 64, 256, 664]
        assert sink.events == numbered(1000)

    run(work)


def test_wait_counts_from_the_beginning_of_the_request() -> None:
    async def work() -> None:
        clock = Clock()

        class SlowSink(ListSink):
            async def send(self, events: Sequence[bytes]) -> None:
                clock.now += 0.3
                await super().send(events)

        queue, sink = MemoryQueue(*numbered(1)), SlowSink(SinkUnavailable("away"))
        await drained(sender(queue, sink, clock, linger=0.0), queue)

        assert clock.slept == pytest.approx([0.2])

    run(work)


def test_state_and_log_of_an_outage() -> None:
    async def work() -> None:
        queue, sink, clock = MemoryQueue(*numbered(10)), ListSink(*[SinkUnavailable("away")] * 5), Clock()
        sending = sender(queue, sink, clock)
        states: list[SenderState] = []

        async def sleep(seconds: float) -> None:
            states.append(sending.state)
            await clock.sleep(seconds)

        sending._sleep = sleep
        with capture_logs() as lines:
            await drained(sending, queue)

        offline = [state for state in states if state.status == "offline"]
        assert {(state.reason, state.since) for state in offline} == {("away", 0.25)}
        assert max(state.failures for state in offline) == 5
        assert (sending.state.status, sending.state.reason, sending.state.failures) == ("idle", "", 0)
        assert lines == [
            {"event": "events cannot be sent for now and are kept", "log_level": "warning", "reason": "away"},
            {"event": "events are sent again", "log_level": "info", "after_seconds": 14},
        ]

    run(work)


def test_a_sink_that_comes_and_goes_does_not_fill_the_log() -> None:
    async def work() -> None:
        queue, sink = MemoryQueue(*numbered(20_000)), ListSink(*[SinkUnavailable("away"), None] * 50)
        with capture_logs() as lines:
            await drained(sender(queue, sink, Clock()), queue)

        assert len(lines) <= 4

    run(work)


def test_needs_person_retries_slowly_and_says_so_once() -> None:
    async def work() -> None:
        errors = [SinkNeedsPerson("no topic", "create it")] * 5
        queue, sink, clock = MemoryQueue(*numbered(3)), ListSink(*errors), Clock()
        sending = sender(queue, sink, clock)
        with capture_logs() as lines:
            await drained(sending, queue)

        assert [seconds for seconds in clock.slept if seconds != 0.25] == [60, 120, 240, 300, 300]
        assert sink.events == numbered(3)
        assert [line["event"] for line in lines] == [
            "events cannot be sent until somebody acts",
            "events are sent again",
        ]
        assert (lines[0]["reason"], lines[0]["what_to_do"]) == ("no topic", "create it")

    run(work)


@pytest.mark.parametrize("poison", [[0], [999], [500, 501], [3, 400, 401, 402, 403, 404, 998], list(range(20))])
def test_poison_events_are_set_aside_and_the_others_arrive(poison: list[int]) -> None:
    async def work() -> None:
        events = numbered(1000)
        queue, sink = MemoryQueue(*events), ListSink()
        sink.refused = {events[number] for number in poison}
        await drained(sender(queue, sink, Clock()), queue)

        assert sorted(queue.rejected) == sorted((events[number], "bad content") for number in poison)
        assert sorted(sink.events) == sorted(set(events) - sink.refused)

    run(work)


def test_sink_that_refuses_everything_loses_nothing() -> None:
    async def work() -> None:
        events = numbered(1000)
        queue, sink, clock = MemoryQueue(*events), ListSink(), Clock()
        sink.refused = set(events)
        sending = sender(queue, sink, clock)
        seen: list[SenderState] = []

        async def sleep(seconds: float) -> None:
            seen.append(sending.state)
            if len(seen) == 3:
                sink.refused = set()
            await clock.sleep(seconds)

        sending._sleep = sleep
        await drained(sending, queue)

        assert {state.status for state in seen} == {"needs_person"}
        assert seen[0].reason == (
            "bad content; none of 1000 events was taken; find out why they are refused; they stay in the queue "
            "until then"
        )
        assert queue.rejected == []
        assert sorted(sink.events) == sorted(events)

    run(work)


def test_lone_poison_event_waits_for_others_to_prove_the_sink() -> None:
    async def work() -> None:
        queue, sink, clock = MemoryQueue(b"poison"), ListSink(), Clock()
        sink.refused = {b"poison"}
        sending = sender(queue, sink, clock)

        async def sleep(seconds: float) -> None:
            if seconds > 1:
                assert queue.rejected == []
                queue.put(b"good")
            await clock.sleep(seconds)

        sending._sleep = sleep
        await drained(sending, queue)

        assert (queue.rejected, sink.events) == ([(b"poison", "bad content")], [b"good"])

    run(work)


def test_failure_in_the_middle_of_a_bisection_rejects_nothing_yet() -> None:
    async def work() -> None:
        events = numbered(8)
        queue, sink = MemoryQueue(*events), ListSink(None, None, SinkUnavailable("away"))
        sink.refused = {events[5]}
        await drained(sender(queue, sink, Clock()), queue)

        assert queue.rejected == [(events[5], "bad content")]
        assert set(sink.events) == set(events) - {events[5]}

    run(work)


def test_stop_sends_the_rest_without_lingering() -> None:
    async def work() -> None:
        queue, sink = MemoryQueue(), ListSink()
        sending: Sender[Batch] = Sender(queue, sink, linger=3600)
        running = asyncio.create_task(sending.run())
        await asyncio.sleep(0)
        queue.put(*numbered(1500))
        await sending.stop(LIMIT)
        await running

        assert sorted(sink.events) == sorted(numbered(1500))
        assert sink.closed

    run(work)


def test_stop_gives_up_what_hangs_and_keeps_it() -> None:
    async def work() -> None:
        queue, sink = MemoryQueue(*numbered(5000)), ListSink()
        sink.gate.clear()
        sending: Sender[Batch] = Sender(queue, sink, linger=0)
        running = asyncio.create_task(sending.run())
        await sink.waiting.wait()
        with capture_logs() as lines:
            await sending.stop(0.01)
            await running

        assert lines == []
        assert sorted(queue.waiting) == sorted(numbered(5000))
        assert (queue.out, sink.requests) == ([], [])

    run(work)


def test_stop_while_offline_tries_once_more() -> None:
    async def work() -> None:
        queue, sink = MemoryQueue(*numbered(5)), ListSink(SinkNeedsPerson("no topic", "create it"))
        offline = asyncio.Event()

        async def sleep(seconds: float) -> None:
            if seconds > 1:
                offline.set()
                await asyncio.Event().wait()

        sending: Sender[Batch] = Sender(queue, sink, linger=0, sleep=sleep, clock=Clock())
        running = asyncio.create_task(sending.run())
        await offline.wait()
        await sending.stop(LIMIT)
        await running

        assert sink.events == numbered(5)

    run(work)


def test_stop_before_run() -> None:
    async def work() -> None:
        sink = ListSink()
        await Sender(MemoryQueue(), sink, linger=0).stop(LIMIT)

        assert sink.closed

    run(work)


def test_cancelled_sender_releases_its_batches() -> None:
    async def work() -> None:
        queue, sink = MemoryQueue(*numbered(10)), ListSink()
        sink.gate.clear()
        running = asyncio.create_task(Sender(queue, sink, linger=0).run())
        await sink.waiting.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

        assert (list(queue.waiting), queue.out) == (numbered(10), [])

    run(work)


def test_new_sink_takes_over_at_once_and_the_old_one_is_closed() -> None:
    async def work() -> None:
        queue, old, new = MemoryQueue(*numbered(5)), ListSink(SinkNeedsPerson("no topic", "create it")), ListSink()
        asked = asyncio.Event()

        async def sleep(seconds: float) -> None:
            if seconds > 1:
                asked.set()
                await asyncio.Event().wait()

        sending: Sender[Batch] = Sender(queue, old, linger=0, sleep=sleep, clock=Clock())
        running = asyncio.create_task(sending.run())
        await asked.wait()
        await sending.replace_sink(new)
        await queue.emptied()
        await sending.stop(LIMIT)
        await running

        assert (old.closed, old.requests, new.events) == (True, [], numbered(5))

    run(work)


def test_request_under_way_ends_before_its_sink_is_closed() -> None:
    async def work() -> None:
        queue, old, new = MemoryQueue(*numbered(5)), ListSink(), ListSink()
        old.gate.clear()
        sending: Sender[Batch] = Sender(queue, old, linger=0)
        running = asyncio.create_task(sending.run())
        await old.waiting.wait()
        replacing = asyncio.create_task(sending.replace_sink(new))
        await asyncio.sleep(0)
        queue.put(b"next")
        old.gate.set()
        await replacing
        await queue.emptied()
        await sending.stop(LIMIT)
        await running

        assert (old.events, new.events) == (numbered(5), [b"next"])

    run(work)


def test_request_that_hangs_is_released_to_the_new_sink(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_agent.telemetry.sender._HANDOVER", 0.01)

    async def work() -> None:
        queue, old, new = MemoryQueue(*numbered(5)), ListSink(), ListSink()
        old.gate.clear()
        sending: Sender[Batch] = Sender(queue, old, linger=0)
        running = asyncio.create_task(sending.run())
        await old.waiting.wait()
        with capture_logs() as lines:
            await sending.replace_sink(new)
            await queue.emptied()
            await sending.stop(LIMIT)
            await running

        assert (old.events, new.events) == ([], numbered(5))
        assert lines == []  # the old sink's failure is not the new one's

    run(work)


# -- with a real server and the real queue


def _with_disk_queue(
    folder: Path, server: PubSubServer, work: Callable[[DiskQueue, Sender[Any]], Awaitable[None]], count: int
) -> None:
    async def everything() -> None:
        async with DiskQueue(folder, max_size=10**8, commit_interval=1, boot_id="boot") as queue:
            queue.put(queue.next_number, numbered(count), 1, 2)
            sink = PubSubSink("project", "events", emulator=server.address, patience=0.3)
            sending: Sender[Any] = Sender(queue, sink, linger=0.01)
            running = asyncio.create_task(sending.run())
            await work(queue, sending)
            await sending.stop(LIMIT)
            await running

    run(everything)
    assert "pubsub" not in {thread.name for thread in threading.enumerate()}


async def _until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110  # neither the queue nor the sender tells when; LIMIT ends it
        await asyncio.sleep(0.001)


def test_through_the_disk_queue_to_the_server(tmp_path: Path, pubsub: PubSubServer) -> None:
    async def work(queue: DiskQueue, sending: Sender[Any]) -> None:
        await _until(lambda: queue.depth == 0)

    pubsub.refuse(lambda message: message.data in {b'{"n":7}', b'{"n":1234}'})
    _with_disk_queue(tmp_path, pubsub, work, 3000)

    refused = {b'{"n":7}', b'{"n":1234}'}
    assert sorted(message.data for message in pubsub.messages(TOPIC)) == sorted(set(numbered(3000)) - refused)


@pytest.mark.parametrize(
    "faults",
    [
        [Hang()],
        [LoseResponse()],
        [Fail(code) for code in ("UNAVAILABLE", "RESOURCE_EXHAUSTED", "ABORTED", "INTERNAL")],
        [Fail(code) for code in ("UNKNOWN", "DEADLINE_EXCEEDED", "CANCELLED", "DATA_LOSS")],
    ],
    ids=["hung", "response lost", "four statuses", "four others"],
)
def test_nothing_is_lost_on_a_bad_server(tmp_path: Path, pubsub: PubSubServer, faults: list[Any]) -> None:
    async def work(queue: DiskQueue, sending: Sender[Any]) -> None:
        await _until(lambda: queue.depth == 0)

    pubsub.script(*faults)
    _with_disk_queue(tmp_path, pubsub, work, 1500)

    assert {message.data for message in pubsub.messages(TOPIC)} == set(numbered(1500))


def test_server_away_and_back(tmp_path: Path, pubsub: PubSubServer) -> None:
    pubsub.stop()

    async def work(queue: DiskQueue, sending: Sender[Any]) -> None:
        await _until(lambda: sending.state.status == "offline")
        assert "Connection refused" in sending.state.reason
        pubsub.start()
        await _until(lambda: queue.depth == 0)

    _with_disk_queue(tmp_path, pubsub, work, 1500)

    assert {message.data for message in pubsub.messages(TOPIC)} == set(numbered(1500))


def test_days_offline_cost_no_threads(pubsub: PubSubServer) -> None:
    pubsub.stop()

    async def work() -> None:
        queue, clock = MemoryQueue(*numbered(1000)), Clock()
        sink = PubSubSink("project", "events", emulator=pubsub.address)
        sending: Sender[Batch] = Sender(queue, sink, linger=0.25, clock=clock, sleep=clock.sleep)
        running = asyncio.create_task(sending.run())
        await _until(lambda: sending.state.failures >= 20)
        before = _threads()
        await _until(lambda: sending.state.failures >= 500)
        assert _threads() <= before + 1
        await sending.stop(LIMIT)
        await running
        assert queue.depth == 1000

    run(work)


def _threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))
