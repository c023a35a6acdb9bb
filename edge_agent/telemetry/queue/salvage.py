"""What is done with a damaged database: set it aside, and read of it what can still be read.

SQLite gives up at the first damaged page. So the groups are read by ranges of their key: from both ends as far
as it goes, and what lies between is cut in two, the widest range first, until the damage is cornered. What hangs
on a damaged inner page is then looked for page by page (`leaves.py`). Whether a row is whole is for its CRC to say.
"""

import contextlib
import heapq
import re
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from edge_agent.telemetry.queue import leaves
from edge_agent.telemetry.queue.groups import Row

T = TypeVar("T")

_KEPT = 2  # damaged files that are kept for a person to look at
_MAX_PROBES = 20_000  # about a second
_CODES = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_COLUMNS = 6
_SUFFIXES = ("-wal", "-shm", "")


def is_damage(error: sqlite3.Error) -> bool:
    """Tell a damaged file from one that cannot be read or written at the moment."""
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_INTERNAL) & 0xFF in _CODES


def damage(reason: str) -> sqlite3.DatabaseError:
    """Return the error that SQLite would raise had it seen the damage itself."""
    error = sqlite3.DatabaseError(reason)
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    error.sqlite_errorname = "SQLITE_CORRUPT"
    return error


def new_file(path: Path) -> Path:
    """Return where the successor of `path` is written; what an earlier try has left there is deleted."""
    new = path.with_name(f"{path.stem}.new{path.suffix}")
    _remove(new)
    return new


def replace(path: Path) -> None:
    """Rename `path` to `queue.damaged-<n>.db` and put its complete successor in its place."""
    _set_aside(path)
    path.with_name(f"{path.stem}.new{path.suffix}").rename(path)


def finish(path: Path) -> None:
    """End a `replace` that a crash has interrupted; drop a successor that is not complete."""
    new = path.with_name(f"{path.stem}.new{path.suffix}")
    if new.exists() and not path.exists():
        new.rename(path)
    _remove(new)


def _set_aside(path: Path) -> None:
    pattern = re.compile(rf"{path.stem}\.damaged-(\d+){path.suffix}")
    numbers = sorted(int(match[1]) for p in path.parent.iterdir() if (match := pattern.fullmatch(p.name)))
    for old in numbers[: max(0, len(numbers) - _KEPT + 1)]:
        _remove(_aside(path, old))
    target = _aside(path, numbers[-1] + 1 if numbers else 1)
    for suffix in _SUFFIXES:
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + suffix).rename(target.with_name(target.name + suffix))


def _aside(path: Path, number: int) -> Path:
    return path.with_name(f"{path.stem}.damaged-{number}{path.suffix}")


def _remove(path: Path) -> None:
    for suffix in _SUFFIXES:
        path.with_name(path.name + suffix).unlink(missing_ok=True)


class Connection(sqlite3.Connection):
    """Takes names that are no UTF-8 for damage too: Python cannot even build the error that SQLite would raise."""

    def execute(self, *arguments: Any) -> sqlite3.Cursor:
        try:
            return super().execute(*arguments)
        except UnicodeDecodeError as error:
            raise damage(f"a name in the file is damaged: {error.object!r}") from error


class Reader:
    """Reads a damaged file."""

    def __init__(self, path: Path, check: Callable[[sqlite3.Connection], None], first_page: bytes) -> None:
        """`first_page` is put in the place of the file's own one where `check` raises sqlite3.DatabaseError for it."""
        self._path = path
        self._db = _open(path)
        try:
            check(self._db)
        except sqlite3.DatabaseError:
            self._db.close()
            _put_first_page(path, first_page)
            self._db = _open(path)

    def meta(self, read: Callable[[sqlite3.Connection], T]) -> T | None:
        """Return what `read` makes of the file, or None where that part of it is damaged too."""
        try:
            return read(self._db)
        except sqlite3.DatabaseError:
            return None

    def rows(self) -> Iterator[Row]:
        """Yield every row of `groups` that SQLite can still reach, in no order."""
        ranges = [_ranked(start, end) for start, end in self._bounds()]
        for _ in range(_MAX_PROBES):
            if not ranges:
                return
            _, start, end = heapq.heappop(ranges)
            try:
                for row in self._read(start, end, "ASC"):
                    if start <= row[0] < end:  # a damaged page may hold any key
                        start = row[0] + 1
                        yield row
                continue
            except sqlite3.DatabaseError:
                pass  # try from the other end
            try:
                for row in self._read(start, end, "DESC"):
                    if start <= row[0] < end:
                        end = row[0]
                        yield row
            except sqlite3.DatabaseError:
                if end - start > 1:  # one key alone is given up
                    middle = (start + end) // 2
                    heapq.heappush(ranges, _ranked(start, middle))
                    heapq.heappush(ranges, _ranked(middle, end))

    def stray_rows(self, wanted: Callable[[int], bool]) -> Iterator[tuple[object, ...]]:
        """Yield rows with a wanted key that no path leads to any more, in no order. Their values may be anything."""
        try:
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            wal = self._path.with_name(self._path.name + "-wal")
            if wal.exists() and wal.stat().st_size:
                return  # without it the file is that of another time
            for key, values in leaves.rows(self._path, wanted):
                if len(values) == _COLUMNS:
                    yield (key, *values[1:])
        except (OSError, sqlite3.Error):
            return

    def close(self) -> None:
        self._db.close()

    def _read(self, start: int, end: int, order: str) -> Iterator[Row]:
        query = f"SELECT * FROM groups WHERE rowid >= ? AND rowid < ? ORDER BY rowid {order}"  # noqa: S608
        return self._db.execute(query, (start, end))

    def _bounds(self) -> list[tuple[int, int]]:
        first, last = self._edge("ASC"), self._edge("DESC")
        if first is None and last is None:
            return []
        return [(0 if first is None else first, 1 << 62 if last is None else last + 1)]

    def _edge(self, order: str) -> int | None:
        with contextlib.suppress(sqlite3.DatabaseError):
            row = self._db.execute(f"SELECT rowid FROM groups ORDER BY rowid {order} LIMIT 1").fetchone()  # noqa: S608
            if row is not None and isinstance(row[0], int):
                return row[0]
        return None


def _open(path: Path) -> Connection:
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, factory=Connection)
    db.text_factory = bytes
    with contextlib.suppress(sqlite3.DatabaseError):
        db.execute("PRAGMA locking_mode=EXCLUSIVE").fetchall()
    return db


def _put_first_page(path: Path, page: bytes) -> None:
    """Write the page with the size of this file, and with the mark that says whether there is a WAL."""
    pages = path.stat().st_size // len(page)
    wal = path.with_name(path.name + "-wal").exists()
    page = page[:18] + (b"\2\2" if wal else b"\1\1") + page[20:28] + pages.to_bytes(4, "big") + page[32:]
    if pages:
        with path.open("r+b") as file:
            file.write(page)


def _ranked(start: int, end: int) -> tuple[int, int, int]:
    return start - end, start, end
