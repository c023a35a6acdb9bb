"""The store: unsent events on the card, in one SQLite file. All methods run in the queue's store thread.

`store_file.py` says what the file looks like. Invariants:

- A transaction (WAL, synchronous=FULL) holds all that the journal files up to `meta.journal` say, whole.
- An event has a `seq`; seqs go on for as long as the file lives, across epochs. The key of a group is the seq
  of its first event. A finished event may stand in a group whose other events are not finished (`meta.done`).
- A file that SQLite calls damaged is set aside, what is readable of it goes to a new file, the rest is counted.
"""

import contextlib
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from edge_agent.durable import sync
from edge_agent.telemetry.events.priority import Priority
from edge_agent.telemetry.queue import salvage, store_file
from edge_agent.telemetry.queue.groups import MAX_EVENTS, Group, parse, to_row
from edge_agent.telemetry.queue.intervals import Intervals, Span
from edge_agent.telemetry.queue.losses import EXPIRED, Books, Loss
from edge_agent.telemetry.queue.seqs import lane, priority_of
from edge_agent.telemetry.queue.store_file import Meta, Position

NAME = "queue.db"

T = TypeVar("T")
_FREE_PAGES = 256  # pages of 4 KiB; fewer are not worth giving back
# A damaged page may hold any type and any number. Only `parse` sees the CRC, so elsewhere they are bounded.
_COUNT = f"min(max(CAST(count AS INTEGER), 1), {MAX_EVENTS})"
_FIRST, _LAST = "CAST(first_ms AS INTEGER)", "CAST(last_ms AS INTEGER)"
_SIZE = "coalesce(length(data), 0)"
_Row = tuple[int, int, int, int, int]
"""Seq, count, first_ms, last_ms and size of a group."""


class Commit(msgspec.Struct, frozen=True, kw_only=True):
    """One transaction. `meta` is the state before what the transaction itself drops or finds to be gone.

    `expired` are seqs whose groups are dropped, `droppable` those of which the first groups are dropped until the
    store holds at most `limit` bytes, for the reason `cause`; except those that overlap `out`. Groups that are
    written now make no room for each other: a later transaction drops them. `damaged` are groups that were found
    unreadable and counted.
    """

    meta: Meta
    positions: list[Position]
    groups: Sequence[Group]
    damaged: Sequence[int]
    expired: Sequence[Span]
    droppable: Sequence[Span]
    out: Intervals
    limit: int
    cause: str


class Dropped(msgspec.Struct, frozen=True):
    """What a transaction gave up: unsent events by priority and cause, and all seqs of the groups."""

    losses: list[tuple[Priority, Loss]]
    spans: list[Span]


class Damage(msgspec.Struct, frozen=True):
    """A file was damaged. It should have had `expected` unsent events, by priority; the times are of what is left."""

    expected: list[int]
    first_ms: int
    last_ms: int


class Store:
    """`meta` and `positions` are what the last transaction wrote.

    `damage` is set where the file had to be replaced; `meta` counts only what is left then.
    """

    def __init__(self, directory: Path) -> None:
        """Open or create the file. Raises OSError or sqlite3.Error where the directory cannot be used."""
        self.path = directory / NAME
        self.meta = Meta()
        self.positions: list[Position] = []
        self.damage: Damage | None = None
        self._db: sqlite3.Connection | None = None
        salvage.finish(self.path)
        try:
            self._open_or_rebuild()
        except (OSError, sqlite3.Error):
            self.close()  # or its lock would keep out the next try
            raise

    def _open_or_rebuild(self) -> None:
        try:
            self.meta = self._open()
        except sqlite3.Error as error:
            if not salvage.is_damage(error):
                raise
            self._rebuild(None)

    def note(self, meta: Meta) -> None:
        """Write the state alone, durably."""
        self._repaired(self._note, meta)

    def commit(self, commit: Commit) -> Dropped:
        """Run one transaction and return what it dropped. After an error nothing has changed."""
        return self._repaired(self._commit, commit)

    def load(self, start: int, end: int, max_events: int, max_bytes: int) -> list[Group]:
        """Read groups that have events in `[start, end)`, oldest first: at least one, if there is one."""
        return self._repaired(self._load, start, end, max_events, max_bytes)

    def overlap(self, spans: Sequence[Span]) -> int:
        """Return how many events of the spans stand in groups."""
        return self._repaired(self._overlap, spans)

    def oldest_ms(self) -> int | None:
        """Return the time of the oldest event."""
        return self._repaired(self._oldest_ms)

    def check(self) -> None:
        """Look for damage in the whole file, and replace it if there is some. Takes long."""
        self._repaired(self._check)

    def _repaired(self, function: Callable[..., T], *arguments: object) -> T:
        if self._db is None:  # an I/O error has interrupted the replacement of a damaged file
            salvage.finish(self.path)
            self._rebuild(self.meta)
        try:
            return function(*arguments)
        except sqlite3.Error as error:
            if not salvage.is_damage(error):
                raise
            self._rebuild(self.meta)
            return function(*arguments)

    def close(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None

    @property
    def _connection(self) -> sqlite3.Connection:
        if self._db is None:
            raise sqlite3.OperationalError(f"{self.path} is closed")
        return self._db

    def _execute(self, statement: str, values: Sequence[int | bytes] = ()) -> sqlite3.Cursor:
        return self._connection.execute(statement, values)

    # -- transactions

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._execute("BEGIN IMMEDIATE")
        try:
            yield
            self._execute("COMMIT")
        finally:
            if self._connection.in_transaction:  # SQLite has rolled back by itself after some errors
                self._execute("ROLLBACK")

    def _note(self, meta: Meta) -> None:
        with self._transaction():
            store_file.write_meta(self._connection, meta)
        self.meta = meta

    def _commit(self, commit: Commit) -> Dropped:
        meta = commit.meta
        with self._transaction():
            size = self.meta.size - self._delete(meta.done, commit.damaged)
            size += self._insert(commit.groups)
            freed, dropped = self._drop(commit, size)
            books, depths = Books(meta.losses, meta.reports), meta.depths.copy()
            for priority, loss in dropped.losses:
                books.ledger.add(loss)
                depths[priority] -= loss.count
            books.restore(dropped.spans)
            meta = msgspec.structs.replace(
                meta,
                size=max(0, size - freed) if self._any() else 0,
                depths=depths,
                losses=books.ledger.entries(),
                reports=books.reports,
                done=self._remaining(meta.done),
            )
            store_file.write_meta(self._connection, meta)
            if commit.positions != self.positions:
                store_file.write_positions(self._connection, commit.positions)
        self.meta, self.positions = meta, commit.positions
        self._give_back()
        return dropped

    def _delete(self, done: Sequence[Span], damaged: Sequence[int]) -> int:
        whole = f"DELETE FROM groups WHERE seq >= ? AND seq < ? AND seq + count <= ? RETURNING {_SIZE}"  # noqa: S608
        one = f"DELETE FROM groups WHERE seq = ? RETURNING {_SIZE}"  # noqa: S608
        freed = [self._execute(whole, (a, b, b)).fetchall() for a, b in done]
        freed += [self._execute(one, (seq,)).fetchall() for seq in damaged]
        return sum(size for rows in freed for (size,) in rows)

    def _any(self) -> bool:
        return self._execute("SELECT 1 FROM groups LIMIT 1").fetchone() is not None

    def _insert(self, groups: Sequence[Group]) -> int:
        size = 0
        for group in groups:
            row = to_row(group)
            self._execute("INSERT INTO groups VALUES (?, ?, ?, ?, ?, ?)", row)
            size += len(row[5])
        return size

    def _drop(self, commit: Commit, size: int) -> tuple[int, Dropped]:
        """Drop what has expired, then the first groups until `limit` holds. Return the bytes that are free by that."""
        expired = [
            row
            for a, b in commit.expired
            for row in self._groups_within(a, b)
            if row[0] + row[1] <= b and not commit.out.overlap(row[0], row[0] + row[1])
        ]
        freed = self._remove(expired)
        surplus = list(self._surplus(commit, size - freed))
        freed += self._remove(surplus)
        done = Intervals(commit.meta.done)
        losses = [
            (priority_of(seq), Loss(cause, lost, first_ms, last_ms))
            for cause, rows in ((EXPIRED, expired), (commit.cause, surplus))
            for seq, count, first_ms, last_ms, _ in rows
            if (lost := count - done.overlap(seq, seq + count))
        ]
        return freed, Dropped(losses, [(row[0], row[0] + row[1]) for row in (*expired, *surplus)])

    def _surplus(self, commit: Commit, size: int) -> Iterator[_Row]:
        limit = commit.limit
        for a, b in commit.droppable:
            spared = 0
            for row in self._groups_within(a, b):
                if size <= limit:
                    break
                if commit.out.overlap(row[0], row[0] + row[1]):
                    spared += row[4]
                else:
                    size -= row[4]
                    yield row
            # What is out, or new here, goes before anything more important does.
            limit += spared + sum(row[4] for row in self._groups_within(b, lane(priority_of(b))[1]))

    def _remove(self, rows: Sequence[_Row]) -> int:
        for seq, *_ in rows:
            self._execute("DELETE FROM groups WHERE seq = ?", (seq,))
        return sum(row[4] for row in rows)

    def _remaining(self, done: Sequence[Span]) -> list[Span]:
        """Return what of the finished seqs still stands in a group with others that are not finished."""
        left = Intervals()
        for a, b in done:
            for seq, count, *_ in self._groups_within(a, b):
                left.add(max(a, seq), min(b, seq + count))
        return list(left)

    def _groups_within(self, start: int, end: int) -> Iterator[_Row]:
        """Yield seq, count, first_ms, last_ms and size of the groups that have events in `[start, end)`."""
        query = (
            f"SELECT seq, {_COUNT}, {_FIRST}, {_LAST}, {_SIZE} FROM groups WHERE seq < ?2"  # noqa: S608
            " AND seq >= coalesce((SELECT max(seq) FROM groups WHERE seq <= ?1), ?1) AND seq + count > ?1"
            " ORDER BY seq"
        )
        return iter(self._execute(query, (start, end)))

    def _give_back(self) -> None:
        """Shrink the file once it is empty. Before that it would mean to move pages, which wears the card."""
        if self.meta.size == 0:
            (free,) = self._execute("PRAGMA freelist_count").fetchone()
            if free > _FREE_PAGES:
                self._connection.executescript("PRAGMA incremental_vacuum")  # `execute` stops after one page

    # -- reading

    def _overlap(self, spans: Sequence[Span]) -> int:
        return sum(min(b, seq + count) - max(a, seq) for a, b in spans for seq, count, *_ in self._groups_within(a, b))

    def _oldest_ms(self) -> int | None:
        query = f"SELECT {_FIRST} FROM groups WHERE seq >= ? AND seq < ? ORDER BY seq LIMIT 1"  # noqa: S608
        rows = [self._execute(query, lane(priority)).fetchone() for priority in Priority]
        return min((row[0] for row in rows if row is not None), default=None)

    def _check(self) -> None:
        if self._execute("PRAGMA quick_check(1)").fetchone()[0] not in {"ok", b"ok"}:
            raise salvage.damage("the file is damaged")

    def _load(self, start: int, end: int, max_events: int, max_bytes: int) -> list[Group]:
        query = (
            "SELECT seq, count, first_ms, last_ms, crc, data FROM groups WHERE seq < ?2"
            " AND seq >= coalesce((SELECT max(seq) FROM groups WHERE seq <= ?1), ?1) ORDER BY seq"
        )
        groups: list[Group] = []
        events = size = 0
        for group in map(parse, self._execute(query, (start, end))):
            if groups and group.seq <= groups[-1].seq:
                raise salvage.damage("groups out of order")
            if groups and not groups[-1].events:
                groups[-1] = groups[-1].bounded(group.seq)
            if events >= max_events or size >= max_bytes:
                break
            if group.end > start:
                groups.append(group)
                events += group.count
                size += sum(map(len, group.events))
        return groups

    # -- creation and damage

    def _open(self) -> Meta:
        self._db = store_file.connect(self.path)
        if store_file.is_new(self._db):
            store_file.create(self._db)
            sync(self.path.parent)
        store_file.check(self._db)
        for edge in ("min", "max"):
            self._execute(f"SELECT {edge}(seq) FROM groups").fetchall()  # noqa: S608
        meta = store_file.read_meta(self._db)
        self.positions = store_file.read_positions(self._db)
        return meta

    def _rebuild(self, known: Meta | None) -> None:
        """Go on with a new file that holds what could be read of the damaged one, which is set aside."""
        self.close()
        with contextlib.closing(salvage.Reader(self.path, store_file.check, store_file.first_page())) as reader:
            known = known if known is not None else reader.meta(store_file.read_meta)
            try:
                found = self._copy(reader, known)
            except sqlite3.OperationalError:
                # A full disk: better without the old events than without a queue. They stay in the file set aside.
                found = _Found()
                self._copy(None, known)
        salvage.replace(self.path)
        sync(self.path.parent)
        self.meta = self._open()
        self.damage = Damage(known.depths if known else found.expected(), found.first_ms, found.last_ms)

    def _found_rows(self, reader: salvage.Reader, found: "_Found") -> Iterator[tuple[Any, ...]]:
        yield from reader.rows()
        yield from reader.stray_rows(lambda seq: not found.spans.overlap(seq, seq + 1))

    def _copy(self, reader: salvage.Reader | None, known: Meta | None) -> "_Found":
        """Write the file that will replace the damaged one, with all rows whose CRC is right."""
        found, done = _Found(), Intervals(known.done if known else ())
        path = salvage.new_file(self.path)
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
            db.execute("PRAGMA auto_vacuum=INCREMENTAL")
            db.execute("PRAGMA journal_mode=OFF").fetchall()  # the file counts only once it is complete
            db.execute("PRAGMA synchronous=OFF")
            store_file.create(db)
            db.execute("BEGIN")
            for row in self._found_rows(reader, found) if reader is not None else ():
                group = parse(row)
                if group.events and not found.spans.overlap(group.seq, group.end):
                    db.execute("INSERT INTO groups VALUES (?, ?, ?, ?, ?, ?)", row)
                    found.add(group, len(row[5]), done)
            store_file.write_meta(db, found.meta(known))
            store_file.write_positions(db, self.positions)
            db.execute("COMMIT")
        sync(path)
        return found


class _Found:
    """What was salvaged. Lists are by priority."""

    def __init__(self) -> None:
        self.spans = Intervals()
        self.depths = [0] * len(Priority)
        self.size = self.first_ms = self.last_ms = 0

    def add(self, group: Group, size: int, done: Intervals) -> None:
        self.first_ms = min(self.first_ms, group.first_ms) if self.spans else group.first_ms
        self.last_ms = max(self.last_ms, group.last_ms)
        self.spans.add(group.seq, group.end)
        self.depths[priority_of(group.seq)] += group.count - done.overlap(group.seq, group.end)
        self.size += size

    def _edges(self, priority: Priority) -> Span:
        start, end = lane(priority)
        spans = self.spans.clip(start, end)
        return (spans[0][0], spans[-1][1]) if spans else (start + 1, start + 1)

    def expected(self) -> list[int]:
        """Return how many events there were, without the state: those between the groups are gone, but at least one."""
        missing = [sum(b - a for a, b in self.spans.gaps(*self._edges(priority))) for priority in Priority]
        missing[Priority.RESULT] += not any(missing)
        return [here + gone for here, gone in zip(self.depths, missing, strict=True)]

    def meta(self, known: Meta | None) -> Meta:
        next_seqs = [self._edges(priority)[1] for priority in Priority]
        if known is None:
            return Meta(next_seqs=next_seqs, depths=self.depths, size=self.size, running=True)
        next_seqs = list(map(max, next_seqs, known.next_seqs))
        return msgspec.structs.replace(known, next_seqs=next_seqs, depths=self.depths, size=self.size)
