"""Reads single values of a FlatBuffer, as far as the names and metadata of a model need it.

A table begins with the signed distance back to its vtable; the vtable holds its own size, the table's size, and for
each field the offset in the table, or 0 where the field has its default. Strings, vectors and tables are reached by
unsigned offsets from where these stand (FlatBuffers internals, flatbuffers.dev). The bytes may be damaged, so each
offset is checked against the end of the buffer, and nothing is read in proportion to a length that the file claims.
"""

import mmap
import struct
from typing import Any

MAX_LENGTH = 1024 * 1024
_MAX_ITEMS = 10_000
_HEAD = 4


class DamagedError(ValueError):
    """The bytes are no FlatBuffer of the kind expected."""


class Table:
    """One table of a buffer. Fields have the numbers of their order in the schema; a union has two, type and value."""

    def __init__(self, buffer: bytes | mmap.mmap, position: int) -> None:
        self._buffer = buffer
        self._position = position
        self._vtable = position - self._number("i", position)
        self._size = self._number("H", self._vtable)

    @classmethod
    def root(cls, buffer: bytes | mmap.mmap, identifier: bytes) -> "Table":
        """Return the table that the buffer is about. Raises DamagedError, as all methods do."""
        if buffer[_HEAD : 2 * _HEAD] != identifier:
            raise DamagedError(f"it does not begin as {identifier.decode()}")
        (position,) = struct.unpack_from("<I", buffer)
        return cls(buffer, position)

    def number(self, field: int, kind: str, default: float = 0) -> Any:
        """Return a number; `kind` is its letter in the module struct."""
        at = self._field(field)
        return default if at is None else self._number(kind, at)

    def numbers(self, field: int, kind: str) -> list[Any]:
        """Return a vector of numbers."""
        start, count = self._vector(field, _MAX_ITEMS)
        width = struct.calcsize(f"<{kind}")
        return [self._number(kind, start + width * i) for i in range(count)]

    def table(self, field: int) -> "Table | None":
        """Return the table in a field, or None where it is absent."""
        at = self._field(field)
        return None if at is None else Table(self._buffer, self._follow(at))

    def tables(self, field: int) -> list["Table"]:
        """Return a vector of tables."""
        start, count = self._vector(field, _MAX_ITEMS)
        return [self._item(start, i) for i in range(count)]

    def table_at(self, field: int, index: int) -> "Table":
        """Return one table of a vector, however long that is."""
        start, count = self._vector(field, len(self._buffer))
        if index >= count:
            raise DamagedError(f"there is no item {index} in a list of {count}")
        return self._item(start, index)

    def data(self, field: int, most: int = MAX_LENGTH) -> bytes:
        """Return a vector of at most so many bytes."""
        start, count = self._vector(field, most)
        if start + count > len(self._buffer):
            raise DamagedError("it is cut short")
        return bytes(self._buffer[start : start + count])

    def text(self, field: int) -> str:
        """Return a string, or "" where it is absent."""
        return self.data(field).decode("utf-8", "replace")

    def _field(self, field: int) -> int | None:
        entry = _HEAD + 2 * field
        if entry + 2 > self._size:
            return None
        offset: int = self._number("H", self._vtable + entry)
        return self._position + offset if offset else None

    def _follow(self, at: int) -> int:
        offset: int = self._number("I", at)
        return at + offset

    def _vector(self, field: int, most: int) -> tuple[int, int]:
        at = self._field(field)
        if at is None:
            return 0, 0
        start = self._follow(at)
        count: int = self._number("I", start)
        if count > most:
            raise DamagedError(f"a list of {count} items is too long")
        return start + _HEAD, count

    def _item(self, start: int, index: int) -> "Table":
        return Table(self._buffer, self._follow(start + _HEAD * index))

    def _number(self, kind: str, at: int) -> Any:
        try:
            # struct counts negative offsets from the end.
            return struct.unpack_from(f"<{kind}", self._buffer, at if at >= 0 else len(self._buffer))[0]
        except struct.error:
            raise DamagedError("it is cut short, or its offsets lead nowhere") from None
