"""The disk queue: what it has accepted it delivers at least once, or counts as lost.

    put ──► memory + journal ──(unsent for longer than the commit interval)──► store (SQLite)
                 │                                                                  │
                 └────────────► take ──► Batch ──► ack / release / reject ◄─────────┘

What happens to the queue is one record of the journal (`journal.py`) before the call returns, so killing the
agent loses nothing. At each tick, half a commit interval, a new journal file is begun. If events that the tick
before has seen are still unsent, one transaction writes the whole state to the store (`store.py`) and the files
before are deleted: a power cut loses at most one commit interval. While events are sent in time no transaction
is needed and nothing reaches the card. `keeper.py` does that; `recovery.py` says what holds at the next start.

Events have numbers that go on from 1 within an epoch. When it cannot be proven which number comes next, a new
epoch begins. It is one more than the last, and at least the time in ms since 1970, so that not even a device
whose card was wiped repeats it.
"""

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Self

import structlog

from edge_agent.telemetry.events.priority import Priority
from edge_agent.telemetry.queue import journal
from edge_agent.telemetry.queue.backlog import Batch
from edge_agent.telemetry.queue.files import QueueLocked
from edge_agent.telemetry.queue.keeper import Keeper
from edge_agent.telemetry.queue.losses import QUEUE_FULL, REJECTED, Loss
from edge_agent.telemetry.queue.retention import COMMIT_SIZE, Bounds, Retention

__all__ = ["Batch", "Loss", "Priority", "Queue", "QueueLocked"]

_DECADES = 20 * 365 * 86_400.0

log = structlog.get_logger()


class Queue:
    """Opaque events (bytes without a newline) from `put` to `ack`. Use it as an async context manager.

    Files in `directory`: `queue.db`, `queue.lock`, `rejected.jsonl`. The journal lies in `runtime_directory` if
    there is one: a tmpfs that survives a restart of the service. `commit_interval` (seconds) bounds what a power
    cut can cost; `commit_size` bytes that wait for the store do not wait for it. `max_size` bounds the bytes that
    are stored or waiting, `reserve` is what the disk must have free for more, `max_age` (seconds in which the queue
    is in use) how long events are kept. `boot_id` tells this boot from others. `clock` (seconds since 1970) is
    asked only when an epoch begins, and for the time of a loss that has none.
    """

    def __init__(
        self,
        directory: Path,
        *,
        runtime_directory: Path | None = None,
        max_size: int,
        commit_interval: float,
        commit_size: int = COMMIT_SIZE,
        reserve: int = 0,
        max_age: float = math.inf,
        boot_id: str,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.accepted = self.acked = 0  # events since the start
        self._acked_at_report = 0
        self._commit_interval = commit_interval
        bounds = Bounds(max_size=max_size, commit_size=commit_size, reserve=reserve, max_age=max_age)
        retention = Retention(bounds, monotonic)
        self._keeper = Keeper(directory, runtime_directory, retention=retention, boot_id=boot_id, clock=clock)
        self._state = self._keeper.state
        self._accounts = self._keeper.accounts
        # By priority: there may be something to take that is at least so important.
        self._ready = [asyncio.Event() for _ in Priority]
        self._pressure = asyncio.Event()  # the next tick should not wait
        self._steps: set[asyncio.Task[None]] = set()
        self._closed = False

    # -- opening and closing

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def open(self) -> None:
        """Recover what is there and begin. Raises `QueueLocked` and nothing else: a disk fault is `trouble`."""
        await self._keeper.open()
        self._wake()

    async def close(self, deadline: float = 1.0) -> None:
        """Write everything unsent and the last number to the store, within `deadline` seconds.

        What cannot be written in time is in the journal still. The queue takes no events any more.
        """
        if self._closed:
            return
        self._closed = True
        try:
            async with asyncio.timeout(deadline):
                await self._whole(self._keeper.close())
        except TimeoutError:
            log.warning("the queue could not be written in time", deadline=deadline, depth=self.depth)
            for task in self._steps:
                task.cancel()
            await asyncio.gather(*self._steps, return_exceptions=True)
            self._keeper.abandon()

    # -- in

    @property
    def epoch(self) -> int:
        return self._state.epoch

    @property
    def next_number(self) -> int:
        """Number of the next event in `epoch`. Ask for both right before each `put`."""
        return self._state.lanes.given - self._state.base + 1

    def put(
        self,
        first_number: int,
        events: Sequence[bytes],
        first_ms: int,
        last_ms: int,
        priority: Priority = Priority.RESULT,
    ) -> None:
        """Accept events whose times (ms) lie between the two given. When this returns, a kill does not lose them.

        The more important `priority` is, the sooner they come out, and the later they are dropped. Raises ValueError
        if `first_number` is not `next_number` or an event holds a newline, RuntimeError after `close`. Never fails
        for want of a disk: the events are in memory then, within bounds, and `trouble` says so.
        """
        self._put(first_number, events, first_ms, last_ms, priority)

    def _put(  # noqa: PLR0917  each `put` passes here
        self,
        first_number: int,
        events: Sequence[bytes],
        first_ms: int,
        last_ms: int,
        priority: Priority,
        reported: Sequence[Loss] = (),
    ) -> None:
        if self._closed:
            raise RuntimeError("the queue is closed")
        if first_number != self.next_number:
            raise ValueError(f"the next event has number {self.next_number}, not {first_number}")
        if not events:
            return
        count, payload = len(events), b"\n".join(events)
        if payload.count(b"\n") != count - 1:
            raise ValueError("an event must not hold a newline")
        lanes, keeper = self._state.lanes, self._keeper
        backlog = lanes.all[priority]
        seq = backlog.next_seq
        self._accounts.record(journal.put_frame(seq, count, payload, first_ms, last_ms, reported=reported))
        backlog.put(events, len(payload) - count + 1, first_ms, last_ms)
        lanes.given += count
        if reported:
            self._state.books.report(seq, reported)
        self.accepted += count
        if not self._ready[priority].is_set():
            for ready in self._ready[priority:]:
                ready.set()
        if keeper.full:
            self._relieve()

    def _relieve(self) -> None:
        """Bound the memory, and the journal, where they grow faster than the ticks come."""
        if not self._keeper.waiting_to_retry:
            self._pressure.set()
        excess = self._state.lanes.memory - self._keeper.retention.bounds.memory
        if excess > 0:
            self._accounts.lose_runs(QUEUE_FULL, self._state.lanes.drop_fresh(excess))

    # -- losses

    def losses(self) -> list[Loss]:
        """Return what was lost and is not reported yet, one entry for each cause."""
        return self._state.books.ledger.entries()

    def count_loss(self, cause: str, count: int, first_ms: int, last_ms: int) -> None:
        """Count something that never became an event of this queue."""
        self._accounts.note_loss(Loss(cause, count, first_ms, last_ms), [])

    def report_losses(self, build: Callable[[int, Sequence[Loss]], Sequence[bytes]], now_ms: int) -> int:
        """Put one event for each loss, with the priority NOTICE, and strike the losses off, in one step.

        `build` gets the number of the first event and the losses, and returns an event for each. Returns how many
        there were. Call it as often as you like: while nothing gets through, the losses stay in the ledger and add
        up there, so that a month without a network ends in one event for each cause. Should such an event be
        dropped itself, what it tells of goes back to the ledger.
        """
        if self.depth and self.acked == self._acked_at_report:
            return 0
        losses = self.losses()
        if not losses:
            return 0
        events = build(self.next_number, losses)
        if len(events) != len(losses):
            raise ValueError(f"{len(losses)} losses need as many events, not {len(events)}")
        self._put(self.next_number, events, now_ms, now_ms, Priority.NOTICE, losses)
        self._acked_at_report = self.acked
        return len(losses)

    # -- out

    async def wait(self, least: Priority = Priority.RESULT) -> None:
        """Return when there may be something to take that is at least as important as `least`."""
        await self._ready[least].wait()

    async def take(self, max_events: int, max_bytes: int, least: Priority = Priority.RESULT) -> Batch | None:
        """Hand out the oldest of the most important events, at most so many, and at least one; None if there are none.

        All of a batch have one priority, never one less important than `least`. Until it comes back by `ack` or
        `release` nobody else gets them. After a restart they are handed out again.
        """
        batch = None
        for priority in list(Priority)[: least + 1]:
            backlog = self._state.lanes[priority]
            if backlog.wants(max_events, max_bytes):
                await self._whole(self._keeper.load(priority, max_events, max_bytes))
            batch = backlog.take(max_events, max_bytes)
            if batch is not None:
                break
        self._calm(least if batch is None else None)
        return batch

    def ack(self, batch: Batch) -> None:
        """Finish a batch that has arrived. Raises ValueError if it was handed back before."""
        spans = self._state.lanes[batch.priority].ack(batch)
        if spans:
            self._accounts.finish(spans)
        self.acked += sum(end - start for start, end in spans)

    def release(self, batch: Batch) -> None:
        """Put the batch back in its place. Raises ValueError if it was handed back before."""
        self._state.lanes[batch.priority].release(batch)
        self._wake()

    def reject(self, batch: Batch, index: int, reason: str) -> None:
        """Give up `batch.events[index]`: it is counted, and kept in `rejected.jsonl` with the reason.

        The batch stays out. Raises ValueError if it is not, or the event was rejected before.
        """
        run = self._state.lanes[batch.priority].reject(batch, index)
        self._keeper.rejected.add(run.events[0], reason)
        self._accounts.lose(Loss(REJECTED, 1, run.first_ms, run.last_ms), [(run.seq, run.end)])

    def _wake(self) -> None:
        for least in Priority:
            if self._state.lanes.available(least):
                self._ready[least].set()

    def _calm(self, nothing: Priority | None) -> None:
        """Let `wait` wait. Of events as important as `nothing` none could be had, whatever the store may hold."""
        for least in Priority:
            if (nothing is not None and least <= nothing) or not self._state.lanes.available(least):
                self._ready[least].clear()

    # -- ticks

    async def run(self) -> None:
        """Tick twice in each commit interval while there is something to do; sleep while there is not."""
        while True:
            await self._accounts.unsaved.wait()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._commit_interval / 2):
                    await self._pressure.wait()
            await self.tick()

    async def tick(self) -> None:
        """Begin a new journal file, and write to the store if what the tick before has seen is still unsent."""
        self._pressure.clear()
        await self._whole(self._keeper.tick())
        self._wake()

    async def _whole(self, step: Coroutine[None, None, None]) -> None:
        """Let the step finish even when the caller is cancelled: half of it would leave the state undefined."""
        task = asyncio.get_running_loop().create_task(step)
        self._steps.add(task)
        task.add_done_callback(self._steps.discard)
        await asyncio.shield(task)

    # -- how it is

    @property
    def depth(self) -> int:
        """Events that are neither acknowledged nor lost."""
        return self._state.lanes.depth

    @property
    def depths(self) -> dict[Priority, int]:
        """The same by priority."""
        return dict(zip(Priority, self._state.lanes.depths, strict=True))

    @property
    def dropped(self) -> int:
        """Events of the queue that were lost, whatever the cause, since the start."""
        return self._state.dropped.total()

    @property
    def dropped_by_cause(self) -> dict[str, int]:
        """The same by cause, named as in the loss events."""
        return dict(self._state.dropped)

    @property
    def size(self) -> int:
        """Bytes of the stored groups, compressed, and of the events that are only in memory."""
        return self._keeper.size

    @property
    def oldest_ms(self) -> int | None:
        """Time of the oldest unsent event, or None if there is none."""
        return self._keeper.oldest_ms

    def oldest_age(self, now_ms: int) -> float | None:
        """Seconds that the oldest unsent event has waited by the clock `now_ms` is of, or None if there is none.

        An event made before a clock that began in 1970 was set seems to wait for decades: then it is for how long the
        queue has been in use.
        """
        if self.oldest_ms is None:
            return None
        waited = max(0, now_ms - self.oldest_ms) / 1000
        return waited if waited < _DECADES else self._keeper.retention.age

    @property
    def trouble(self) -> str | None:
        """What is wrong with the disk, in words, or None."""
        return self._keeper.trouble

    def configure(
        self,
        *,
        max_size: int,
        commit_interval: float,
        commit_size: int = COMMIT_SIZE,
        reserve: int = 0,
        max_age: float = math.inf,
    ) -> None:
        """Take over changed settings. They count from the next tick on."""
        self._keeper.bound(Bounds(max_size=max_size, commit_size=commit_size, reserve=reserve, max_age=max_age))
        self._commit_interval = commit_interval
        self._accounts.unsaved.set()
