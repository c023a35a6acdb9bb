"""How consecutive events are stored: one row, zlib-compressed, with a CRC.

The events are joined by newlines. The CRC-32 goes over the numbers of the row and the compressed bytes, because
SQLite hands out the content of a damaged page without a word.
"""

import struct
import zlib

import msgspec

MAX_EVENTS = 1000
MAX_BYTES = 512 * 1024

_LEVEL = 6
_NUMBERS = struct.Struct("<qqqq")
Row = tuple[int, int, int, int, int, bytes]


class Group(msgspec.Struct, frozen=True):
    """Consecutive events. `events` is empty where the row is damaged; the rest of it is a guess then."""

    seq: int
    count: int
    first_ms: int
    last_ms: int
    events: list[bytes]

    @property
    def end(self) -> int:
        return self.seq + self.count

    def bounded(self, end: int) -> "Group":
        return msgspec.structs.replace(self, count=min(self.count, end - self.seq))


def parse(row: tuple[object, ...]) -> Group:
    """Check a row of `groups`. A damaged one comes without events and with what can be believed of the rest."""
    seq, count, first_ms, last_ms, crc, data = row
    if not (isinstance(seq, int) and isinstance(count, int) and 0 < count <= MAX_EVENTS):
        return Group(seq if isinstance(seq, int) else 0, 1, 0, 0, [])
    if not (isinstance(first_ms, int) and isinstance(last_ms, int)):
        return Group(seq, count, 0, 0, [])
    bad = Group(seq, count, first_ms, last_ms, [])
    if not isinstance(data, bytes) or _crc(seq, count, first_ms, last_ms, data) != crc:
        return bad
    try:
        events = zlib.decompress(data).split(b"\n")
    except zlib.error:
        return bad
    return Group(seq, count, first_ms, last_ms, events) if len(events) == count else bad


def to_row(group: Group) -> Row:
    data = zlib.compress(b"\n".join(group.events), _LEVEL)
    crc = _crc(group.seq, group.count, group.first_ms, group.last_ms, data)
    return group.seq, group.count, group.first_ms, group.last_ms, crc, data


def _crc(seq: int, count: int, first_ms: int, last_ms: int, data: bytes) -> int:
    return zlib.crc32(data, zlib.crc32(_NUMBERS.pack(seq, count, first_ms, last_ms)))
