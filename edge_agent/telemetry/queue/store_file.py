"""The format of the store's file: an SQLite database with two tables.

`groups` holds up to 1000 consecutive events of one priority a row (`groups.py`). `meta` holds the state of the
queue as of the last transaction, twice, and how far it was at which age; each with a CRC-32.
"""

import contextlib
import sqlite3
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

from edge_agent.telemetry.queue import salvage
from edge_agent.telemetry.queue.intervals import Span
from edge_agent.telemetry.queue.losses import Loss, Report
from edge_agent.telemetry.queue.seqs import first_seqs

T = TypeVar("T")
_VERSIONS = slice(18, 20)  # of the header: who may write the file, and who may read it
_COPIES = (1, 2)
_POSITIONS = 3  # id of the row; it changes rarely, so it is not part of the state that each transaction writes
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
    """State of the queue as of the last transaction. Lists are by priority, see `seqs.py`.

    `depths` events in groups are unsent, `size` is the bytes of all groups. `base` seqs had been given out when the
    epoch began. `age` is how long the queue has been in use, in seconds. `reports` are the unsent events that tell
    of losses.
    """

    epoch: int = 0
    base: int = 0
    next_seqs: list[int] = msgspec.field(default_factory=first_seqs)
    journal: int = 0
    depths: list[int] = msgspec.field(default_factory=lambda: [0] * len(first_seqs()))
    size: int = 0
    running: bool = False
    boot_id: str = ""
    age: float = 0.0
    losses: list[Loss] = []
    reports: list[Report] = []
    done: list[Span] = []


class Position(msgspec.Struct, frozen=True, array_like=True):
    """When the queue had the age `age`, these seqs came next."""

    age: float
    next_seqs: list[int]


def connect(path: Path) -> sqlite3.Connection:
    """Open the file, or create one without tables. Raises OSError or sqlite3.Error."""
    fresh = not path.exists() or not path.stat().st_size
    if not fresh:
        _check_versions(path)
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=0, factory=salvage.Connection)
    try:
        if fresh:  # later it would be a write, which must not be needed to read a full disk
            db.execute("PRAGMA auto_vacuum=INCREMENTAL")
        db.text_factory = bytes  # damaged text must not raise
        with _understood():
            for pragma in _PRAGMAS:
                db.execute(f"PRAGMA {pragma}").fetchall()
    except sqlite3.Error:
        db.close()
        raise
    return db


def _check_versions(path: Path) -> None:
    """Raises sqlite3.DatabaseError where SQLite would take the file for one that only a later version can write."""
    with path.open("rb") as file:
        versions = file.read(_VERSIONS.stop)[_VERSIONS]
    if not set(versions) <= {1, 2}:
        raise salvage.damage("the header of the file is damaged")


def is_new(db: sqlite3.Connection) -> bool:
    """Return whether nothing was ever written. A larger file in which no table is to be found is damaged."""
    return not _schema(db) and db.execute("PRAGMA page_count").fetchone()[0] <= 1


def check(db: sqlite3.Connection) -> None:
    """Raises sqlite3.DatabaseError where the tables are not those of this format.

    To the letter: of a table with one letter changed SQLite makes what it likes, without an error.
    """
    with _pattern() as pattern:
        if _schema(db) != _schema(pattern):
            raise salvage.damage("the tables are not those of the queue")


def first_page() -> bytes:
    """Return the first page of every file of this schema: SQLite's header, and where the tables are."""
    with _pattern() as pattern:
        return pattern.serialize()[:4096]


@contextlib.contextmanager
def _pattern() -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as db:
        db.text_factory = bytes
        db.execute("PRAGMA auto_vacuum=INCREMENTAL")
        create(db)
        yield db


def _schema(db: sqlite3.Connection) -> list[tuple[object, ...]]:
    with _understood():
        return db.execute("SELECT type, name, tbl_name, rootpage, sql FROM sqlite_master ORDER BY rowid").fetchall()


@contextlib.contextmanager
def _understood() -> Iterator[None]:
    """What SQLite calls an error of the program is damage here: it does not understand the file."""
    try:
        yield
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_ERROR:
            raise salvage.damage(str(error)) from error
        raise


def create(db: sqlite3.Connection) -> None:
    db.execute("BEGIN")
    for statement in _SCHEMA:
        db.execute(statement)
    write_meta(db, Meta())
    db.execute("COMMIT")


def write_meta(db: sqlite3.Connection, meta: Meta) -> None:
    body = msgspec.json.encode(meta)
    for copy in _COPIES:
        _write(db, copy, body)


def write_positions(db: sqlite3.Connection, positions: list[Position]) -> None:
    _write(db, _POSITIONS, msgspec.json.encode(positions))


def _write(db: sqlite3.Connection, row: int, body: bytes) -> None:
    db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?, ?)", (row, body, zlib.crc32(body)))


def read_meta(db: sqlite3.Connection) -> Meta:
    """Raises sqlite3.DatabaseError where it is damaged."""
    copies = [meta for row in _COPIES if (meta := _read(db, row, Meta)) is not None]
    if not copies:
        raise salvage.damage("the state is damaged")
    return copies[0]


def read_positions(db: sqlite3.Connection) -> list[Position]:
    """Return none where they are damaged: events are kept for longer then."""
    return _read(db, _POSITIONS, list[Position]) or []


def _read(db: sqlite3.Connection, row: int, kind: type[T]) -> T | None:
    for body, crc in db.execute("SELECT body, crc FROM meta WHERE id = ?", (row,)):
        if isinstance(body, bytes) and zlib.crc32(body) == crc:
            with contextlib.suppress(ValueError):  # of another version of the program
                return msgspec.json.decode(body, type=kind)
    return None
