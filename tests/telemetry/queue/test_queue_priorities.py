"""What priorities, age and the disk's reserve do: who goes out first, who is given up first, and who says so."""

import asyncio
import shutil
from pathlib import Path

import pytest

from edge_agent.telemetry.queue.queue import Loss, Priority, Queue
from edge_agent.testing.clock import Clock
from tests.telemetry.queue.queue_kit import BIG, MB, Disk, drain, left_for_dead, lost, put, run, tell, ticks

DAY = 86_400.0


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk(tmp_path)


def put_all(queue: Queue, count: int = 3, *, noise: int = 0) -> dict[Priority, list[bytes]]:
    """Put events of every priority, the least important first."""
    return {priority: put(queue, count, priority=priority, noise=noise) for priority in reversed(Priority)}


def in_order(events: dict[Priority, list[bytes]]) -> list[bytes]:
    return [event for priority in Priority for event in events[priority]]


@pytest.mark.parametrize("where", ["memory", "store", "after a kill", "after a power cut"])
def test_the_most_important_events_come_first(disk: Disk, where: str) -> None:
    async def body() -> None:
        async with left_for_dead(disk.queue()) as queue:
            events = put_all(queue)
            if where != "memory":
                await ticks(queue)
            copy = disk.copy(journals=where != "after a power cut")
            if where in {"memory", "store"}:
                assert await drain(queue) == in_order(events)
        async with copy.queue() as queue:
            assert queue.depths == dict.fromkeys(Priority, 3)
            assert queue.next_number == (1 if where == "after a power cut" else 13)
        async with copy.queue() as queue:  # after a clean end
            assert queue.next_number == (1 if where == "after a power cut" else 13)
            assert await drain(queue) == in_order(events)

    run(body())


def test_a_batch_has_one_priority_and_is_never_less_important_than_asked(disk: Disk) -> None:
    async def body() -> None:
        async with disk.queue() as queue:
            events = put_all(queue)
            for priority in (Priority.ALARM, Priority.NOTICE):
                batch = await queue.take(BIG, BIG, Priority.NOTICE)
                assert batch is not None
                assert (batch.priority, batch.events) == (priority, events[priority])
                queue.ack(batch)
            assert await queue.take(BIG, BIG, Priority.NOTICE) is None
            assert await drain(queue) == events[Priority.HEALTH] + events[Priority.RESULT]
            assert queue.depths == dict.fromkeys(Priority, 0)

    run(body())


def test_wait_is_for_what_is_important_enough(disk: Disk) -> None:
    async def body() -> None:
        async with disk.queue() as queue:
            put(queue, 1)
            await queue.wait()
            assert await queue.take(1, BIG, Priority.NOTICE) is None
            await queue.wait()  # that nothing important was there says nothing of the result
            waiting = asyncio.create_task(queue.wait(Priority.ALARM))
            await ticks(queue)
            put(queue, 1, priority=Priority.NOTICE)
            await asyncio.sleep(0)
            assert not waiting.done()
            put(queue, 1, priority=Priority.ALARM)
            await waiting

    run(body())


def test_the_least_important_are_dropped_first(disk: Disk) -> None:
    async def body() -> None:
        async with disk.queue(max_size=50_000) as queue:
            for _ in range(12):
                put_all(queue, 1, noise=2000)
                await ticks(queue)
            await queue.tick()
            assert queue.size <= 50_000
            alarms, notices, health, results = queue.depths.values()
            assert (alarms, notices, results) == (12, 12, 0)
            assert 0 < health < 12
            for _ in range(30):  # results that come now displace nothing
                put(queue, 1, noise=2000)
                await queue.tick()
            await ticks(queue)
            assert queue.depths == {
                Priority.ALARM: 12,
                Priority.NOTICE: 12,
                Priority.HEALTH: health,
                Priority.RESULT: 0,
            }
            assert queue.dropped_by_cause == lost(queue) == {"queue_full": 12 - health + 12 + 30}

    run(body())


def test_the_least_important_are_dropped_first_where_only_memory_is_left(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    disk.state.write_text("in the way")

    async def body() -> None:
        async with disk.queue(max_size=100_000) as queue:
            for _ in range(30):
                put(queue, 5, size=936, priority=Priority.ALARM)
                put(queue, 5, size=936)
                await queue.tick()
            assert queue.depths == {Priority.ALARM: 100, Priority.NOTICE: 0, Priority.HEALTH: 0, Priority.RESULT: 0}
            assert queue.dropped_by_cause == {"queue_full": 200}
            disk.state.unlink()
            await ticks(queue, 70)
            assert queue.trouble is None

    run(body())


# -- age


@pytest.mark.parametrize("loaded", [True, False])
def test_events_expire_by_the_time_that_the_queue_was_in_use(disk: Disk, loaded: bool) -> None:
    async def body() -> None:
        age = Clock()
        async with disk.queue(max_age=30 * DAY, monotonic=age) as queue:
            put(queue, 10, ms=5)
            await ticks(queue)
        # A month switched off, and a clock that has jumped ahead by ten years, expire nothing.
        async with left_for_dead(
            disk.queue(boot_id="boot-2", max_age=30 * DAY, monotonic=age, clock=lambda: 2_000_000_000.0)
        ) as queue:
            for _ in range(20):
                age.sleep(DAY)
                put(queue, 1, ms=9)
                await ticks(queue)
            disk_then = disk.copy()
            assert (queue.depth, queue.losses()) == (30, [])
        async with disk_then.queue(boot_id="boot-3", max_age=30 * DAY, monotonic=age) as queue:
            if loaded:
                batch = await queue.take(5, BIG)
                assert batch is not None
                queue.release(batch)
            age.sleep(9 * DAY)
            await ticks(queue)
            assert (queue.depth, queue.losses()) == (30, [])
            age.sleep(3 * DAY)
            await ticks(queue)
            assert queue.losses() == [Loss("expired", queue.dropped, 5, 9)]
            assert 10 <= queue.dropped <= 12
            assert len(await drain(queue)) == 30 - queue.dropped
            assert queue.depth == 0

    run(body())


def test_events_in_memory_expire_as_well(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    disk.state.write_text("in the way")

    async def body() -> None:
        age = Clock()
        async with disk.queue(max_age=3600, monotonic=age) as queue:
            put(queue, 10, ms=5)
            for _ in range(5):
                await ticks(queue)
                age.sleep(1000)
            young = put(queue, 1)
            await ticks(queue)
            assert queue.losses() == [Loss("expired", 10, 5, 5)]
            copy = disk.copy()
            assert await drain(queue) == young
        async with copy.queue() as queue:
            assert (queue.depth, lost(queue)) == (1, {"expired": 10})

    run(body())


def test_age_costs_no_write_while_events_are_sent_in_time(disk: Disk) -> None:
    async def body() -> None:
        age = Clock()
        async with disk.queue(max_age=3600, monotonic=age) as queue:
            before = [path.stat().st_mtime_ns for path in sorted(disk.state.iterdir())]
            for _ in range(100):
                put(queue, 1)
                await drain(queue)
                age.sleep(600)
                await queue.tick()
            assert [path.stat().st_mtime_ns for path in sorted(disk.state.iterdir())] == before
            assert len(queue._keeper.retention.positions) <= 40

    run(body())


# -- the reserve


def test_the_queue_does_not_grow_while_the_disk_is_short_of_space(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    free = 10 * MB
    real = shutil.disk_usage(disk.root)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: real._replace(free=free))

    async def body() -> None:
        nonlocal free
        async with disk.queue(reserve=5 * MB) as queue:
            for _ in range(20):
                put(queue, 1, noise=100_000)
                await ticks(queue)
            alarms = put(queue, 3, noise=100_000, priority=Priority.ALARM)
            await ticks(queue)
            size = queue.size
            free = 4 * MB
            for _ in range(10):
                put(queue, 1, noise=100_000)
                alarms += put(queue, 1, noise=100_000, priority=Priority.ALARM)
                await ticks(queue)
                assert queue.size <= size + 110_000
            dropped = queue.dropped  # noise does not compress to the byte
            assert 18 <= dropped <= 22
            assert lost(queue) == queue.dropped_by_cause == {"disk_reserve": dropped}
            assert queue.trouble is not None
            assert "less than the reserve of 5 MB" in queue.trouble
            free = 6 * MB
            put(queue, 1, noise=100_000)
            await ticks(queue)
            assert queue.trouble is None
            assert queue.dropped == dropped
            assert (await drain(queue))[:13] == alarms

    run(body())


def test_a_disk_without_space_leaves_the_queue_a_little(disk: Disk) -> None:
    async def body() -> None:
        async with disk.queue(reserve=BIG * BIG) as queue:
            for _ in range(20):
                put(queue, 1, noise=100_000)
                await ticks(queue)
            assert 800_000 < queue.size <= 1_000_000
            assert lost(queue) == {"disk_reserve": 20 - queue.depth}

    run(body())


# -- what is told of losses


def test_a_month_offline_ends_in_one_report_for_each_cause(disk: Disk) -> None:
    async def body() -> None:
        async with left_for_dead(disk.queue(max_size=60_000)) as queue:
            for ms in range(1, 101):
                put(queue, 1, noise=2000, ms=ms)
                queue.count_loss("source_overrun", 1, ms, ms)
                assert queue.report_losses(tell, ms) == 0
                await ticks(queue)
            dropped = queue.dropped
            copy = disk.copy()
        async with copy.queue(max_size=60_000) as queue:
            assert queue.losses() == [Loss("source_overrun", 100, 1, 100), Loss("queue_full", dropped, 1, dropped)]
            batch = await queue.take(1, BIG)
            assert batch is not None
            queue.ack(batch)
            number = queue.next_number
            assert queue.report_losses(tell, 100) == 2
            batch = await queue.take(5, BIG)
            assert batch is not None
            assert batch.priority is Priority.NOTICE
            assert batch.events == [b"%d source_overrun 100" % number, b"%d queue_full %d" % (number + 1, dropped)]
            queue.ack(batch)
            assert queue.losses() == []

    run(body())


@pytest.mark.parametrize("where", ["memory", "store"])
def test_a_report_that_is_dropped_itself_is_made_again(disk: Disk, where: str) -> None:
    async def body() -> None:
        async with left_for_dead(disk.queue(max_size=50_000)) as queue:
            queue.count_loss("source_overrun", 7, 1, 2)
            assert queue.report_losses(tell, 3) == 1
            if where != "memory":
                await ticks(queue)
            assert queue.losses() == []
            for _ in range(12):
                put(queue, 2, noise=5000, priority=Priority.ALARM)
                if where == "store":
                    await ticks(queue)
            await ticks(queue)
            assert lost(queue)["source_overrun"] == 7
            assert queue.depths[Priority.NOTICE] == 0
            copy = disk.copy()
        async with copy.queue(max_size=50_000) as queue:
            assert lost(queue)["source_overrun"] == 7
            batch = await queue.take(1, BIG)
            assert batch is not None
            queue.ack(batch)
            assert queue.report_losses(tell, 4) == 2
            batch = await queue.take(5, BIG, Priority.NOTICE)
            while batch is not None and batch.priority is not Priority.NOTICE:
                queue.ack(batch)
                batch = await queue.take(5, BIG, Priority.NOTICE)
            assert batch is not None
            assert sum(b"source_overrun 7" in event for event in batch.events) == 1
            queue.reject(batch, 0, "refused")  # to be refused again and again would help nobody
            queue.ack(batch)
            assert lost(queue) == {"rejected": 1}

    run(body())


def test_a_report_that_the_disk_has_lost_is_made_again(disk: Disk) -> None:
    async def body() -> None:
        async with left_for_dead(disk.queue()) as queue:
            queue.count_loss("source_overrun", 7, 1, 2)
            assert queue.report_losses(tell, 3) == 1
            await ticks(queue)
            put(queue, 5)
            await queue.tick()
            copy = disk.copy()
        for path in copy.state.glob("queue.db*"):
            path.unlink()
        async with copy.queue() as queue:
            assert lost(queue) == {"damaged": 1, "source_overrun": 7}
            assert queue.depth == 5

    run(body())
