import contextlib
import os
import random
import shutil
import sqlite3
import zlib
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from edge_agent.telemetry.events.priority import Priority
from edge_agent.telemetry.queue import salvage
from edge_agent.telemetry.queue.groups import Group, parse, to_row
from edge_agent.telemetry.queue.intervals import Intervals, Span
from edge_agent.telemetry.queue.losses import Loss, Report
from edge_agent.telemetry.queue.seqs import lane, priority_of
from edge_agent.telemetry.queue.store import Commit, Store
from edge_agent.telemetry.queue.store_file import Meta, Position
from tests.telemetry.queue.queue_kit import BIG, Disk, drain, left_for_dead, lost, put, run, ticks


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path)
    yield store
    store.close()


def group(seq: int, count: int, *, ms: int = 0) -> Group:
    return Group(seq, count, ms or seq, ms or seq + count, [b"event %d" % i for i in range(seq, seq + count)])


def commit(
    store: Store,
    groups: list[Group],
    *,
    done: list[Span] | None = None,
    expired: list[Span] | None = None,
    droppable: list[Span] | None = None,
    out: list[Span] | None = None,
    limit: int = BIG,
    reports: list[Report] | None = None,
    positions: list[Position] | None = None,
) -> list[tuple[Priority, Loss]]:
    depths, ends = store.meta.depths.copy(), store.meta.next_seqs.copy()
    for new in groups:
        depths[priority_of(new.seq)] += new.count
        ends[priority_of(new.seq)] = max(ends[priority_of(new.seq)], new.end)
    meta = msgspec.structs.replace(store.meta, depths=depths, next_seqs=ends, done=done or [], reports=reports or [])
    return store.commit(
        Commit(
            meta=meta,
            positions=positions or [],
            groups=groups,
            damaged=[],
            expired=expired or [],
            droppable=droppable or [],
            out=Intervals(out or []),
            limit=limit,
            cause="queue_full",
        )
    ).losses


def seqs(store: Store) -> list[Span]:
    return [(g.seq, g.end) for g in store.load(0, 1 << 62, BIG, BIG)]


def test_groups_come_back_in_order_and_only_those_asked_for(store: Store) -> None:
    groups = [group(1, 10), group(11, 1), group(20, 1000)]
    commit(store, groups)
    assert store.load(0, BIG, BIG, BIG) == groups
    assert store.load(5, 11, BIG, BIG) == groups[:1]
    assert store.load(11, BIG, BIG, BIG) == groups[1:]
    assert store.load(0, BIG, 11, BIG) == groups[:2]
    assert store.load(0, BIG, 1, BIG) == groups[:1]
    assert store.load(0, BIG, BIG, 1) == groups[:1]
    assert store.load(12, 20, BIG, BIG) == []
    assert store.overlap([(5, 12), (15, 21)]) == 6 + 1 + 1


def test_finished_groups_are_deleted_and_parts_of_others_remembered(store: Store) -> None:
    commit(store, [group(1, 10), group(11, 10), group(21, 10), group(31, 10)])
    size = store.meta.size
    commit(store, [], done=[(1, 15), (25, 28), (60, 70)])
    assert seqs(store) == [(11, 21), (21, 31), (31, 41)]
    assert store.meta.done == [(11, 15), (25, 28)]
    assert 0 < store.meta.size < size
    commit(store, [], done=[(11, 41)])
    assert (seqs(store), store.meta.size, store.meta.done) == ([], 0, [])


def test_the_oldest_groups_are_dropped_but_not_those_that_are_out(store: Store) -> None:
    commit(store, [group(1, 10, ms=5), group(11, 10, ms=6), group(21, 10, ms=7), group(31, 10, ms=8)])
    size = store.meta.size
    dropped = commit(store, [], done=[(22, 25)], droppable=[(1, 41)], out=[(15, 16)], limit=size * 6 // 10)
    assert dropped == [
        (Priority.RESULT, Loss("queue_full", 10, 5, 5)),
        (Priority.RESULT, Loss("queue_full", 7, 7, 7)),
    ]
    assert seqs(store) == [(11, 21), (31, 41)]
    assert store.meta.losses == [Loss("queue_full", 17, 5, 7)]
    assert (store.meta.size <= size * 6 // 10, store.meta.done) == (True, [])


def test_a_transaction_that_fails_changes_nothing(store: Store) -> None:
    commit(store, [group(1, 10)])
    before = store.meta
    with pytest.raises(sqlite3.IntegrityError):
        commit(store, [group(11, 10), group(1, 10)], done=[(1, 5)])
    assert (store.meta, seqs(store)) == (before, [(1, 11)])
    commit(store, [group(11, 10)])
    assert seqs(store) == [(1, 11), (11, 21)]


def test_a_row_with_any_bit_flipped_is_not_believed() -> None:
    row = to_row(group(1, 50))
    assert parse(row).events
    for position in range(5):
        for bit in range(40):
            flipped = [*row]
            flipped[position] = row[position] ^ 1 << bit  # type: ignore[operator]  # the first five are numbers
            assert parse(tuple(flipped)).events == []
    for bit in range(len(row[5]) * 8):
        data = bytearray(row[5])
        data[bit // 8] ^= 1 << bit % 8
        assert parse((*row[:5], bytes(data))).events == []
    assert parse((1, "x", 0, 0, 0, b"")).events == []
    assert parse((None, None, None, None, None, None)).events == []


def test_a_replacement_that_a_crash_has_interrupted_is_ended_or_dropped(tmp_path: Path) -> None:
    store = Store(tmp_path)
    commit(store, [group(1, 10)])
    store.close()
    new = salvage.new_file(store.path)
    new.write_bytes(b"half")
    store = Store(tmp_path)
    assert seqs(store) == [(1, 11)]
    store.close()
    assert not new.exists()
    store.path.rename(new)  # the crash came between the two renames
    store = Store(tmp_path)
    assert seqs(store) == [(1, 11)]
    store.close()


def test_no_more_than_two_damaged_files_are_kept(tmp_path: Path) -> None:
    for _ in range(4):
        store = Store(tmp_path)
        store.close()
        store.path.write_bytes(b"rubbish" * 1000)
    store = Store(tmp_path)
    store.close()
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert kept == ["queue.damaged-3.db", "queue.damaged-4.db", "queue.db"]


# -- damage, seen through the queue


async def backlog(disk: Disk, groups: int) -> list[bytes]:
    """Leave a stored backlog on the disk, and return its events."""
    async with disk.queue() as queue:
        events: list[bytes] = []
        for _ in range(groups):
            events += put(queue, 50, noise=40)
            await ticks(queue)
    return events


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[bytes], Disk]:
    disk = Disk(tmp_path_factory.mktemp("origin"))
    return run(backlog(disk, 200)), disk


@pytest.fixture
def stored(origin: tuple[list[bytes], Disk], tmp_path: Path) -> tuple[list[bytes], Disk]:
    """The events of a large backlog, and a disk with it after a clean end."""
    events, disk = origin
    shutil.copytree(disk.root, tmp_path / "stored")
    return events, Disk(tmp_path / "stored")


def flip(path: Path, dice: random.Random, flips: int) -> None:
    data = bytearray(path.read_bytes())
    for _ in range(flips):
        data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
    path.write_bytes(data)


@pytest.mark.parametrize("flips", [1, 5, 50, 500])
@pytest.mark.parametrize("seed", range(4))
def test_flipped_bits_never_deliver_a_wrong_event_and_the_loss_is_counted(
    stored: tuple[list[bytes], Disk], flips: int, seed: int
) -> None:
    events, disk = stored
    order = {event: number for number, event in enumerate(events)}

    async def body() -> None:
        flip(disk.database, random.Random(seed), flips)
        async with disk.queue(boot_id="boot-2") as queue:
            delivered = await drain(queue)
            assert not set(delivered) - set(events)
            assert len(delivered) == len(set(delivered))
            assert delivered == sorted(delivered, key=order.__getitem__)
            # Hit 500 times, a file of 100 pages may not know any more how much it held.
            assert sum(lost(queue).values()) == len(events) - len(delivered) or flips == 500
            assert (lost(queue) != {}) == (len(events) != len(delivered))
            assert queue.depth == 0
            assert flips > 5 or len(delivered) >= 0.9 * len(events)
            new = put(queue, 10)
            await ticks(queue)
            assert await drain(queue) == new

    run(body())


@pytest.mark.parametrize("what", ["rubbish", "zeroed", "truncated", "empty", "header"])
def test_a_database_that_is_destroyed_does_not_stop_the_queue(tmp_path: Path, what: str) -> None:
    async def body() -> None:
        disk = Disk(tmp_path)
        events = await backlog(disk, 20)
        data = disk.database.read_bytes()
        disk.database.write_bytes(
            {
                "rubbish": os.urandom(len(data)),
                "zeroed": bytes(len(data)),
                "truncated": data[: len(data) // 2],
                "empty": b"",
                "header": bytes(100) + data[100:],
            }[what]
        )
        async with disk.queue(boot_id="boot-2", clock=lambda: 1_700_000_001.0) as queue:
            first = put(queue, 1)
            assert not set(first) & set(events)
            delivered = await drain(queue)
            assert not set(delivered) - {*events, *first}
            if what == "header":
                assert (delivered, lost(queue)) == (events + first, {})
            else:  # an empty file is what a crash at the very first start leaves
                assert lost(queue) or what == "empty"
            await ticks(queue)
        async with disk.queue(boot_id="boot-2") as queue:
            assert queue.trouble is None

    run(body())


@pytest.mark.parametrize("what", ["zeroed", "truncated", "rubbish", "missing"])
def test_a_damaged_wal_is_noticed_by_what_the_journal_knows(tmp_path: Path, what: str) -> None:
    disk = Disk(tmp_path)

    async def body() -> None:
        async with left_for_dead(disk.queue()) as queue:
            events = put(queue, 50)
            await ticks(queue)
            events += put(queue, 50)
            await ticks(queue)
            events += put(queue, 50)
            copy = disk.copy()
        wal = copy.state / "queue.db-wal"
        data = wal.read_bytes()
        if what == "missing":
            wal.unlink()
        else:
            half = data[: len(data) // 2]
            wal.write_bytes(
                {"zeroed": bytes(len(data)), "truncated": half, "rubbish": half + os.urandom(len(half))}[what]
            )
        async with copy.queue() as queue:
            counted = sum(lost(queue).values())
            delivered = await drain(queue)
            assert delivered == [event for event in events if event in set(delivered)]
            assert counted == len(events) - len(delivered) > 0
            assert not set(put(queue, 50)) & set(events)

    run(body())


def test_damage_that_shows_while_the_queue_runs(stored: tuple[list[bytes], Disk]) -> None:
    events, disk = stored

    async def body() -> None:
        pages = disk.database.stat().st_size // 4096
        async with disk.queue(boot_id="boot-2") as queue:
            with disk.database.open("r+b") as file:
                for page in range(pages // 2, pages // 2 + 10):
                    file.seek(page * 4096)
                    file.write(os.urandom(4096))
            new = put(queue, 10)
            delivered = await drain(queue)
            assert len(delivered) > len(events) / 2
            arrived = set(delivered)
            assert delivered == [event for event in events + new if event in arrived]
            assert sum(lost(queue).values()) == len(events) + 10 - len(delivered) > 0
            assert (queue.depth, queue.trouble) == (0, None)
            await ticks(queue)
            assert queue.size == 0
        assert (disk.state / "queue.damaged-1.db").exists()

    run(body())


def test_a_store_that_keeps_failing_is_looked_through_for_damage(stored: tuple[list[bytes], Disk]) -> None:
    events, disk = stored

    async def body() -> None:
        aside = disk.state / "queue.damaged-1.db"
        async with disk.queue(boot_id="boot-2") as queue:
            with disk.database.open("r+b") as file:
                file.seek(disk.database.stat().st_size // 2 // 4096 * 4096)
                file.write(os.urandom(4096))
            new = put(queue, 10)
            await ticks(queue)
            assert not aside.exists()  # a transaction touches other pages only
            queue._keeper._trouble._failures = 8
            new += put(queue, 10)
            await ticks(queue)
            assert aside.exists()
            counted = sum(lost(queue).values())
            assert queue.depth == len(events + new) - counted
            delivered = await drain(queue)
            assert len(delivered) == len(events + new) - counted
            assert (queue.depth, sum(lost(queue).values())) == (0, counted)

    run(body())


def test_a_flipped_bit_in_the_journal_costs_one_record_and_is_counted(tmp_path: Path) -> None:
    async def body() -> None:
        for seed in range(20):
            disk = Disk(tmp_path / str(seed))
            async with left_for_dead(disk.queue()) as queue:
                events = []
                for _ in range(40):
                    events += put(queue, 5)
                await queue.tick()
                for _ in range(40):
                    events += put(queue, 5)
                copy = disk.copy()
            flip(copy.journals()[0], random.Random(seed), 1)
            async with copy.queue() as queue:
                counted = sum(lost(queue).values())
                delivered = await drain(queue)
                assert delivered == [event for event in events if event in set(delivered)]
                assert counted == len(events) - len(delivered)
                assert counted in {0, 5}  # 0 where the header of the file was hit
                assert not set(put(queue, 5)) & set(events)

    run(body())


def test_an_old_state_means_that_something_is_missing(tmp_path: Path) -> None:
    """Somebody has put back a copy of the state directory while the journal is of today."""

    async def body() -> None:
        disk = Disk(tmp_path)
        async with left_for_dead(disk.queue()) as queue:
            old = disk.copy()
            put(queue, 100)
            await ticks(queue)
            new = disk.copy()
        assert old.runtime is not None
        assert new.runtime is not None
        for path in old.journals():
            path.unlink()
        for path in new.journals():
            path.rename(old.runtime / path.name)
        async with old.queue() as queue:
            assert (lost(queue), queue.depth, queue.next_number) == ({"damaged": 100}, 0, 101)

    run(body())


def test_a_journal_that_cannot_be_read_costs_only_itself(tmp_path: Path) -> None:
    async def body() -> None:
        disk = Disk(tmp_path)
        events = await backlog(disk, 3)
        assert disk.runtime is not None
        (disk.runtime / "journal-1").mkdir()  # older than the state, and cannot be deleted
        (disk.runtime / "journal-9999").mkdir()
        async with disk.queue(clock=lambda: 1_700_000_001.0) as queue:
            assert not set(put(queue, 1)) & set(events)
            assert (await drain(queue))[:-1] == events

    run(body())


def test_a_state_of_another_version_is_salvaged(tmp_path: Path) -> None:
    async def body() -> None:
        disk = Disk(tmp_path)
        events = await backlog(disk, 3)
        with contextlib.closing(sqlite3.connect(disk.database)) as db:
            body = b'{"depth": 7, "next_seqs": "other"}'
            db.execute("UPDATE meta SET body = ?, crc = ?", (body, zlib.crc32(body)))
            db.commit()
        async with disk.queue(boot_id="boot-2") as queue:
            assert await drain(queue) == events
            assert lost(queue) == {"damaged": 1}  # how many there were is not known

    run(body())


def test_what_a_damaged_file_held_is_counted_in_each_lane(tmp_path: Path) -> None:
    disk = Disk(tmp_path)

    async def body() -> None:
        async with left_for_dead(disk.queue()) as queue:
            for number in range(30):
                put(queue, 10, noise=300, priority=Priority(number % 4))
                await ticks(queue)
            before = queue.depths
            copy = disk.copy()
        (copy.state / "queue.db-wal").unlink()
        flip(copy.database, random.Random(1), 400)
        async with copy.queue() as queue:
            delivered = await drain(queue)
            assert queue.depths == dict.fromkeys(Priority, 0)
            assert sum(before.values()) == len(delivered) + sum(lost(queue).values())

    run(body())


def test_the_least_important_make_room_for_what_is_new_and_what_is_out_is_spared(store: Store) -> None:
    alarm, result = lane(Priority.ALARM)[0], lane(Priority.RESULT)[0]
    commit(store, [group(alarm + 1, 10), group(result + 1, 10), group(result + 11, 10)])
    both = [(result, result + 21), (alarm, alarm + 11)]
    limit = store.meta.size
    dropped = commit(store, [group(result + 21, 10)], droppable=both, out=[(result + 1, result + 2)], limit=limit)
    assert [(priority, loss.count) for priority, loss in dropped] == [(Priority.RESULT, 10)]
    assert seqs(store) == [(result + 1, result + 11), (result + 21, result + 31), (alarm + 1, alarm + 11)]
    # Results that are new or out are no reason to drop an alarm: they go first, a transaction later.
    dropped = commit(store, [group(result + 31, 10)], droppable=both, out=[(result + 1, result + 2)], limit=10)
    assert [priority for priority, _ in dropped] == [Priority.ALARM]


def test_expired_groups_and_the_reports_in_them(store: Store) -> None:
    notice = lane(Priority.NOTICE)[0]
    told = Loss("rejected", 3, 1, 2)
    commit(store, [group(notice + 1, 10, ms=5), group(notice + 11, 10)])
    dropped = commit(
        store, [], expired=[(notice, notice + 15)], reports=[(notice + 2, told), (notice + 12, told)], done=[]
    )
    assert dropped == [(Priority.NOTICE, Loss("expired", 10, 5, 5))]
    assert store.meta.losses == [Loss("expired", 10, 5, 5), told]
    assert store.meta.reports == [(notice + 12, told)]
    assert store.meta.depths == [0, 10, 0, 0]


def test_positions_are_kept_and_may_be_damaged(tmp_path: Path) -> None:
    store = Store(tmp_path)
    positions = [Position(1.5, [1, 2, 3, 4])]
    commit(store, [group(1, 10)], positions=positions)
    store.close()
    store = Store(tmp_path)
    assert store.positions == positions
    store._execute("UPDATE meta SET crc = 7 WHERE id = 3")
    store.close()
    store = Store(tmp_path)
    assert (store.positions, seqs(store)) == ([], [(1, 11)])
    store.close()


def test_the_state_of_a_new_file_is_empty(store: Store) -> None:
    assert store.meta == Meta()
    assert store.load(0, BIG, 1, 1) == []
    assert store.oldest_ms() is None


def zero_root(database: Path) -> int:
    """Write zeros over the page that leads to all groups, and return its number."""
    with contextlib.closing(sqlite3.connect(database)) as db:
        (page,) = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'groups'").fetchone()
    with database.open("r+b") as file:
        file.seek((page - 1) * 4096)
        assert file.read(1) == b"\5", "it leads to nothing"
        file.seek(-1, 1)
        file.write(bytes(4096))
    return int(page)


def test_groups_are_found_though_nothing_leads_to_them_and_none_that_were_finished(tmp_path: Path) -> None:
    async def body() -> None:
        disk = Disk(tmp_path)
        events: list[bytes] = []
        async with disk.queue() as queue:
            for number in range(120):
                # Small ones, and some that do not fit on a page.
                events += put(queue, 30, noise=10 if number % 3 else 400)
                await ticks(queue)
            batch = await queue.take(1500, 1 << 30)
            assert batch is not None
            queue.ack(batch)
            left = events[len(batch.events) :]
            await ticks(queue, 4)
        zero_root(disk.database)
        async with disk.queue(boot_id="boot-2") as queue:
            assert (lost(queue), queue.depth) == ({}, len(left))
            assert await drain(queue) == left

    run(body())
