"""Rows of a damaged SQLite file that no path leads to any more, read from the leaves of its tree themselves.

One damaged inner page cuts off all leaves below it, although these may be whole. A leaf holds its rows' keys and
values, so the file is gone through page by page (SQLite's "Database File Format": b-tree pages, overflow pages, record
format, pointer maps). Pages that are free still hold rows that were deleted; the pointer map, which every file with
`auto_vacuum` has, tells them from others. Nothing that is read here is to be believed without a CRC of its own.
"""

import mmap
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

PAGE = 4096
_LEAF = 0x0D
_ROOT, _TREE = 1, 5  # of the pointer map
_ENTRY = 5  # bytes of the pointer map for each page
_MAP_EVERY = PAGE // _ENTRY + 1
_MAX_LOCAL = PAGE - 35
_MIN_LOCAL = (PAGE - 12) * 32 // 255 - 23
_MAX_PAYLOAD = 16 << 20
_INTEGERS = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8}
_FIRST_BLOB = 12
_ZERO, _ONE = 8, 9
_LONGEST_VARINT = 9

Record = list[int | bytes | None]


class _BadPage(Exception):
    """What stands there is no row."""


def rows(path: Path, wanted: Callable[[int], bool]) -> Iterator[tuple[int, Record]]:
    """Yield key and values of the rows whose key is wanted. Raises OSError.

    Whatever was in a WAL must have been written to the file before.
    """
    with path.open("rb") as file:
        if path.stat().st_size < PAGE:
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            for number in range(2, len(data) // PAGE + 1):
                if _is_leaf(data, number):
                    yield from _rows_of(data, number, wanted)


def _is_leaf(data: mmap.mmap, number: int) -> bool:
    start = (number - 1) * PAGE
    if data[start] != _LEAF:
        return False
    # The first map is page 2, and each is about the pages up to the next.
    place = (number - 2) % _MAP_EVERY
    if place == 0:
        return False
    entry = (number - 2 - place + 1) * PAGE + (place - 1) * _ENTRY
    return data[entry] in {_ROOT, _TREE}


def _rows_of(data: mmap.mmap, number: int, wanted: Callable[[int], bool]) -> Iterator[tuple[int, Record]]:
    start = (number - 1) * PAGE
    (count,) = struct.unpack_from(">H", data, start + 3)
    for index in range(min(count, (PAGE - 8) // 2)):
        try:
            (offset,) = struct.unpack_from(">H", data, start + 8 + 2 * index)
            size, at = _varint(data, start + offset, start + PAGE)
            key, at = _varint(data, at, start + PAGE)
            if wanted(key):
                yield key, _record(_payload(data, at, size, start + PAGE))
        except _BadPage:
            continue


def _payload(data: mmap.mmap, at: int, size: int, end: int) -> bytes:
    """Collect what a cell holds: a part of it on the page, and the rest on overflow pages."""
    if size > _MAX_PAYLOAD:
        raise _BadPage
    local = size
    if size > _MAX_LOCAL:
        local = _MIN_LOCAL + (size - _MIN_LOCAL) % (PAGE - 4)
        local = local if local <= _MAX_LOCAL else _MIN_LOCAL
    if at + local > end:
        raise _BadPage
    parts, left = [data[at : at + local]], size - local
    page = _number(data, at + local) if left else 0
    while left:
        start = (page - 1) * PAGE
        if page < 1 or start + PAGE > len(data):
            raise _BadPage
        parts.append(data[start + 4 : start + 4 + min(left, PAGE - 4)])
        left -= len(parts[-1])
        page = _number(data, start)
    return b"".join(parts)


def _record(payload: bytes) -> Record:
    header, at = _varint(payload, 0, len(payload))
    values: Record = []
    place = header
    while at < header:
        kind, at = _varint(payload, at, len(payload))
        value, place = _value(payload, kind, place)
        values.append(value)
    return values


def _value(payload: bytes, kind: int, place: int) -> tuple[int | bytes | None, int]:
    if kind in {_ZERO, _ONE}:
        return kind - _ZERO, place
    if kind == 0:
        return None, place
    length = _INTEGERS.get(kind, (kind - _FIRST_BLOB) // 2 if kind >= _FIRST_BLOB else -1)
    if length < 0 or place + length > len(payload):
        raise _BadPage
    raw = payload[place : place + length]
    return raw if kind >= _FIRST_BLOB else int.from_bytes(raw, "big", signed=True), place + length


def _varint(data: mmap.mmap | bytes, at: int, end: int) -> tuple[int, int]:
    value = 0
    for index in range(_LONGEST_VARINT):
        if at >= min(end, len(data)):
            raise _BadPage
        byte = data[at]
        at += 1
        if index == _LONGEST_VARINT - 1:
            value = value << 8 | byte
        else:
            value = value << 7 | byte & 0x7F
            if byte < 0x80:  # noqa: PLR2004  the highest bit says that more follows
                break
    return (value - (1 << 64) if value >= 1 << 63 else value), at


def _number(data: mmap.mmap, at: int) -> int:
    if at + 4 > len(data):
        raise _BadPage
    number: int = struct.unpack_from(">I", data, at)[0]
    return number
