"""The sender between a queue and a sink, whatever the sink does."""

import asyncio
import gc
import random
import resource
import threading
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from structlog.testing import capture_logs

from edge_agent.telemetry.events.priority import Priority
from edge_agent.telemetry.queue.queue import Queue as DiskQueue
from edge_agent.telemetry.sending import pubsub as pubsub_module
from edge_agent.telemetry.sending.metering import Meter
from edge_agent.telemetry.sending.pubsub import PubSubSink
from edge_agent.telemetry.sending.sender import Sender, SenderState
from edge_agent.telemetry.sending.sinks import SinkError, SinkNeedsPerson, SinkRejected, SinkUnavailable
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
        self._tell()
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
            {"event": "events are sent again", "log_level": "info", "after_seconds": 12},
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
    monkeypatch.setattr("edge_agent.telemetry.sending.sender._HANDOVER", 0.01)

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


# -- priorities


def test_the_most_important_go_first_and_small_batches_do_not_end_the_drain() -> None:
    async def work() -> None:
        queue, sink, clock = MemoryQueue(*numbered(1200)), ListSink(), Clock()
        queue.lanes[Priority.HEALTH].extend([b"health"] * 3)
        queue.lanes[Priority.NOTICE].append(b"loss")
        queue.lanes[Priority.ALARM].extend([b"alarm"] * 2)
        await drained(sender(queue, sink, clock), queue)

        assert sink.requests[:3] == [[b"alarm"] * 2, [b"loss"], [b"health"] * 3]
        assert sorted(map(len, sink.requests[3:])) == [200, 1000]
        assert clock.slept == []

    run(work)


def test_alarm_does_not_wait_for_others_to_gather() -> None:
    async def work() -> None:
        queue, sink = MemoryQueue(*numbered(5)), ListSink()
        gathering = asyncio.Event()

        async def sleep(seconds: float) -> None:
            gathering.set()
            await asyncio.Event().wait()

        sending: Sender[Batch] = Sender(queue, sink, linger=60, sleep=sleep)
        running = asyncio.create_task(sending.run())
        await gathering.wait()
        for alarm in (b"one", b"two"):
            sink.waiting.clear()
            queue.put(alarm, priority=Priority.ALARM)
            await sink.waiting.wait()
            await _until(lambda: queue.depth == 5 and sending.state.status == "idle")
        assert sink.requests == [[b"one"], [b"two"]]
        await sending.stop(LIMIT)
        await running

        assert sink.requests[2:] == [numbered(5)]

    run(work)


class SlowForResults(ListSink):
    """A sink that takes alarms at once, and nothing else before `gate` is set."""

    async def send(self, events: Sequence[bytes]) -> None:
        if events[0].startswith(b"alarm"):
            self.requests.append(list(events))
        else:
            await super().send(events)


def test_alarm_does_not_wait_for_the_requests_under_way() -> None:
    async def work() -> None:
        queue, sink = MemoryQueue(*numbered(5000)), SlowForResults()
        sink.gate.clear()
        sending: Sender[Batch] = Sender(queue, sink, linger=0)
        running = asyncio.create_task(sending.run())
        await queue._until(lambda: len(queue.out) == 2)
        await sink.waiting.wait()
        queue.put(b"alarm", priority=Priority.ALARM)
        await queue._until(lambda: queue.depth == 5000)
        assert sink.requests == [[b"alarm"]]
        sink.gate.set()
        await queue.emptied()
        await sending.stop(LIMIT)
        await running

    run(work)


def test_alarm_that_fails_is_tried_again_without_gathering() -> None:
    async def work() -> None:
        queue, sink, clock = MemoryQueue(), ListSink(SinkUnavailable("away"), SinkUnavailable("away")), Clock()
        sending = sender(queue, sink, clock, linger=3600)
        running = asyncio.create_task(sending.run())
        await asyncio.sleep(0)
        queue.put(b"alarm", priority=Priority.ALARM)
        await queue._until(lambda: not queue.lanes[Priority.ALARM])
        await queue.emptied()
        await sending.stop(LIMIT)
        await running

        assert sink.requests == [[b"alarm"]]
        assert not sink.errors
        assert clock.now < 60

    run(work)


def test_alarms_keep_to_the_waits_of_a_sink_that_fails() -> None:
    async def work() -> None:
        queue, sink = MemoryQueue(*numbered(5)), ListSink(SinkNeedsPerson("no topic", "create it"))
        asked = asyncio.Event()

        async def sleep(seconds: float) -> None:
            asked.set()
            await asyncio.Event().wait()

        sending: Sender[Batch] = Sender(queue, sink, linger=0, sleep=sleep, clock=Clock())
        running = asyncio.create_task(sending.run())
        await asked.wait()
        sink.waiting.clear()
        queue.put(b"alarm", priority=Priority.ALARM)
        for _ in range(10):
            await asyncio.sleep(0)
        assert not sink.waiting.is_set()
        await sending.stop(LIMIT)
        await running

        assert sink.requests == [[b"alarm"], numbered(5)]

    run(work)


@pytest.mark.parametrize("refused", [1, 7])
def test_refused_alarms_do_not_block_the_results(refused: int) -> None:
    async def work() -> None:
        queue, sink, clock = MemoryQueue(*numbered(1200)), ListSink(), Clock()
        alarms = [b"alarm%d" % number for number in range(refused)]
        queue.lanes[Priority.ALARM].extend(alarms)
        sink.refused = set(alarms)
        sending = sender(queue, sink, clock)
        await drained(sending, queue)

        assert sorted(queue.rejected) == [(alarm, "bad content") for alarm in alarms]
        assert sorted(sink.events) == sorted(numbered(1200))
        assert [seconds for seconds in clock.slept if seconds >= 60] == []

    run(work)


def test_several_refused_kinds_do_not_block_the_results() -> None:
    async def work() -> None:
        queue, sink, clock = MemoryQueue(*numbered(10)), ListSink(), Clock()
        sink.refused = {b"alarm", b"loss", b"health"}
        for priority, event in ((Priority.ALARM, b"alarm"), (Priority.NOTICE, b"loss"), (Priority.HEALTH, b"health")):
            queue.lanes[priority].append(event)
        await drained(sender(queue, sink, clock), queue)

        assert {event for event, _ in queue.rejected} == sink.refused
        assert sink.events == numbered(10)
        assert [seconds for seconds in clock.slept if seconds >= 60] == []

    run(work)


def test_alarm_refused_on_its_way_is_set_aside_when_others_are_taken() -> None:
    async def work() -> None:
        queue, sink, clock = MemoryQueue(), ListSink(), Clock()
        sink.refused = {b"alarm"}
        sending = sender(queue, sink, clock)
        running = asyncio.create_task(sending.run())
        await asyncio.sleep(0)
        queue.put(b"alarm", priority=Priority.ALARM)
        await queue._until(lambda: bool(sending.state.failures))
        assert queue.rejected == []
        queue.put(b"good")
        await queue.emptied()
        await sending.stop(LIMIT)
        await running

        assert (queue.rejected, sink.events) == ([(b"alarm", "bad content")], [b"good"])

    run(work)


def test_sink_that_refuses_every_kind_loses_nothing() -> None:
    async def work() -> None:
        queue, sink, clock = MemoryQueue(*numbered(1500)), ListSink(), Clock()
        queue.lanes[Priority.ALARM].append(b"alarm")
        queue.lanes[Priority.HEALTH].append(b"health")
        everything = {b"alarm", b"health", *numbered(1500)}
        sink.refused = everything
        sending = sender(queue, sink, clock)

        async def sleep(seconds: float) -> None:
            if seconds > 1:
                assert sending.state.status == "needs_person"
                assert (queue.depth, queue.out) == (1502, [])
                sink.refused = set()
            await clock.sleep(seconds)

        sending._sleep = sleep
        await drained(sending, queue)

        assert (queue.rejected, set(sink.events)) == ([], everything)

    run(work)


# -- metered lines


class CountingSink(ListSink):
    """A sink that tells the meter of the bytes of its events."""

    def __init__(self, meter: Meter) -> None:
        super().__init__()
        self.meter = meter

    async def send(self, events: Sequence[bytes]) -> None:
        await super().send(events)
        self.meter.count(sum(map(len, events)))


def test_bandwidth_is_kept_on_average_and_alarms_do_not_wait_for_it() -> None:
    async def work() -> None:
        clock = Clock()
        meter = Meter(bandwidth=10_000, clock=clock)
        queue, sink = MemoryQueue(*[b"x" * 1000] * 100), CountingSink(meter)
        sending = sender(queue, sink, clock, meter=meter, linger=0)

        async def sleep(seconds: float) -> None:
            if len(clock.slept) == 2:
                queue.put(b"alarm", priority=Priority.ALARM)
                await queue._until(lambda: [b"alarm"] in sink.requests)
                assert len(sink.requests) == 4
            await clock.sleep(seconds)

        sending._sleep = sleep
        await drained(sending, queue)

        assert [len(request) for request in sink.requests if request != [b"alarm"]] == [20] * 5
        assert clock.now == pytest.approx(10, abs=0.01)
        assert sink.most <= 2

    run(work)


def test_used_up_budget_lets_out_what_is_important_until_the_next_day() -> None:
    async def work() -> None:
        clock = Clock()
        meter = Meter(daily_budget=100_000, clock=clock)
        queue, sink = MemoryQueue(*[b"x" * 1000] * 150), CountingSink(meter)
        sending = sender(queue, sink, clock, meter=meter, linger=0)
        states: list[SenderState] = []

        async def sleep(seconds: float) -> None:
            states.append(sending.state)
            if len(states) == 1:
                queue.put(b"health", priority=Priority.HEALTH)
                queue.put(b"loss", priority=Priority.NOTICE)
                queue.put(b"alarm", priority=Priority.ALARM)
                await queue._until(lambda: {b"loss", b"alarm"} <= set(sink.events))
            await clock.sleep(seconds)

        sending._sleep = sleep
        with capture_logs() as lines:
            await drained(sending, queue)

        assert {state.status for state in states} == {"over_budget"}
        assert states[0].reason == "the daily budget of 100kB is used up for 1d1m more"
        before = sink.events.index(b"health")
        assert sink.events[:before].count(b"x" * 1000) <= 100
        assert clock.now == pytest.approx(86_400, abs=700)
        assert len(sink.events) == 153
        assert [line["event"] for line in lines] == [
            "results and health events wait for the next day's budget",
            "within the daily budget again: all events are sent",
        ]

    run(work)


def test_larger_budget_counts_at_once() -> None:
    async def work() -> None:
        clock = Clock()
        meter = Meter(daily_budget=100_000, clock=clock)
        meter.count(100_000)
        queue, sink = MemoryQueue(*numbered(10)), CountingSink(meter)
        waiting = asyncio.Event()

        async def sleep(seconds: float) -> None:
            waiting.set()
            await asyncio.Event().wait()

        sending = sender(queue, sink, clock, meter=meter)
        sending._sleep = sleep
        running = asyncio.create_task(sending.run())
        await waiting.wait()
        assert sending.state.status == "over_budget"
        sending.configure(linger=0, bandwidth=None, daily_budget=200_000)
        await queue.emptied()
        await _until(lambda: sending.state.status == "idle")
        assert sink.events == numbered(10)
        await sending.stop(LIMIT)
        await running

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


def test_one_poison_event_in_a_thousand(tmp_path: Path, pubsub: PubSubServer) -> None:
    async def work(queue: DiskQueue, sending: Sender[Any]) -> None:
        await _until(lambda: queue.depth == 0)
        assert (queue.acked, queue.dropped) == (999, 1)
        assert [(loss.cause, loss.count) for loss in queue.losses()] == [("rejected", 1)]

    pubsub.refuse(lambda message: message.data == b'{"n":613}')
    _with_disk_queue(tmp_path, pubsub, work, 1000)

    arrived = [message.data for message in pubsub.messages(TOPIC)]
    assert sorted(arrived) == sorted(event for event in numbered(1000) if event != b'{"n":613}')
    (rejected,) = (tmp_path / "rejected.jsonl").read_text().splitlines()
    assert "613" in rejected


def test_lost_response_makes_a_duplicate_with_the_same_event_id(tmp_path: Path, pubsub: PubSubServer) -> None:
    async def work(queue: DiskQueue, sending: Sender[Any]) -> None:
        await _until(lambda: queue.depth == 0)
        assert queue.dropped == 0

    pubsub.script(LoseResponse())
    _with_disk_queue(tmp_path, pubsub, work, 500)

    arrived = Counter(message.data for message in pubsub.messages(TOPIC))
    assert arrived == dict.fromkeys(numbered(500), 2)


RETRIED = ("CANCELLED", "UNKNOWN", "DEADLINE_EXCEEDED", "ALREADY_EXISTS", "RESOURCE_EXHAUSTED", "ABORTED", "INTERNAL",
           "UNAVAILABLE", "DATA_LOSS")  # fmt: skip
PERSON = ("NOT_FOUND", "PERMISSION_DENIED", "UNAUTHENTICATED", "FAILED_PRECONDITION", "UNIMPLEMENTED")
CONTENT = ("INVALID_ARGUMENT", "OUT_OF_RANGE")


def test_every_status_is_told_apart() -> None:
    assert {*RETRIED, *PERSON, *CONTENT, "OK"} == {code.name for code in grpc.StatusCode}


@pytest.mark.parametrize("code", [*RETRIED, *PERSON, *CONTENT])
def test_each_status_for_a_while(pubsub: PubSubServer, code: str) -> None:
    async def work() -> None:
        queue, clock = MemoryQueue(*numbered(1500)), Clock()
        sink = PubSubSink("project", "events", emulator=pubsub.address)
        sending: Sender[Batch] = Sender(queue, sink, linger=0, clock=clock, sleep=clock.sleep, chance=lambda: 0.0)
        statuses: set[str] = set()

        async def sleep(seconds: float) -> None:
            statuses.add(sending.state.status)
            assert (queue.depth, queue.out) == (1500, [])
            await clock.sleep(seconds)

        sending._sleep = sleep
        with capture_logs() as lines:
            await drained(sending, queue)
        assert sorted(message.data for message in pubsub.messages(TOPIC)) == sorted(numbered(1500))
        assert queue.rejected == []
        waits = [seconds for seconds in clock.slept if seconds]
        if code in RETRIED:
            assert (statuses, waits[:3]) == ({"offline"}, [0.5, 1.0, 2.0])
        elif code in PERSON:
            assert (statuses, waits[:3]) == ({"needs_person"}, [60.0, 120.0, 240.0])
            assert [line["log_level"] for line in lines] == ["error", "info"]
        else:
            assert (statuses, waits) == (set(), [])

    pubsub.script(Fail(code), times=5)
    run(work)


def test_hung_server(tmp_path: Path, pubsub: PubSubServer) -> None:
    async def work(queue: DiskQueue, sending: Sender[Any]) -> None:
        await _until(lambda: queue.depth == 0)

    pubsub.script(Hang())
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


@pytest.mark.parametrize("away", [3.0, 20.0, 61.7, 600.0])
@pytest.mark.parametrize("hangs", [False, True], ids=["refused", "hung"])
def test_events_flow_within_ten_seconds_after_the_server_is_back(away: float, hangs: bool) -> None:
    """With gRPC as it is at its slowest: a refused connection is tried again only after the longest wait."""

    async def work() -> None:
        clock = Clock()
        backoff = dict(pubsub_module._OPTIONS)["grpc.max_reconnect_backoff_ms"] / 1000 * 1.2

        class Away(ListSink):
            connects = 0.0

            async def send(self, events: Sequence[bytes]) -> None:
                if clock.now < away and hangs:
                    clock.now += pubsub_module._PATIENCE
                    raise SinkUnavailable("hung")
                if clock.now >= self.connects and clock.now < away:
                    self.connects = clock.now + backoff
                if clock.now < max(away, self.connects):
                    raise SinkUnavailable("refused")
                await super().send(events)

        queue, sink = MemoryQueue(*numbered(10)), Away()
        await drained(sender(queue, sink, clock, chance=random.Random(away).random), queue)

        assert away <= clock.now <= away + 10

    run(work)


def test_days_offline_cost_neither_threads_nor_memory(pubsub: PubSubServer) -> None:
    pubsub.stop()

    async def work() -> None:
        queue, clock = MemoryQueue(*numbered(1000)), Clock()
        sink = PubSubSink("project", "events", emulator=pubsub.address)
        sending: Sender[Batch] = Sender(queue, sink, linger=0.25, clock=clock, sleep=clock.sleep)
        running = asyncio.create_task(sending.run())
        await _until(lambda: sending.state.failures >= 200)
        threads, memory = _threads(), _memory()
        await _until(lambda: sending.state.failures >= 1200)
        # Of gRPC and other tests a few more may wake up; one for each failure would be 1000.
        assert _threads() < threads + 20
        assert _memory() - memory < 2_000_000
        await sending.stop(LIMIT)
        await running
        assert queue.depth == 1000

    run(work)


def _threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def _memory() -> int:
    """What this process has in memory, in bytes."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
