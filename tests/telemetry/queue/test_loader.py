"""What the store hides, has lost, or cannot be asked about, while events are loaded from it."""

import contextlib
import sqlite3
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_agent.telemetry.events.priority import Priority
from edge_agent.telemetry.queue.store import Store
from tests.telemetry.queue.queue_kit import Disk, drain, left_for_dead, lost, put, run, ticks

PAGE = 4096
HEADER = 12  # of an inner page; the numbers of its cells follow
GROUPS, EVENTS = 120, 10


async def backlog(disk: Disk) -> list[bytes]:
    """Leave a backlog on the disk, in a tree of two levels, and an alarm."""
    events: list[bytes] = []
    async with disk.queue() as queue:
        for _ in range(GROUPS):
            events += put(queue, EVENTS, noise=150)
            await ticks(queue)
        events += put(queue, 1, priority=Priority.ALARM)
    return events


def root(database: Path) -> int:
    """Return where the page is that leads to all groups."""
    with contextlib.closing(sqlite3.connect(database)) as db:
        (page,) = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'groups'").fetchone()
    return int(page - 1) * PAGE


def fewer_cells(page: bytearray) -> None:
    """Clear the highest bit of how many cells there are."""
    (count,) = struct.unpack_from(">H", page, 3)
    struct.pack_into(">H", page, 3, count - (1 << count.bit_length() - 1))


def one_cell_twice(page: bytearray) -> None:
    """Let the first cell lead to where the last one does."""
    (count,) = struct.unpack_from(">H", page, 3)
    page[HEADER : HEADER + 2] = page[HEADER + 2 * count - 2 : HEADER + 2 * count]


def flip_key(place: float) -> Callable[[bytearray], None]:
    """Flip a high bit in the key of the cell that stands at so much of the page."""

    def flip(page: bytearray) -> None:
        (count,) = struct.unpack_from(">H", page, 3)
        (cell,) = struct.unpack_from(">H", page, HEADER + 2 * int(count * place))
        assert page[cell + 4] & 0x80, "the key has one byte"
        page[cell + 4] ^= 0x08

    return flip


def damage(database: Path, change: Callable[[bytearray], None]) -> None:
    at = root(database)
    with database.open("r+b") as file:
        file.seek(at)
        page = bytearray(file.read(PAGE))
        assert page[0] == 5, "the page leads to nothing"
        change(page)
        file.seek(at)
        file.write(page)


def rows_in_sight(database: Path) -> int:
    """Return how many different rows SQLite reads without an error."""
    with contextlib.closing(sqlite3.connect(database)) as db:
        return len(set(db.execute("SELECT seq FROM groups ORDER BY seq").fetchall()))


@pytest.mark.parametrize("change", [fewer_cells, one_cell_twice])
def test_what_a_damaged_page_hides_without_an_error_is_found(
    tmp_path: Path, change: Callable[[bytearray], None]
) -> None:
    async def body() -> None:
        disk = Disk(tmp_path)
        events = await backlog(disk)
        damage(disk.database, change)
        assert 0 < rows_in_sight(disk.database) < GROUPS
        async with disk.queue(boot_id="boot-2") as queue:
            events += put(queue, 3)
            delivered = await drain(queue)
            alarm = events.pop(-4)
            assert delivered == [alarm, *events]
            assert (lost(queue), queue.depth, queue.trouble) == ({}, 0, None)
            await ticks(queue)
            assert queue.size == 0
        assert (disk.state / "queue.damaged-1.db").exists()

    run(body())


@pytest.mark.parametrize("place", [0.2, 0.5, 0.8, 0.95])
def test_a_tree_that_mends_itself_wrongly_costs_nothing(tmp_path: Path, place: float) -> None:
    """What is deleted moves the keys of the tree, and rows may come in sight that were passed over before."""

    async def body() -> None:
        disk = Disk(tmp_path)
        events = await backlog(disk)
        damage(disk.database, flip_key(place))
        async with disk.queue(boot_id="boot-2") as queue:
            delivered: list[bytes] = []
            for _ in range(20):
                events += put(queue, 3)
                if batch := await queue.take(75, 1 << 20):
                    delivered += batch.events
                    queue.ack(batch)
                await queue.tick()
            delivered += await drain(queue)
            assert set(delivered) == set(events)  # some may come twice
            assert (lost(queue), queue.depth, queue.trouble) == ({}, 0, None)

    run(body())


def test_what_was_loaded_and_what_is_out_does_not_come_twice(tmp_path: Path) -> None:
    async def body() -> None:
        disk = Disk(tmp_path)
        events = await backlog(disk)
        damage(disk.database, fewer_cells)
        async with disk.queue(boot_id="boot-2") as queue:
            alarm = await queue.take(10, 1 << 20)
            out = await queue.take(35, 1 << 20)  # the rest of its last group stays in memory
            back = await queue.take(35, 1 << 20)
            assert alarm is not None
            assert out is not None
            assert back is not None
            queue.ack(alarm)
            queue.release(back)
            delivered = [*alarm.events, *out.events, *await drain(queue)]
            queue.ack(out)
            assert sorted(delivered) == sorted(events)
            assert (lost(queue), queue.depth) == ({}, 0)

    run(body())


def test_events_in_memory_outlive_the_file_that_had_them(tmp_path: Path) -> None:
    """A batch that comes back is not asked of the store again: that may have lost it in the meantime."""

    async def body() -> None:
        disk = Disk(tmp_path)
        events = await backlog(disk)
        async with disk.queue(boot_id="boot-2") as queue:
            alarm = await queue.take(10, 1 << 20)
            back = await queue.take(35, 1 << 20)
            assert alarm is not None
            assert back is not None
            queue.ack(alarm)
            queue.release(back)
            store = queue._keeper._store
            assert store is not None
            store._execute("DELETE FROM groups WHERE seq < ?", (back.seq_of(0) + 35,))
            damage_open(store, fewer_cells)
            delivered = [*alarm.events, *await drain(queue)]
            assert sorted(delivered) == sorted(events)
            assert (lost(queue), queue.depth) == ({}, 0)

    run(body())


def damage_open(store: Store, change: Callable[[bytearray], None]) -> None:
    """Damage the file of a store that is in use, and have it read the file anew."""
    store.close()
    damage(store.path, change)
    store._open()


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[Store]:
    """The stores whose file was looked through, as often as it was."""
    checks: list[Store] = []
    check = Store.check

    def counted(store: Store) -> None:
        checks.append(store)
        check(store)

    monkeypatch.setattr(Store, "check", counted)
    return checks


def test_a_file_that_has_it_all_is_not_looked_through(tmp_path: Path, checks: list[Store]) -> None:
    """Neither events that are finished nor numbers that were never given out are holes."""

    async def body() -> None:
        disk = Disk(tmp_path)
        events = await backlog(disk)
        async with disk.queue(boot_id="boot-2") as queue:
            batches = [await queue.take(35, 1 << 20) for _ in range(12)]
            events += put(queue, 30)
            await ticks(queue, 4)
            for batch in batches[::2]:
                assert batch is not None
                events = [event for event in events if event not in batch.events]
                queue.ack(batch)
            await ticks(queue, 4)
        await put_after_a_kill(disk, events)
        async with disk.queue(boot_id="boot-4") as queue:
            assert sorted(await drain(queue)) == sorted(events)
            assert (lost(queue), queue.depth, checks) == ({}, 0, [])

    run(body())


async def put_after_a_kill(disk: Disk, events: list[bytes]) -> None:
    queue = disk.queue(boot_id="boot-3")
    async with left_for_dead(queue):
        events += put(queue, 30)
        await ticks(queue, 4)
        events += put(queue, 30)


def test_what_is_really_gone_is_counted_once_and_the_file_stays(tmp_path: Path, checks: list[Store]) -> None:
    async def body() -> None:
        disk = Disk(tmp_path)
        events = await backlog(disk)
        with contextlib.closing(sqlite3.connect(disk.database)) as db, db:
            db.execute("DELETE FROM groups WHERE seq IN (SELECT seq FROM groups ORDER BY seq LIMIT 5 OFFSET 40)")
        async with disk.queue(boot_id="boot-2") as queue:
            delivered = await drain(queue)
            assert delivered == [event for event in [events[-1], *events[:-1]] if event in set(delivered)]
            assert lost(queue) == {"damaged": len(events) - len(delivered)} == {"damaged": 5 * EVENTS}
            assert (len(checks), queue.depth, queue.trouble) == (1, 0, None)
            put(queue, 10)
            await ticks(queue)
            await drain(queue)
            assert len(checks) == 1
        assert not (disk.state / "queue.damaged-1.db").exists()

    run(body())


def test_a_file_that_cannot_be_checked_holds_up_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Store) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    async def body() -> None:
        disk = Disk(tmp_path)
        events = await backlog(disk)
        damage(disk.database, fewer_cells)
        async with disk.queue(boot_id="boot-2") as queue:
            with monkeypatch.context() as patch:
                patch.setattr(Store, "check", broken)
                delivered = await drain(queue)
            assert 0 < len(delivered) < len(events)
            assert lost(queue) == {"damaged": len(events) - len(delivered)}
            assert queue.depth == 0
            assert "disk I/O error" in (queue.trouble or "")
            await ticks(queue, 4)
            assert queue.trouble is None

    run(body())
