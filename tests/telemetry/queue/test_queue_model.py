"""The queue against a model of it: whatever is done in whatever order, killed or closed in between."""

import asyncio
import tempfile
from collections import Counter
from collections.abc import Coroutine
from pathlib import Path
from typing import TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from edge_agent.telemetry.queue.queue import Batch, Priority, Queue
from tests.telemetry.queue.queue_kit import Disk, end

T = TypeVar("T")
PRIORITIES = st.sampled_from(Priority)


class QueueMachine(RuleBasedStateMachine):
    """`waiting` holds (order, event) of each priority; `out` the batches with what is left of them."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.loop = asyncio.new_event_loop()
        self.waiting: dict[Priority, list[tuple[int, bytes]]] = {priority: [] for priority in Priority}
        self.out: list[tuple[Batch, list[tuple[int, bytes] | None]]] = []
        self.losses: Counter[str] = Counter()
        self.order = 0
        self.number = 1
        self.acked_at_report = 0

    def do(self, coroutine: Coroutine[object, object, T]) -> T:
        return self.loop.run_until_complete(coroutine)

    @initialize(runtime=st.booleans())
    def begin(self, runtime: bool) -> None:
        self.disk = Disk(Path(self.folder.name), runtime=runtime)
        self.queue = self.opened()
        self.epoch = self.queue.epoch

    def opened(self) -> Queue:
        queue = self.disk.queue()
        self.do(queue.open())
        return queue

    @rule(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=12), priority=PRIORITIES)
    def put(self, lengths: list[int], priority: Priority) -> None:
        events = [b"%d" % (self.order + i) + b"." * length for i, length in enumerate(lengths)]
        self.queue.put(self.number, events, 1, 2, priority)
        self.accepted(events, priority)

    def accepted(self, events: list[bytes], priority: Priority) -> None:
        self.waiting[priority] += [(self.order + i, event) for i, event in enumerate(events)]
        self.order += len(events)
        self.number += len(events)

    @rule(count=st.integers(900, 2500), priority=PRIORITIES)
    def put_many(self, count: int, priority: Priority) -> None:
        self.put([1] * count, priority)

    @rule(
        max_events=st.integers(1, 30) | st.just(5000),
        max_bytes=st.integers(1, 500) | st.just(1 << 20),
        least=PRIORITIES,
    )
    def take(self, max_events: int, max_bytes: int, least: Priority) -> None:
        batch = self.do(self.queue.take(max_events, max_bytes, least))
        waiting = next((self.waiting[p] for p in Priority if p <= least and self.waiting[p]), [])
        expected: list[tuple[int, bytes]] = []
        for order, event in waiting[:max_events]:
            if expected and sum(len(e) for _, e in expected) + len(event) > max_bytes:
                break
            expected.append((order, event))
        del waiting[: len(expected)]
        assert [event for _, event in expected] == (list(batch.events) if batch else [])
        if batch:
            assert self.waiting[batch.priority] is waiting
            self.out.append((batch, list(expected)))

    @precondition(lambda self: self.out)
    @rule(data=st.data())
    def ack(self, data: st.DataObject) -> None:
        batch, _ = self.out.pop(data.draw(st.integers(0, len(self.out) - 1)))
        self.queue.ack(batch)

    @precondition(lambda self: self.out)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        batch, events = self.out.pop(data.draw(st.integers(0, len(self.out) - 1)))
        self.queue.release(batch)
        self.back(batch, events)

    def back(self, batch: Batch, events: list[tuple[int, bytes] | None]) -> None:
        waiting = self.waiting[batch.priority]
        waiting[:] = sorted([*waiting, *(event for event in events if event)])

    @precondition(lambda self: self.out)
    @rule(data=st.data())
    def reject(self, data: st.DataObject) -> None:
        batch, events = self.out[data.draw(st.integers(0, len(self.out) - 1))]
        index = data.draw(st.integers(0, len(events) - 1))
        if events[index] is not None:
            self.queue.reject(batch, index, "no")
            events[index] = None
            self.losses["rejected"] += 1

    @rule(count=st.integers(1, 5))
    def count_loss(self, count: int) -> None:
        self.queue.count_loss("source_overrun", count, 1, 2)
        self.losses["source_overrun"] += count

    @rule()
    def report(self) -> None:
        due = self.queue.acked > self.acked_at_report or not self.queue.depth
        built = [b"%r" % loss for loss in self.queue.losses()] if due else []
        assert self.queue.report_losses(lambda _, losses: [b"%r" % loss for loss in losses], 1) == len(built)
        if built:
            self.losses.clear()
            self.accepted(built, Priority.NOTICE)
            self.acked_at_report = self.queue.acked

    @rule()
    def tick(self) -> None:
        self.do(self.queue.tick())

    @rule(data=st.data())
    def meanwhile(self, data: st.DataObject) -> None:
        """Something else happens while the store works."""

        steps: int = data.draw(st.integers(1, 4))
        release: bool = data.draw(st.booleans())
        priority: Priority = data.draw(PRIORITIES)

        async def body() -> None:
            tick = asyncio.create_task(self.queue.tick())
            for _ in range(steps):
                await asyncio.sleep(0)
            self.put([1, 2, 3], priority)
            if self.out and release:
                batch, events = self.out.pop()
                self.queue.release(batch)
                self.back(batch, events)
            elif self.out:
                self.queue.ack(self.out.pop()[0])
            await tick

        self.do(body())

    @rule()
    def kill(self) -> None:
        dead, self.disk = self.queue, self.disk.copy()
        end(dead)
        self.begin_again()

    @rule()
    def close(self) -> None:
        self.do(self.queue.close(deadline=60))
        self.begin_again()

    def begin_again(self) -> None:
        for batch, events in self.out:
            self.back(batch, events)
        self.out.clear()
        self.acked_at_report = 0
        self.queue = self.opened()

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "queue"):
            return
        depths = Counter({priority: len(waiting) for priority, waiting in self.waiting.items()})
        for batch, events in self.out:
            depths[batch.priority] += sum(event is not None for event in events)
        assert self.queue.depths == depths
        assert self.queue.depth == depths.total()
        assert self.queue.next_number == self.number
        assert self.queue.epoch == self.epoch
        assert self.queue.trouble is None
        assert {loss.cause: loss.count for loss in self.queue.losses()} == dict(self.losses)

    def teardown(self) -> None:
        if hasattr(self, "queue"):
            end(self.queue)
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()
        self.folder.cleanup()


TestQueueMachine = QueueMachine.TestCase
TestQueueMachine.settings = settings(
    max_examples=40, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
