"""The queue's accounts: whatever is dropped, killed and told, accepted = arrived + waiting + counted as lost."""

import asyncio
import tempfile
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from edge_agent.telemetry.queue.queue import Batch, Loss, Priority, Queue
from edge_agent.testing.clock import Clock
from tests.telemetry.queue.queue_kit import BIG, Disk, end, put

T = TypeVar("T")
MAX_AGE = 3200.0


def tell(_: int, losses: Sequence[Loss]) -> list[bytes]:
    return [b"lost %d" % loss.count for loss in losses]


class LimitsMachine(RuleBasedStateMachine):
    """`told` is what arrived reports say was lost; `places` the order of the events in their priority."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.loop = asyncio.new_event_loop()
        self.age = Clock()
        self.accepted = self.arrived = self.told = 0
        self.places: dict[bytes, int] = {}
        self.max_size = 30_000
        self.out: list[Batch] = []

    def do(self, coroutine: Coroutine[object, object, T]) -> T:
        return self.loop.run_until_complete(coroutine)

    @initialize(runtime=st.booleans())
    def begin(self, runtime: bool) -> None:
        self.disk = Disk(Path(self.folder.name), runtime=runtime)
        self.queue = self.opened()

    def opened(self) -> Queue:
        queue = self.disk.queue(max_size=self.max_size, max_age=MAX_AGE, monotonic=self.age)
        self.do(queue.open())
        return queue

    @rule(priority=st.sampled_from(Priority), count=st.integers(1, 20), noise=st.sampled_from([0, 100, 1000]))
    def put(self, priority: Priority, count: int, noise: int) -> None:
        for event in put(self.queue, count, noise=noise, priority=priority):
            self.accepted += 1
            self.places[event] = self.accepted

    @rule(count=st.integers(1, 50), least=st.sampled_from(Priority))
    def take(self, count: int, least: Priority) -> None:
        batch = self.do(self.queue.take(count, BIG, least))
        if batch is not None:
            assert batch.priority <= least
            known = [self.places[event] for event in batch.events if event in self.places]
            assert known == sorted(known)
            self.out.append(batch)

    @precondition(lambda self: self.out)
    @rule(data=st.data(), arrives=st.booleans())
    def hand_back(self, data: st.DataObject, arrives: bool) -> None:
        batch = self.out.pop(data.draw(st.integers(0, len(self.out) - 1)))
        if not arrives:
            self.queue.release(batch)
            return
        self.queue.ack(batch)
        self.arrived += len(batch.events)
        for event in batch.events:
            if event.startswith(b"lost "):
                self.told += int(event.split()[1])
            else:
                del self.places[event]  # nothing arrives twice

    @rule()
    def report(self) -> None:
        self.accepted += self.queue.report_losses(tell, 1)

    @rule(count=st.integers(1, 3))
    def tick(self, count: int) -> None:
        for _ in range(count):
            self.do(self.queue.tick())

    @rule(seconds=st.sampled_from([1.0, 200.0, 2000.0]))
    def pass_time(self, seconds: float) -> None:
        self.age.sleep(seconds)

    @rule(max_size=st.sampled_from([10_000, 30_000]))
    def configure(self, max_size: int) -> None:
        self.max_size = max_size
        self.queue.configure(max_size=max_size, commit_interval=1, max_age=MAX_AGE)

    @rule()
    def kill(self) -> None:
        dead, self.disk = self.queue, self.disk.copy()
        end(dead)
        self.out.clear()
        self.queue = self.opened()

    @rule()
    def close(self) -> None:
        self.do(self.queue.close(deadline=60))
        self.out.clear()
        self.queue = self.opened()

    @invariant()
    def adds_up(self) -> None:
        if not hasattr(self, "queue"):
            return
        books = self.queue._state.books
        untold = sum(loss.count for loss in self.queue.losses()) + sum(loss.count for _, loss in books.reports)
        assert self.accepted == self.arrived + self.queue.depth + self.told + untold
        assert self.queue.depth == sum(self.queue.depths.values())
        assert self.queue.trouble is None

    def teardown(self) -> None:
        if hasattr(self, "queue"):
            for batch in self.out:
                self.queue.release(batch)
            depth, left = self.queue.depth, 0
            while (taken := self.do(self.queue.take(1000, BIG))) is not None:
                left += len(taken.events)
            assert left == depth
            end(self.queue)
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()
        self.folder.cleanup()


TestLimitsMachine = LimitsMachine.TestCase
TestLimitsMachine.settings = settings(
    max_examples=30, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
