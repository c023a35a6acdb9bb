"""The store: unsent events on the card, in one SQLite file. All methods run in the queue's store thread.

Two tables. `groups` holds up to 1000 consecutive events a row (`groups.py`). `meta` holds one row: the state of
the queue as of the last transaction. Invariants:

- A transaction (WAL, synchronous=FULL) holds all that the journal files up to `meta.journal` say, whole.
- An event has a `seq`; seqs go on for as long as the file lives, across epochs. The key of a group is the seq
  of its first event. A finished event may stand in a group whose other events are not finished (`meta.done`).
- A file that SQLite calls damaged is set aside, what is readable of it goes to a new file, the rest is counted.
"""

import contextlib
import os
import sqlite3
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from edge_agent.telemetry import salvage
from edge_agent.telemetry.groups import Group, parse, to_row
from edge_agent.telemetry.intervals import Intervals, Span
from edge_agent.telemetry.losses import Ledger, Loss

NAME = "queue.db"
_FREE_PAGES = 256  # pages of 4 KiB; fewer are not worth giving back
_PRAGMAS = (
    "locking_mode=EXCLUSIVE",  # before the first access: the index of the WAL stays off the card
    "cell_size_check=ON",
    "journal_mode=WAL",
    "synchronous=FULL",
    "secure_delete=OFF",  # Debian's default is to overwrite what is deleted
    "journal_size_limit=4194304",
    "cache_size=-1024",
    "temp_store=MEMORY",
)
_SCHEMA = (
    "CREATE TABLE meta (id INTEGER PRIMARY KEY, body BLOB NOT NULL, crc INTEGER NOT NULL)",
    """CREATE TABLE groups (seq INTEGER PRIMARY KEY, count INTEGER NOT NULL, first_ms INTEGER NOT NULL,
       last_ms INTEGER NOT NULL, crc INTEGER NOT NULL, data BLOB NOT NULL)""",
)


class Meta(msgspec.Struct, frozen=True, kw_only=True):
    """State of the queue as of transaction `commit`.

    `depth` events in groups are unsent, `size` is the bytes of all groups, the epoch's number 1 has seq `base`.
    """

    epoch: int = 0
    base: int = 1
    next_seq: int = 1
    journal: int = 0
    commit: int = 0
    depth: int = 0
    size: int = 0
    running: bool = False
    boot_id: str = ""
    losses: list[Loss] = []
    done: list[Span] = []


class Commit(msgspec.Struct, frozen=True, kw_only=True):
    """One transaction. `meta` is the state before what the transaction itself drops or finds to be gone.

    `droppable` are the seqs of which the oldest groups may be dropped until `max_size` holds, except those
    that overlap `out`. `damaged` are groups that were found unreadable and counted.
    """

    meta: Meta
    groups: Sequence[Group]
    damaged: Sequence[int]
    droppable: Span
    out: Intervals
    max_size: int


class Store:
    """`meta` is what the last transaction wrote. `lost` is what a damaged file cost, until `take_lost`."""

    def __init__(self, directory: Path) -> None:
        """Open or create the file. Raises OSError or sqlite3.Error where the directory cannot be used."""
        self.path = directory / NAME
        self.meta = Meta()
        self.damaged = False
        self._lost: Loss | None = None
        self._db: sqlite3.Connection | None = None
        salvage.finish(self.path)
        try:
            self.meta = self._open()
        except sqlite3.Error as error:
            if not salvage.is_damage(error):
                self.close()
                raise
            self._rebuild(None)

    def take_lost(self) -> Loss | None:
        lost, self._lost = self._lost, None
        return lost

    def note(self, meta: Meta) -> None:
        """Write the state alone, durably."""
        with self._transaction():
            _write_meta(self._connection, meta)
        self.meta = meta

    def commit(self, commit: Commit) -> Loss | None:
        """Run one transaction and return what was dropped to hold `max_size`. After an error nothing has changed."""
        try:
            return self._commit(commit)
        except sqlite3.Error as error:
            if not salvage.is_damage(error):
                raise
            self._rebuild(self.meta)
            gone = self._lost.count if self._lost else 0
            meta = msgspec.structs.replace(commit.meta, depth=max(0, commit.meta.depth - gone))
            return self._commit(msgspec.structs.replace(commit, meta=meta))

    def load(self, start: int, end: int, max_events: int, max_bytes: int) -> list[Group]:
        """Read groups that have events in `[start, end)`, oldest first: at least one, if there is one."""
        try:
            return list(self._load(start, end, max_events, max_bytes))
        except sqlite3.Error as error:
            if not salvage.is_damage(error):
                raise
            self._rebuild(self.meta)
            return list(self._load(start, end, max_events, max_bytes))

    def overlap(self, spans: Sequence[Span]) -> int:
        """Return how many events of the spans stand in groups."""
        return sum(min(b, seq + count) - max(a, seq) for a, b in spans for seq, count in self._groups_within(a, b))

    def oldest_ms(self) -> int | None:
        row = self._execute("SELECT first_ms FROM groups ORDER BY seq LIMIT 1").fetchone()
        return None if row is None else int(row[0])

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

    def _commit(self, commit: Commit) -> Loss | None:
        meta = commit.meta
        with self._transaction():
            size = self.meta.size - self._delete(meta.done, commit.damaged)
            size += self._insert(commit.groups)
            freed, dropped = self._drop(commit, size - commit.max_size)
            ledger = Ledger(meta.losses)
            if dropped is not None:
                ledger.add(dropped)
            meta = msgspec.structs.replace(
                meta,
                size=size - freed,
                depth=meta.depth - (dropped.count if dropped else 0),
                commit=self.meta.commit + 1,
                losses=ledger.entries(),
                done=self._remaining(meta.done),
            )
            _write_meta(self._connection, meta)
        self.meta = meta
        self._give_back()
        return dropped

    def _delete(self, done: Sequence[Span], damaged: Sequence[int]) -> int:
        whole = "DELETE FROM groups WHERE seq >= ? AND seq < ? AND seq + count <= ? RETURNING length(data)"
        one = "DELETE FROM groups WHERE seq = ? RETURNING length(data)"
        freed = [self._execute(whole, (a, b, b)).fetchall() for a, b in done]
        freed += [self._execute(one, (seq,)).fetchall() for seq in damaged]
        return sum(size for rows in freed for (size,) in rows)

    def _insert(self, groups: Sequence[Group]) -> int:
        size = 0
        for group in groups:
            row = to_row(group)
            self._execute("INSERT INTO groups VALUES (?, ?, ?, ?, ?, ?)", row)
            size += len(row[5])
        return size

    def _drop(self, commit: Commit, excess: int) -> tuple[int, Loss | None]:
        """Drop the oldest groups until `excess` bytes are free. Return what that freed and what was lost."""
        done, freed, ledger = Intervals(commit.meta.done), 0, Ledger()
        columns = "seq, count, first_ms, last_ms, length(data)"
        rows = self._groups_within(*commit.droppable, columns) if excess > 0 else iter(())
        for seq, count, first_ms, last_ms, size in rows:
            if freed >= excess:
                break
            if commit.out.overlap(seq, seq + count):
                continue
            self._execute("DELETE FROM groups WHERE seq = ?", (seq,))
            freed += size
            lost = count - done.overlap(seq, seq + count)
            if lost:
                ledger.add(Loss("queue_full", lost, first_ms, last_ms))
        return freed, next(iter(ledger.entries()), None)

    def _remaining(self, done: Sequence[Span]) -> list[Span]:
        """Return what of the finished seqs still stands in a group with others that are not finished."""
        left = Intervals()
        for a, b in done:
            for seq, count in self._groups_within(a, b):
                left.add(max(a, seq), min(b, seq + count))
        return list(left)

    def _groups_within(self, start: int, end: int, columns: str = "seq, count") -> Iterator[tuple[int, ...]]:
        query = (
            f"SELECT {columns} FROM groups WHERE seq < ?2"  # noqa: S608  # the columns are constants
            " AND seq >= coalesce((SELECT max(seq) FROM groups WHERE seq <= ?1), ?1) AND seq + count > ?1"
            " ORDER BY seq"
        )
        return iter(self._execute(query, (start, end)).fetchall())

    def _give_back(self) -> None:
        """Shrink the file once it is empty. Before that it would mean to move pages, which wears the card."""
        if self.meta.size == 0:
            (free,) = self._execute("PRAGMA freelist_count").fetchone()
            if free > _FREE_PAGES:
                self._connection.executescript("PRAGMA incremental_vacuum")  # `execute` stops after one page

    # -- reading

    def _load(self, start: int, end: int, max_events: int, max_bytes: int) -> Iterator[Group]:
        query = (
            "SELECT seq, count, first_ms, last_ms, crc, data FROM groups WHERE seq < ?2"
            " AND seq >= coalesce((SELECT max(seq) FROM groups WHERE seq <= ?1), ?1) ORDER BY seq"
        )
        events = size = 0
        rows = self._execute(query, (start, end))
        for row in rows:
            group = parse(row)
            if not group.events:
                group = self._bounded(group)
            if group.end <= start:
                continue
            yield group
            events += group.count
            size += sum(map(len, group.events))
            if events >= max_events or size >= max_bytes:
                rows.close()
                return

    def _bounded(self, damaged: Group) -> Group:
        """Do not let a damaged count reach into the next group."""
        (following,) = self._execute("SELECT min(seq) FROM groups WHERE seq > ?", (damaged.seq,)).fetchone()
        count = damaged.count if following is None else min(damaged.count, following - damaged.seq)
        return msgspec.structs.replace(damaged, count=count)

    # -- creation and damage

    def _open(self) -> Meta:
        self._db = _connect(self.path)
        if _is_empty(self._db):
            _create(self._db)
            sync_directory(self.path.parent)
        return _read_meta(self._db)

    def _rebuild(self, known: Meta | None) -> None:
        """Go on with a new file that holds what could be read of the damaged one, which is set aside."""
        self.close()
        self.damaged = True
        with contextlib.closing(salvage.Reader(self.path)) as reader:
            known = known if known is not None else reader.meta(_read_meta)
            try:
                found = self._copy(reader, known)
            except sqlite3.OperationalError:
                # A full disk: better without the old events than without a queue. They stay in the file set aside.
                found = _Found()
                self._copy(None, known)
        salvage.replace(self.path)
        sync_directory(self.path.parent)
        self.meta = self._open()
        lost = (known.depth - found.depth) if known else max(1, found.holes)
        if lost > 0:
            self._lost = Loss("damaged", lost, found.first_ms, found.last_ms)

    def _copy(self, reader: salvage.Reader | None, known: Meta | None) -> "_Found":
        """Write the file that will replace the damaged one, with all rows whose CRC is right."""
        found, done = _Found(), Intervals(known.done if known else ())
        path = salvage.new_file(self.path)
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
            db.execute("PRAGMA auto_vacuum=INCREMENTAL")
            db.execute("PRAGMA journal_mode=OFF").fetchall()  # the file counts only once it is complete
            db.execute("PRAGMA synchronous=OFF")
            _create(db)
            db.execute("BEGIN")
            for row in reader.rows() if reader is not None else ():
                group = parse(row)
                if group.events and group.seq >= found.end:
                    db.execute("INSERT INTO groups VALUES (?, ?, ?, ?, ?, ?)", row)
                    found.add(group, len(row[5]), done)
            _write_meta(db, found.meta(known))
            db.execute("COMMIT")
        _sync(path, os.O_RDONLY)
        return found


class _Found(msgspec.Struct):
    """What was salvaged."""

    end: int = 0
    depth: int = 0
    size: int = 0
    holes: int = 0
    first_ms: int = 0
    last_ms: int = 0

    def add(self, group: Group, size: int, done: Intervals) -> None:
        if self.depth:  # between groups that are there: without the state, the best estimate of what is gone
            self.holes += group.seq - self.end
        self.first_ms = min(self.first_ms, group.first_ms) if self.depth else group.first_ms
        self.last_ms = max(self.last_ms, group.last_ms)
        self.end = group.end
        self.depth += group.count - done.overlap(group.seq, group.end)
        self.size += size

    def meta(self, known: Meta | None) -> Meta:
        if known is None:
            return Meta(next_seq=max(1, self.end), depth=self.depth, size=self.size, running=True)
        next_seq = max(self.end, known.next_seq)
        return msgspec.structs.replace(known, next_seq=next_seq, depth=self.depth, size=self.size)


def _connect(path: Path) -> sqlite3.Connection:
    fresh = not path.exists() or not path.stat().st_size
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=0)
    try:
        if fresh:  # later it would be a write, which must not be needed to read a full disk
            db.execute("PRAGMA auto_vacuum=INCREMENTAL")
        db.text_factory = bytes  # damaged text must not raise
        for pragma in _PRAGMAS:
            db.execute(f"PRAGMA {pragma}").fetchall()
    except sqlite3.Error:
        db.close()
        raise
    return db


def _is_empty(db: sqlite3.Connection) -> bool:
    return not db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]


def _create(db: sqlite3.Connection) -> None:
    db.execute("BEGIN")
    for statement in _SCHEMA:
        db.execute(statement)
    _write_meta(db, Meta())
    db.execute("COMMIT")


def _write_meta(db: sqlite3.Connection, meta: Meta) -> None:
    body = msgspec.json.encode(meta)
    db.execute("INSERT OR REPLACE INTO meta VALUES (1, ?, ?)", (body, zlib.crc32(body)))


def _read_meta(db: sqlite3.Connection) -> Meta:
    """Raises sqlite3.DatabaseError where it is damaged, or the tables are not those of this format."""
    try:
        db.execute("SELECT seq, count, first_ms, last_ms, crc, data FROM groups LIMIT 0").fetchall()
        body, crc = db.execute("SELECT body, crc FROM meta WHERE id = 1").fetchone() or (None, None)
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_ERROR:  # no such table or column
            raise salvage.damage(str(error)) from error
        raise
    if not isinstance(body, bytes) or zlib.crc32(body) != crc:
        raise salvage.damage("the state is damaged")
    return msgspec.json.decode(body, type=Meta)


def sync_directory(directory: Path) -> None:
    _sync(directory, os.O_RDONLY | os.O_DIRECTORY)


def _sync(path: Path, flags: int) -> None:
    fd = os.open(path, flags)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
