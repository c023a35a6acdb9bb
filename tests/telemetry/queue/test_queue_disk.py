"""The queue on a real ext4 disk that fails: the kernel makes the faults, and inference must not notice.

A disk that has failed for good stays so until the machine starts again, which `restart` stands for.
"""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edge_agent.telemetry.queue.queue import Loss
from tests.telemetry import loopdisk
from tests.telemetry.loopdisk import LoopDisk
from tests.telemetry.queue.powercuts import check_power_cuts
from tests.telemetry.queue.queue_kit import BIG, MB, Disk, drain, left_for_dead, lost, put, run, ticks


@pytest.fixture(autouse=True)
def _needs_loop_mounts() -> None:
    if reason := loopdisk.why_not():
        pytest.skip(reason)


@pytest.fixture
def card(tmp_path: Path) -> Iterator[LoopDisk]:
    with LoopDisk(tmp_path / "card") as card:
        yield card


@pytest.fixture
def disk(tmp_path: Path, card: LoopDisk) -> Disk:
    """The state directory on the card, the runtime directory beside it."""
    disk = Disk(tmp_path)
    disk.state = card.path / "state"
    return disk


FATAL = [
    pytest.param(LoopDisk.cut_power, id="EIO on every use"),
    pytest.param(LoopDisk.remount_read_only, id="read-only after an error"),
]


@pytest.mark.parametrize("break_it", FATAL)
def test_a_disk_that_dies_costs_nothing_while_the_agent_runs(
    disk: Disk, card: LoopDisk, break_it: Callable[[LoopDisk], None]
) -> None:
    """What was in memory is sent from there; the journal is elsewhere and keeps the rest for the next start."""

    async def body() -> None:
        async with left_for_dead(disk.queue()) as queue:
            old = put(queue, 100)
            await ticks(queue)
            break_it(card)
            new = put(queue, 100)
            await ticks(queue, 5)
            assert queue.trouble is not None
            assert str(disk.state) in queue.trouble
            assert (queue.depth, queue.dropped) == (200, 0)
            new += put(queue, 100)
            await ticks(queue)
            batch = await queue.take(1000, BIG)
            assert batch is not None
            arrived = list(batch.events)
            queue.ack(batch)
            assert set(arrived) <= {*old, *new}
        card.restart()
        async with disk.queue() as queue:
            assert (queue.trouble, lost(queue)) == (None, {})
            # What cannot be read does not hold up what is in memory.
            assert sorted(arrived + await drain(queue)) == sorted(old + new)

    run(body())


@pytest.mark.parametrize("break_it", FATAL)
@pytest.mark.parametrize("killed", [False, True], ids=["ended before", "killed before"])
@pytest.mark.parametrize("reboot", [False, True], ids=["service restarted", "machine restarted"])
def test_a_dead_disk_is_no_reason_not_to_start(
    disk: Disk, card: LoopDisk, break_it: Callable[[LoopDisk], None], killed: bool, reboot: bool
) -> None:
    """Started on a dead disk, and killed there: nothing may be lost but by the machine's restart."""

    async def body() -> None:
        async with disk.queue() as queue:
            stored, journaled = put(queue, 100), []
        if killed:
            async with left_for_dead(disk.queue()) as queue:
                journaled = put(queue, 100)
        break_it(card)
        async with left_for_dead(disk.queue(clock=lambda: 0.0)) as queue:  # the clock is not set yet, either
            new = put(queue, 100)
            await ticks(queue, 3)
            assert queue.trouble is not None
            batch = await queue.take(10, BIG)
            assert batch is not None
            queue.ack(batch)
            new += put(queue, 100)
        card.restart()
        if reboot:
            for path in disk.journals():
                path.unlink()
        async with disk.queue(boot_id="boot-2" if reboot else "boot-1", clock=lambda: 1_900_000_000.0) as queue:
            assert (queue.trouble, lost(queue)) == (None, {})
            assert not set(put(queue, 1)) & {*stored, *journaled, *new}
            left = (await drain(queue))[:-1]
            assert left == [e for e in stored + ([] if reboot else journaled + new) if e not in batch.events]

    run(body())


def test_memory_is_bounded_on_a_dead_disk_and_what_it_costs_is_counted(disk: Disk, card: LoopDisk) -> None:
    async def body() -> None:
        async with left_for_dead(disk.queue(max_size=100_000)) as queue:
            card.cut_power()
            events = []
            for ms in range(1, 31):
                events += put(queue, 10, ms=ms, size=936)
                await queue.tick()
            assert queue.size == 100_000
            assert queue.losses() == [Loss("queue_full", 200, 1, 20)]
            assert await drain(queue) == events[200:]
        card.restart()

    run(body())


def test_writes_that_fail_for_a_while(tmp_path: Path) -> None:
    """The stick was pulled out a little, or a card has bad blocks: fsync answers EIO, later it works again."""
    disk = Disk(tmp_path)

    async def body(card: LoopDisk) -> None:
        disk.state = card.path / "state"
        async with disk.queue() as queue:
            events = put(queue, 100)
            await ticks(queue)
            card.fail_writes()
            troubles = set()
            for _ in range(12):
                events += put(queue, 50, noise=4000)
                await queue.tick()
                troubles.add(queue.trouble)
            assert any("disk I/O error" in (trouble or "") for trouble in troubles)
            assert (queue.depth, queue.dropped) == (700, 0)
            card.allow_writes()
            await ticks(queue, 70)
            assert queue.trouble is None
            assert (await drain(queue), lost(queue)) == (events, {})

    with LoopDisk(tmp_path / "card", 32, journal=False, thin=True) as card:
        run(body(card))


def test_a_full_ext4_costs_nothing_once_there_is_room_again(disk: Disk, card: LoopDisk) -> None:
    async def body() -> None:
        async with disk.queue() as queue:
            events = put(queue, 10, noise=1000)
            await ticks(queue)
            card.fill()
            for _ in range(20):
                events += put(queue, 10, noise=20_000)
                await queue.tick()
            assert queue.trouble is not None
            assert "full" in queue.trouble
            assert (queue.depth, queue.dropped) == (210, 0)
            batch = await queue.take(10, BIG)
            assert batch is not None
            assert batch.events == events[:10]
            queue.ack(batch)
            card.free()
            await ticks(queue, 70)
            assert queue.trouble is None
            assert (queue.depth, lost(queue)) == (200, {})
            assert await drain(queue) == events[10:]

    run(body())


def test_a_full_ext4_at_the_start_keeps_the_backlog_readable(disk: Disk, card: LoopDisk) -> None:
    async def body() -> None:
        async with disk.queue() as queue:
            events, epoch = put(queue, 100, noise=1000), queue.epoch
        card.fill()
        async with disk.queue(boot_id="boot-2") as queue:
            assert queue.epoch > epoch
            events += put(queue, 100)
            await ticks(queue, 3)
            assert await drain(queue) == events
            card.free()
            await ticks(queue, 70)
            assert (queue.trouble, queue.depth, lost(queue)) == (None, 0, {})

    run(body())


def test_put_does_not_wait_for_a_disk_that_hangs(disk: Disk, card: LoopDisk) -> None:
    """Cards pause for seconds. Nothing but the store's own thread may stand still meanwhile."""

    async def body() -> None:
        async with disk.queue() as queue:
            events = put(queue, 100)
            await queue.tick()
            card.freeze()
            try:
                stuck = asyncio.create_task(queue.tick())
                while queue._keeper._journal.number < 2:  # noqa: ASYNC110  # then the transaction is next
                    await asyncio.sleep(0)
                for _ in range(500):
                    events += put(queue, 20, size=300)
                    await asyncio.sleep(0)
                arrived: list[bytes] = []
                while (batch := await queue.take(1000, BIG)) is not None:
                    arrived += batch.events
                    queue.ack(batch)
                assert arrived == events
                assert (queue.depth, queue.trouble, stuck.done()) == (0, None, False)
                events += put(queue, 20)
                copy = disk.copy()  # killed at this moment
            finally:
                card.thaw()
            await stuck
            await ticks(queue)
            assert (queue.trouble, lost(queue)) == (None, {})
            assert await drain(queue) == events[-20:]
        async with copy.queue() as queue:
            assert await drain(queue) == events[-20:]
            assert lost(queue) == {}

    run(body())


def test_the_end_does_not_wait_for_a_disk_that_hangs(disk: Disk, card: LoopDisk) -> None:
    async def body() -> None:
        queue = disk.queue()
        await queue.open()
        events = put(queue, 100)
        card.freeze()
        try:
            await queue.close(deadline=0.01)
        finally:
            card.thaw()
        await asyncio.get_running_loop().run_in_executor(None, queue._keeper._thread.shutdown)
        async with disk.queue() as queue:
            assert await drain(queue) == events

    run(body())


def test_a_backlog_is_sent_in_order_from_a_disk_that_has_turned_read_only(disk: Disk, card: LoopDisk) -> None:
    async def body() -> None:
        async with left_for_dead(disk.queue()) as queue:
            events: list[bytes] = []
            for _ in range(20):
                events += put(queue, 100, size=300)
                await ticks(queue)
            card.remount_read_only()
            events += put(queue, 100)
            assert await drain(queue, 150) == events
            await ticks(queue, 3)
            assert queue.depth == 0
        card.restart()
        async with disk.queue() as queue:  # the journal knows that they are sent
            assert (await drain(queue), lost(queue)) == ([], {})

    run(body())


def test_the_space_of_a_sent_backlog_is_given_back(disk: Disk, card: LoopDisk) -> None:
    async def body() -> None:
        async with disk.queue() as queue:
            for _ in range(10):
                put(queue, 20, noise=20_000)
                await ticks(queue)
            await drain(queue)
            await ticks(queue)
        assert disk.database.stat().st_blocks * 512 < MB

    run(body())


@pytest.mark.parametrize("with_runtime", [True, False], ids=["runtime directory", "state directory"])
def test_power_cuts_cost_a_commit_interval_at_most(tmp_path: Path, with_runtime: bool) -> None:
    check_power_cuts(tmp_path, 4, with_runtime=with_runtime)
