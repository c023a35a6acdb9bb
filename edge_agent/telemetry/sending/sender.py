"""Takes events from the queue and gives them to a sink, as long as it takes.

- A batch is out of the queue only while a request is under way: after a failure it is released, so that the queue
  alone decides what is kept. Nothing is acknowledged before the sink has taken it.
- The queue hands out the most important events first. An alarm does not even wait for the requests under way.
- After a failure the next request is small (`_PROBE_EVENTS`), and grows again with each success: a try on a bad
  network costs little, and a slow link finds the size that it can carry.
- Tries are at most `_RETRY_CAP` seconds apart, counted from the beginning of the one before, so that events flow
  within ten seconds after a server is back.
- An event is given up only when the sink refuses it alone and takes others. A batch that is refused whole is put by
  until the sink has said what it does with less important ones: a refused alarm does not block the results, and a
  sink that refuses everything has a trouble of its own, about which a person is asked.
"""

import asyncio
import contextlib
import functools
import random
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Generic, Protocol, TypeVar

from edge_agent.telemetry.events.priority import Priority
from edge_agent.telemetry.sending.backoff import Backoff
from edge_agent.telemetry.sending.bisection import RefusesAll, send_divided
from edge_agent.telemetry.sending.metering import Meter
from edge_agent.telemetry.sending.sending_state import SenderState, SendingRecord
from edge_agent.telemetry.sending.sinks import Sink, SinkError, SinkNeedsPerson, SinkUnavailable

__all__ = ["Sender", "SenderState"]

MAX_EVENTS = 1000
MAX_BYTES = 9_000_000
"""Bounds of one batch: what Pub/Sub takes in one request, less attributes and framing."""

_PROBE_EVENTS = 16
_PROBE_BYTES = 16_000
_GROWTH = 4
_IN_FLIGHT = 2
"""Requests at a time: on a line with a delay of 50 ms, two carry twice as much as one."""
_LINGER_STEP = 0.25
"""Seconds after which a gathering batch is looked at, whether it is full before its time."""
_RETRY_FIRST = 0.5
_RETRY_CAP = 5.0
_PERSON_FIRST = 60.0
_PERSON_CAP = 300.0
_BUDGET_LOOK = 600.0
"""Seconds after which a used up budget is looked at again: the clock may have been set since."""
_HANDOVER = 5.0
"""Seconds that a request under way may still take when its sink is replaced."""


class Batch(Protocol):
    """Events taken from the queue, which are in it until they are acknowledged."""

    @property
    def events(self) -> Sequence[bytes]: ...
    @property
    def priority(self) -> Priority: ...


B = TypeVar("B", bound=Batch)


class Queue(Protocol[B]):
    """What the sender needs of the queue."""

    @property
    def depth(self) -> int:
        """Events not acknowledged yet."""
        ...

    async def wait(self, least: Priority = Priority.RESULT) -> None:
        """Return when there may be something to take that is at least so important; not at once after a None."""
        ...

    async def take(self, max_events: int, max_bytes: int, least: Priority = Priority.RESULT) -> B | None:
        """Hand out the most important events, all of one priority and the oldest of it; None if there are none."""
        ...

    def ack(self, batch: B) -> None:
        """Forget the batch: it has arrived."""
        ...

    def reject(self, batch: B, index: int, reason: str) -> None:
        """Set one event of the batch aside for good, and count it as lost."""
        ...

    def release(self, batch: B) -> None:
        """Put the batch back where it came from."""
        ...


class Sender(Generic[B]):
    """Sends what is in the queue until it is stopped.

    `linger` is how long events gather before a request, in seconds. `meter` holds it to a bandwidth and a budget;
    the sink counts. `clock`, `sleep` and `chance` (a number in [0, 1)) are for tests.
    """

    def __init__(
        self,
        queue: Queue[B],
        sink: Sink,
        *,
        linger: float,
        meter: Meter | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.linger = linger
        self._queue = queue
        self._sink = sink
        self._meter = meter or Meter()
        self._clock = clock
        self._sleep = sleep
        self._retry = Backoff(_RETRY_FIRST, _RETRY_CAP, chance=chance)
        self._ask = Backoff(_PERSON_FIRST, _PERSON_CAP, jitter=0.2, chance=chance)
        self._size = _Size()
        self._record = SendingRecord(clock)
        self._taking = asyncio.Lock()
        self._in_flight: set[asyncio.Task[None]] = set()
        self._put_by: dict[B, RefusesAll] = {}
        self._request_started = clock()
        self._interrupt = asyncio.Event()
        self._hurry = asyncio.Event()  # no time for gathering
        self._works = asyncio.Event()  # no request has failed since the last that did not
        self._works.set()
        self._stopping = False
        self._halted = False
        self._ended: asyncio.Event | None = None

    @property
    def state(self) -> SenderState:
        """How sending goes now."""
        return self._record.state

    async def run(self) -> None:
        """Send until `stop`. Cancelled, it puts back into the queue what was under way."""
        self._ended = asyncio.Event()
        try:
            async with asyncio.TaskGroup() as group:
                alarms = group.create_task(self._send_alarms())
                while not self._stopping:
                    self._interrupt.clear()
                    self._hurry.clear()
                    await self._unless(self._gather(), self._interrupt, self._hurry)
                    await self._round()
                await self._round()
                alarms.cancel()
        finally:
            await self._call_back()
            self._ended.set()

    async def stop(self, deadline: float) -> None:
        """Send what can be sent within `deadline` seconds, then close the sink. The rest stays in the queue."""
        self._stopping = True
        self._interrupt.set()
        if self._ended is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), deadline)
        self._halted = True
        await self._call_back()
        await self._sink.close()
        await self._meter.save(exactly=True)

    def configure(self, *, linger: float, bandwidth: int | None, daily_budget: int | None) -> None:
        """Take over changed settings at once."""
        self.linger = linger
        self._meter.configure(bandwidth=bandwidth, daily_budget=daily_budget)
        self._hurry.set()

    async def replace_sink(self, sink: Sink) -> None:
        """Send to `sink` from now on, and close the old one; requests under way have a few seconds to end."""
        old, self._sink = self._sink, sink
        self._retry.reset()
        self._ask.reset()
        self._size.reset()
        self._interrupt.set()
        if self._in_flight:
            await asyncio.wait(set(self._in_flight), timeout=_HANDOVER)
        await old.close()

    async def _gather(self) -> None:
        if self._meter.used_up:
            self._record.over_budget(self._meter.explain())
            await self._meter.save()
            await self._first(self._queue.wait(Priority.NOTICE), self._sleep(min(_BUDGET_LOOK, self._meter.renewal())))
            return
        await self._queue.wait()
        if not self._works.is_set():
            return  # enough has gathered, and the next try is due
        end = self._clock() + self.linger
        while self._queue.depth < MAX_EVENTS and (rest := end - self._clock()) > 0:
            await self._sleep(min(rest, _LINGER_STEP))

    async def _round(self) -> None:
        sink = self._sink
        try:
            await self._pump(sink)
        except SinkError as error:
            if sink is self._sink and not self._halted:
                await self._failed(error)
        else:
            self._record.idle()

    async def _failed(self, error: SinkError) -> None:
        self._works.clear()
        if isinstance(error, RefusesAll):
            self._size.reset()  # with more events there is one sooner that the sink takes
        else:
            self._size.shrink()
        self._record.failed(error)
        if self._stopping:
            return
        wait = self._ask.next() if isinstance(error, SinkNeedsPerson) else self._retry.next()
        passed = self._clock() - self._request_started
        await self._unless(self._sleep(max(0.0, wait - passed)), self._interrupt)

    async def _pump(self, sink: Sink) -> None:
        """Send until nothing is left, or until a request fails; raises its error when the others have ended."""
        failure: BaseException | None = None
        drained = False
        try:
            while True:
                failure = _gravest(failure, *self._collect())
                if not (failure or drained) and self._may_send(sink):
                    drained = await self._launch(sink)
                elif self._in_flight:
                    await asyncio.wait(self._in_flight, return_when=asyncio.FIRST_COMPLETED)
                else:
                    break
            failure = failure or _gravest(*self._put_by.values())
        finally:
            await self._call_back()
        if failure is not None:
            raise failure

    def _collect(self) -> list[BaseException | None]:
        """Forget the requests that have ended. Returns how each of them failed, or None for those that did not."""
        done = {task for task in self._in_flight if task.done()}
        self._in_flight -= done
        return [SinkUnavailable("sending has ended") if task.cancelled() else task.exception() for task in done]

    def _may_send(self, sink: Sink) -> bool:
        width = _IN_FLIGHT if self._size.full and self._meter.bandwidth is None else 1
        return sink is self._sink and not self._halted and len(self._in_flight) < width

    async def _launch(self, sink: Sink) -> bool:
        """Start a request when the bandwidth allows it. Returns whether the queue has given all that may go now."""
        if pause := self._meter.pause():
            await self._unless(self._sleep(pause), self._interrupt)
            if self._interrupt.is_set():
                return True
        least = Priority.NOTICE if self._meter.used_up else Priority.RESULT
        if least == Priority.RESULT:
            self._record.within_budget()
        most = self._meter.room(self._size.bytes)
        batch = await self._take(most, least)
        if batch is None:
            return True
        self._start(batch, sink)
        await self._meter.save()
        return batch.priority >= least and not self._size.filled_by(batch.events, most)

    async def _take(self, most: int, least: Priority) -> B | None:
        async with self._taking:
            return await self._queue.take(self._size.events, most, least)

    def _start(self, batch: B, sink: Sink, since: int | None = None) -> asyncio.Task[None]:
        request = asyncio.create_task(self._deliver(batch, sink, since))
        self._in_flight.add(request)
        return request

    async def _send_alarms(self) -> None:
        """Send alarms at once: they wait neither for others to gather, nor for the bandwidth, nor for their turn."""
        while True:
            await self._queue.wait(Priority.ALARM)
            await self._works.wait()
            batch = await self._take(self._size.bytes, Priority.ALARM)
            if batch is None:
                continue
            if self._halted:
                self._queue.release(batch)
                return
            if not self._works.is_set():
                self._queue.release(batch)
                continue
            request = self._start(batch, self._sink)
            await asyncio.wait({request})
            if request.cancelled() or request.exception() or batch in self._put_by:
                self._hurry.set()  # the other requests wait for the same
            else:
                self._in_flight.discard(request)
                if not self._in_flight:
                    self._record.idle()

    async def _call_back(self) -> None:
        """Cancel the requests under way, and wait until their batches are back in the queue."""
        for task in self._in_flight:
            task.cancel()
        if self._in_flight:
            await asyncio.wait(set(self._in_flight))
        while self._put_by:
            self._queue.release(self._put_by.popitem()[0])

    async def _deliver(self, batch: B, sink: Sink, since: int | None) -> None:
        try:
            request = functools.partial(self._request, sink)
            refused = await send_divided(batch.events, request, lambda: self.state.sent_requests, since)
        except RefusesAll as error:
            self._put_aside(batch, error)
            return
        except BaseException as error:
            if isinstance(error, SinkError):
                self._works.clear()
            self._queue.release(batch)
            raise
        for index, reason in refused:
            self._queue.reject(batch, index, reason)
        self._queue.ack(batch)
        while self._put_by and len(refused) < len(batch.events):
            other, refusal = self._put_by.popitem()
            self._start(other, sink, refusal.since)

    def _put_aside(self, batch: B, error: RefusesAll) -> None:
        """Keep a batch that was refused whole until less important events tell more. Raises `error` if they cannot."""
        if any(other.priority == batch.priority for other in self._put_by):
            self._queue.release(batch)
            raise error
        self._put_by[batch] = error

    async def _request(self, sink: Sink, events: Sequence[bytes]) -> None:
        self._request_started = self._clock()
        self._meter.begin()
        self._record.sending()
        await sink.send(events)
        self._retry.reset()
        self._ask.reset()
        self._works.set()
        self._size.grow()
        self._record.sent(len(events))

    async def _unless(self, work: Coroutine[Any, Any, None] | Awaitable[None], *events: asyncio.Event) -> None:
        """Do the work until one of the events is set."""
        await self._first(work, *(event.wait() for event in events))

    async def _first(self, *works: Awaitable[Any]) -> None:
        """Wait for the first to end, and cancel the others."""
        tasks = {asyncio.ensure_future(work) for work in works}
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
        for task in done:
            task.result()


def _gravest(*failures: BaseException | None) -> BaseException | None:
    """Return a bug before what needs a person, and that before what passes by itself: it takes others with it."""
    ranks = (SinkUnavailable, SinkNeedsPerson)
    found = [failure for failure in failures if failure is not None]
    return max(
        found,
        key=lambda failure: next((n for n, rank in enumerate(ranks) if isinstance(failure, rank)), 2),
        default=None,
    )


class _Size:
    """How large the next batch may be: small after a failure, larger with each success."""

    def __init__(self) -> None:
        self.reset()

    @property
    def full(self) -> bool:
        return self.events == MAX_EVENTS and self.bytes == MAX_BYTES

    def reset(self) -> None:
        self.events, self.bytes = MAX_EVENTS, MAX_BYTES

    def shrink(self) -> None:
        self.events, self.bytes = _PROBE_EVENTS, _PROBE_BYTES

    def grow(self) -> None:
        self.events = min(MAX_EVENTS, self.events * _GROWTH)
        self.bytes = min(MAX_BYTES, self.bytes * _GROWTH)

    def filled_by(self, events: Sequence[bytes], most: int) -> bool:
        """Whether a batch is as large as allowed (`most` is in bytes), so that more may be waiting."""
        return len(events) >= self.events or 2 * sum(map(len, events)) >= most
