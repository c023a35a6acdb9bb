"""Takes events from the queue and gives them to a sink, as long as it takes.

- A batch is out of the queue only while a request is under way: after a failure it is released, so that the queue
  alone decides what is kept. Nothing is acknowledged before the sink has taken it.
- After a failure the next request is small (`_PROBE_EVENTS`), and grows again with each success: a try on a bad
  network costs little, and a slow link finds the size that it can carry.
- Tries are at most `_RETRY_CAP` seconds apart, counted from the beginning of the one before, so that events flow
  within ten seconds after a server is back.
- An event is given up only when the sink refuses it alone and takes others of the same batch. A sink that
  refuses everything has a trouble of its own, and a person is asked.
"""

import asyncio
import contextlib
import math
import random
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Generic, Literal, Protocol, TypeVar

import msgspec
import structlog
from msgspec.structs import replace

from edge_agent.telemetry.backoff import Backoff
from edge_agent.telemetry.sinks import Sink, SinkError, SinkNeedsPerson, SinkRejected, SinkUnavailable

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
_HANDOVER = 5.0
"""Seconds that a request under way may still take when its sink is replaced."""
_REFUSED_ALONE = 4
"""So many events refused one by one, and none taken: the sink refuses everything."""
_KEPT = "find out why they are refused; they stay in the queue until then"
_QUIET = 60.0
"""Seconds between two log lines about a sink that comes and goes."""

log = structlog.get_logger()


class Batch(Protocol):
    """Events taken from the queue, which are in it until they are acknowledged."""

    @property
    def events(self) -> Sequence[bytes]: ...


B = TypeVar("B", bound=Batch)


class Queue(Protocol[B]):
    """What the sender needs of the queue."""

    @property
    def depth(self) -> int:
        """Events not acknowledged yet."""
        ...

    async def wait(self) -> None:
        """Return when there is something to take."""
        ...

    async def take(self, max_events: int, max_bytes: int) -> B | None:
        """Hand out the oldest events, at least one if there is any."""
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


Status = Literal["idle", "sending", "offline", "needs_person"]


class SenderState(msgspec.Struct, frozen=True):
    """How sending goes.

    `since` is when `status` changed last, by the sender's (monotonic) clock in seconds. `failures` counts requests
    that failed since the last one that did not.
    """

    status: Status
    reason: str
    since: float
    sent_events: int
    sent_requests: int
    failures: int


class Sender(Generic[B]):
    """Sends what is in the queue until it is stopped.

    `linger` is how long events gather before a request, in seconds. `clock`, `sleep` and `chance` (a number in
    [0, 1)) are for tests.
    """

    def __init__(
        self,
        queue: Queue[B],
        sink: Sink,
        *,
        linger: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.linger = linger
        self._queue = queue
        self._sink = sink
        self._clock = clock
        self._sleep = sleep
        self._retry = Backoff(_RETRY_FIRST, _RETRY_CAP, chance=chance)
        self._ask = Backoff(_PERSON_FIRST, _PERSON_CAP, jitter=0.2, chance=chance)
        self._size = _Size()
        self._report = _Report(clock)
        self._in_flight: set[asyncio.Task[None]] = set()
        self._request_started = clock()
        self._interrupt = asyncio.Event()
        self._stopping = False
        self._halted = False
        self._ended: asyncio.Event | None = None

    @property
    def state(self) -> SenderState:
        """How sending goes now."""
        return self._report.state

    async def run(self) -> None:
        """Send until `stop`. Cancelled, it puts back into the queue what was under way."""
        self._ended = asyncio.Event()
        try:
            while not self._stopping:
                self._interrupt.clear()
                await self._unless_interrupted(self._gather())
                await self._round()
            await self._round()
        finally:
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
        await self._queue.wait()
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
            self._report.idle()

    async def _failed(self, error: SinkError) -> None:
        if isinstance(error.__cause__, SinkRejected):
            self._size.reset()  # with more events there is one sooner that the sink takes
        else:
            self._size.shrink()
        self._report.failed(error)
        if self._stopping:
            return
        wait = self._ask.next() if isinstance(error, SinkNeedsPerson) else self._retry.next()
        passed = self._clock() - self._request_started
        await self._unless_interrupted(self._sleep(max(0.0, wait - passed)))

    async def _pump(self, sink: Sink) -> None:
        """Send until nothing is left, or until a request fails; raises its error when the others have ended."""
        failure: BaseException | None = None
        drained = False
        try:
            while True:
                while not (failure or drained) and self._may_send(sink):
                    drained = await self._launch(sink)
                if not self._in_flight:
                    break
                done, _ = await asyncio.wait(self._in_flight, return_when=asyncio.FIRST_COMPLETED)
                self._in_flight -= done
                failure = _first_failure(done, failure)
        finally:
            await self._call_back()
        if failure is not None:
            raise failure

    def _may_send(self, sink: Sink) -> bool:
        width = _IN_FLIGHT if self._size.full else 1
        return sink is self._sink and not self._halted and len(self._in_flight) < width

    async def _launch(self, sink: Sink) -> bool:
        """Start a request. Returns whether the queue has given all it had."""
        batch = await self._queue.take(self._size.events, self._size.bytes)
        if batch is None:
            return True
        self._in_flight.add(asyncio.create_task(self._deliver(batch, sink)))
        return not self._size.filled_by(batch.events)

    async def _call_back(self) -> None:
        """Cancel the requests under way, and wait until their batches are back in the queue."""
        for task in self._in_flight:
            task.cancel()
        if self._in_flight:
            await asyncio.wait(set(self._in_flight))

    async def _deliver(self, batch: B, sink: Sink) -> None:
        try:
            refused = await self._send(batch.events, sink)
        except BaseException:
            self._queue.release(batch)
            raise
        for index, reason in refused:
            self._queue.reject(batch, index, reason)
        self._queue.ack(batch)

    async def _send(self, events: Sequence[bytes], sink: Sink) -> list[tuple[int, str]]:
        """Return which events the sink refuses, and why; the others have arrived."""
        try:
            await self._request(events, sink)
        except SinkRejected as error:
            return await self._bisect(events, sink, error)
        return []

    async def _bisect(self, events: Sequence[bytes], sink: Sink, refusal: SinkRejected) -> list[tuple[int, str]]:
        refused: list[tuple[int, str]] = []
        taken = False
        parts = [(0, len(events), refusal)]
        while parts:
            start, end, refusal = parts.pop()
            if end - start == 1:
                refused.append((start, refusal.reason))
                if len(refused) >= _REFUSED_ALONE and not taken:
                    break
                continue
            middle = (start + end) // 2
            for first, last in ((start, middle), (middle, end)):
                try:
                    await self._request(events[first:last], sink)
                    taken = True
                except SinkRejected as error:
                    parts.append((first, last, error))
        if not taken:
            raise SinkNeedsPerson(f"{refusal.reason}; none of {len(events)} events was taken", _KEPT) from refusal
        return refused

    async def _request(self, events: Sequence[bytes], sink: Sink) -> None:
        self._request_started = self._clock()
        self._report.sending()
        await sink.send(events)
        self._retry.reset()
        self._ask.reset()
        self._size.grow()
        self._report.sent(len(events))

    async def _unless_interrupted(self, work: Coroutine[Any, Any, None] | Awaitable[None]) -> None:
        tasks = {asyncio.ensure_future(work), asyncio.ensure_future(self._interrupt.wait())}
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
        for task in done:
            task.result()


def _first_failure(tasks: set[asyncio.Task[None]], earlier: BaseException | None) -> BaseException | None:
    # Each is asked: asyncio would log the error of a task that nobody has asked for it.
    errors = [SinkUnavailable("sending has ended") if task.cancelled() else task.exception() for task in tasks]
    return next((error for error in (earlier, *errors) if error is not None), None)


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

    def filled_by(self, events: Sequence[bytes]) -> bool:
        """Whether a batch is as large as allowed, so that more may be waiting."""
        return len(events) >= self.events or 2 * sum(map(len, events)) >= self.bytes


class _Report:
    """Keeps the sender's state, and tells its changes to the log without filling it."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._state = SenderState("idle", "", clock(), 0, 0, 0)
        self._told = ""
        self._told_at = -math.inf

    @property
    def state(self) -> SenderState:
        return self._state

    def idle(self) -> None:
        if self._state.status == "sending":
            self._change("idle")

    def sending(self) -> None:
        if self._state.status == "idle":
            self._change("sending")

    def sent(self, events: int) -> None:
        state = self._state
        if state.failures:
            self._change("sending")
            self._tell_recovery(self._clock() - state.since)
        self._state = replace(
            self._state,
            sent_events=state.sent_events + events,
            sent_requests=state.sent_requests + 1,
            failures=0,
        )

    def failed(self, error: SinkError) -> None:
        status: Status = "needs_person" if isinstance(error, SinkNeedsPerson) else "offline"
        self._change(status, str(error))
        self._state = replace(self._state, failures=self._state.failures + 1)
        if isinstance(error, SinkNeedsPerson):
            self._tell_person(error)
        elif not self._told and self._clock() - self._told_at >= _QUIET:
            self._tell("offline")
            log.warning("events cannot be sent for now and are kept", reason=error.reason)

    def _change(self, status: Status, reason: str = "") -> None:
        since = self._state.since if status == self._state.status else self._clock()
        self._state = replace(self._state, status=status, reason=reason, since=since)

    def _tell_person(self, error: SinkNeedsPerson) -> None:
        if self._told != str(error):
            self._tell(str(error))
            log.error("events cannot be sent until somebody acts", reason=error.reason, what_to_do=error.what_to_do)

    def _tell_recovery(self, seconds: float) -> None:
        if self._told:
            self._told = ""
            log.info("events are sent again", after_seconds=round(seconds))

    def _tell(self, what: str) -> None:
        self._told = what
        self._told_at = self._clock()
