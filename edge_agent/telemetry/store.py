"""The store: unsent events on the card, in one SQLite file. All methods run in the queue's store thread.

Two tables. `groups` holds up to 1000 consecutive events a row (`groups.py`). `meta` holds the state of the
queue as of the last transaction, twice, each with a CRC-32. Invariants:

- A transaction (WAL, synchronous=FULL) holds all that the journal files up to `meta.journal` say, whole.
- An event has a `seq`; seqs go on for as long as the file lives, across epochs. The key of a group is the seq
  of its first event. A finished event may stand in a group whose other events are not finished (`meta.done`).
- A file that SQLite calls damaged is set aside, what is readable of it goes to a new file, the rest is counted.
"""

import contextlib
import sqlite3
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from edge_agent.durable import sync
from edge_agent.telemetry import salvage
from edge_agent.telemetry.groups import MAX_EVENTS, Group, parse, to_row
from edge_agent.telemetry.intervals import Intervals, Span
from edge_agent.telemetry.losses import Ledger, Loss

NAME = "queue.db"

T = TypeVar("T")
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
# A damaged page may hold any type and any number. Only `parse` sees the CRC, so elsewhere they are bounded.
_COUNT = f"min(max(CAST(count AS INTEGER), 1), {MAX_EVENTS})"
_FIRST, _LAST = "CAST(first_ms AS INTEGER)", "CAST(last_ms AS INTEGER)"
_SIZE = "coalesce(length(data), 0)"


class Meta(msgspec.Struct, frozen=True, kw_only=True):
    """State of the queue as of the last transaction.

    `depth` events in groups are unsent, `size` is the bytes of all groups, the epoch's number 1 has seq `base`.
    """

    epoch: int = 0
    base: int = 1
    next_seq: int = 1
    journal: int = 0
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


class Damage(msgspec.Struct, frozen=True):
    """A file was damaged. It should have had `expected` unsent events; the times are of those that are left."""

    expected: int
    first_ms: int
    last_ms: int


class Store:
    """`meta` is what the last transaction wrote.

    `damage` is set where the file had to be replaced; `meta` counts only what is left then.
    """

    def __init__(self, directory: Path) -> None:
        """Open or create the file. Raises OSError or sqlite3.Error where the directory cannot be used."""
        self.path = directory / NAME
        self.meta = Meta()
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
        with self._transaction():
            _write_meta(self._connection, meta)
        self.meta = meta

    def commit(self, commit: Commit) -> Loss | None:
        """Run one transaction and return what was dropped to hold `max_size`. After an error nothing has changed."""
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
                size=max(0, size - freed) if self._any() else 0,
                depth=meta.depth - (dropped.count if dropped else 0),
                losses=ledger.entries(),
                done=self._remaining(meta.done),
            )
            _write_meta(self._connection, meta)
        self.meta = meta
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

    def _drop(self, commit: Commit, excess: int) -> tuple[int, Loss | None]:
        """Drop the oldest groups until `excess` bytes are free. Return what that freed and what was lost."""
        done, freed, ledger = Intervals(commit.meta.done), 0, Ledger()
        dropped: list[int] = []
        for seq, count, first_ms, last_ms, size in self._groups_within(*commit.droppable):
            if freed >= excess:
                break
            if not commit.out.overlap(seq, seq + count):
                dropped.append(seq)
                freed += size
                if lost := count - done.overlap(seq, seq + count):
                    ledger.add(Loss("queue_full", lost, first_ms, last_ms))
        for seq in dropped:
            self._execute("DELETE FROM groups WHERE seq = ?", (seq,))
        return freed, next(iter(ledger.entries()), None)

    def _remaining(self, done: Sequence[Span]) -> list[Span]:
        """Return what of the finished seqs still stands in a group with others that are not finished."""
        left = Intervals()
        for a, b in done:
            for seq, count, *_ in self._groups_within(a, b):
                left.add(max(a, seq), min(b, seq + count))
        return list(left)

    def _groups_within(self, start: int, end: int) -> Iterator[tuple[int, int, int, int, int]]:
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
        row = self._execute(f"SELECT {_FIRST} FROM groups ORDER BY seq LIMIT 1").fetchone()  # noqa: S608
        return None if row is None else row[0]

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
        self._db = _connect(self.path)
        if _is_empty(self._db):
            _create(self._db)
            sync(self.path.parent)
        for edge in ("min", "max"):
            self._execute(f"SELECT {edge}(seq) FROM groups").fetchall()  # noqa: S608
        return _read_meta(self._db)

    def _rebuild(self, known: Meta | None) -> None:
        """Go on with a new file that holds what could be read of the damaged one, which is set aside."""
        self.close()
        with contextlib.closing(salvage.Reader(self.path, _first_page())) as reader:
            known = known if known is not None else reader.meta(_read_meta)
            try:
                found = self._copy(reader, known)
            except sqlite3.OperationalError:
                # A full disk: better without the old events than without a queue. They stay in the file set aside.
                found = _Found()
                self._copy(None, known)
        salvage.replace(self.path)
        sync(self.path.parent)
        self.meta = self._open()
        expected = known.depth if known else found.depth + max(1, found.holes())
        self.damage = Damage(expected, found.first_ms, found.last_ms)

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
                if group.events and not found.spans.overlap(group.seq, group.end):
                    db.execute("INSERT INTO groups VALUES (?, ?, ?, ?, ?, ?)", row)
                    found.add(group, len(row[5]), done)
            _write_meta(db, found.meta(known))
            db.execute("COMMIT")
        sync(path)
        return found


class _Found:
    """What was salvaged."""

    def __init__(self) -> None:
        self.spans = Intervals()
        self.depth = self.size = self.first_ms = self.last_ms = 0

    def add(self, group: Group, size: int, done: Intervals) -> None:
        self.first_ms = min(self.first_ms, group.first_ms) if self.spans else group.first_ms
        self.last_ms = max(self.last_ms, group.last_ms)
        self.spans.add(group.seq, group.end)
        self.depth += group.count - done.overlap(group.seq, group.end)
        self.size += size

    def _edges(self) -> Span:
        spans = list(self.spans)
        return (spans[0][0], spans[-1][1]) if spans else (1, 1)

    def holes(self) -> int:
        """Count the seqs between groups: without the state, the best estimate of what is gone."""
        return sum(end - start for start, end in self.spans.gaps(*self._edges()))

    def meta(self, known: Meta | None) -> Meta:
        if known is None:
            return Meta(next_seq=self._edges()[1], depth=self.depth, size=self.size, running=True)
        next_seq = max(self._edges()[1], known.next_seq)
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


def _first_page() -> bytes:
    """Return the first page of every file of this schema: SQLite's header, and where the tables are."""
    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as db:
        db.execute("PRAGMA auto_vacuum=INCREMENTAL")
        _create(db)
        return db.serialize()[:4096]


def _create(db: sqlite3.Connection) -> None:
    db.execute("BEGIN")
    for statement in _SCHEMA:
        db.execute(statement)
    _write_meta(db, Meta())
    db.execute("COMMIT")


def _write_meta(db: sqlite3.Connection, meta: Meta) -> None:
    body = msgspec.json.encode(meta)
    for copy in (1, 2):
        db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?, ?)", (copy, body, zlib.crc32(body)))


def _read_meta(db: sqlite3.Connection) -> Meta:
    """Raises sqlite3.DatabaseError where it is damaged, or the tables are not those of this format."""
    try:
        db.execute("SELECT seq, count, first_ms, last_ms, crc, data FROM groups LIMIT 0").fetchall()
        copies = db.execute("SELECT body, crc FROM meta ORDER BY id").fetchall()
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_ERROR:  # no such table or column
            raise salvage.damage(str(error)) from error
        raise
    for body, crc in copies:
        if isinstance(body, bytes) and zlib.crc32(body) == crc:
            return msgspec.json.decode(body, type=Meta)
    raise salvage.damage("the state is damaged")
