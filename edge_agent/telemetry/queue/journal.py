"""The journal: what happened to the queue since the last transaction of the store, in files without fsync.

It makes a killed agent lose nothing: `write(2)` has handed the record to the kernel before `put` returns. It
is no protection against a power cut; the store is. On a tmpfs it costs no card wear.

Files are called `journal-<n>` and are read in the order of `n`. A file is a row of frames:

    magic 2 | kind 1 | length of body 4 | CRC-32 of kind, length and body 4 | body     (little endian)

The first frame is a `Header`: the whole state of the queue at that moment except its events, so that earlier
files are needed for the events in them only. The magic holds a byte that no JSON text contains, so that a
reader finds the next good frame behind a damaged one. Invariants:

- A file is never written again once its successor is in use.
- Files go oldest first: what is missing between two files is damage, what is missing before the first is not.
- When a record could not be written, the file ends in a torn frame, and nothing more is appended to it. So a
  last file that is good to its last byte proves which number comes next.
"""

import contextlib
import os
import re
import shutil
import struct
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from edge_agent.telemetry.queue.groups import Group
from edge_agent.telemetry.queue.intervals import Span
from edge_agent.telemetry.queue.losses import Loss, Report

FORMAT = 2
# Twice what the queue keeps in memory: it is reached only when the store hangs for a long time.
MAX_SIZE = 64 * 1024 * 1024

_MAGIC = b"\xf7J"
_FRAME = struct.Struct("<2scII")
_CHECKED = struct.Struct("<cI")
_PUT = struct.Struct("<qqqII")
_PAGE = 4096  # what even an empty file takes of a tmpfs
_NAME = re.compile(r"journal-(\d+)")


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """State of the queue when the file was begun. Lists are by priority, see `seqs.py`.

    `stored` unsent events, all below `saved_ends`, were in the store. `base` seqs had been given out when the epoch
    began. `reports` are the unsent events that tell of losses, by seq. `alone`: the store could not be read since the
    start, so all this is of what was put since then.
    """

    format: int = FORMAT
    boot_id: str
    epoch: int
    base: int
    next_seqs: list[int]
    stored: list[int]
    saved_ends: list[int]
    losses: list[Loss]
    reports: list[Report]
    done: list[Span]
    alone: bool = False


class Put(msgspec.Struct, frozen=True):
    """Events `seq`, `seq + 1`, ... were accepted. They tell of the losses `reported`, if any, one each."""

    seq: int
    events: list[bytes]
    first_ms: int
    last_ms: int
    reported: list[Loss]


class Done(msgspec.Struct, frozen=True):
    """The events of these spans are finished; `loss` says so if they were given up."""

    spans: list[Span]
    loss: Loss | None = None


class Committed(msgspec.Struct, frozen=True):
    """A transaction of the store succeeded. It holds `stored` unsent events now, all below `saved_ends`."""

    stored: list[int]
    saved_ends: list[int]


Record = Header | Put | Done | Committed
_PLAIN: dict[bytes, type[Header] | type[Done] | type[Committed]] = {b"H": Header, b"D": Done, b"C": Committed}
_KINDS = {kind: code for code, kind in _PLAIN.items()}


def put_frame(seq: int, count: int, payload: bytes, first_ms: int, last_ms: int, *, reported: Sequence[Loss]) -> bytes:
    """Encode a `Put` whose events are already joined by newlines."""
    extra = msgspec.json.encode(reported) if reported else b""
    return _frame(b"P", _PUT.pack(seq, first_ms, last_ms, count, len(extra)) + extra + payload)


def frame(record: Header | Done | Committed) -> bytes:
    return _frame(_KINDS[type(record)], msgspec.json.encode(record))


def _frame(kind: bytes, body: bytes) -> bytes:
    crc = zlib.crc32(body, zlib.crc32(_CHECKED.pack(kind, len(body))))
    return _FRAME.pack(_MAGIC, kind, len(body), crc) + body


class JournalFile(msgspec.Struct, frozen=True):
    """What could be read. `clean`: every byte of the file belongs to a good frame, and the first is a header."""

    number: int
    path: Path
    records: list[Record]
    clean: bool

    @property
    def header(self) -> Header | None:
        first = self.records[0] if self.records else None
        return first if isinstance(first, Header) else None


def find(directories: Iterable[Path]) -> list[tuple[int, Path]]:
    """Return number and path of all journal files, oldest first. A missing directory holds none."""
    paths: list[Path] = []
    for directory in set(directories):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            paths += directory.iterdir()
    return sorted((int(match[1]), path) for path in paths if (match := _NAME.fullmatch(path.name)))


def read(number: int, path: Path) -> JournalFile:
    """Read a file as far as it is good: damaged frames are left out, what follows them is found again."""
    data = path.read_bytes()
    records: list[Record] = []
    position, clean = 0, bool(data)
    while 0 <= position < len(data):
        end, record = _parse(data, position)
        if record is None:
            clean = False
            position = data.find(_MAGIC, position + 1)
        else:
            records.append(record)
            position = end
    return JournalFile(number, path, records, clean and isinstance(records[0], Header))


def _parse(data: bytes, position: int) -> tuple[int, Record | None]:
    if position + _FRAME.size > len(data):
        return position, None
    magic, kind, length, crc = _FRAME.unpack_from(data, position)
    start, end = position + _FRAME.size, position + _FRAME.size + length
    if magic != _MAGIC or end > len(data):
        return position, None
    body = data[start:end]
    if zlib.crc32(body, zlib.crc32(_CHECKED.pack(kind, length))) != crc:
        return position, None
    return end, _decode(kind, body)


def _decode(kind: bytes, body: bytes) -> Record | None:
    try:
        if kind == b"P":
            return _decode_put(body)
        return msgspec.json.decode(body, type=_PLAIN[kind])
    except (KeyError, ValueError, struct.error):  # a frame of another version of the program
        return None


def _decode_put(body: bytes) -> Put:
    seq, first_ms, last_ms, count, extra = _PUT.unpack_from(body)
    payload = _PUT.size + extra
    reported = msgspec.json.decode(body[_PUT.size : payload], type=list[Loss]) if extra else []
    events = body[payload:].split(b"\n")
    if len(events) != count:
        raise ValueError(f"{len(events)} events where {count} were announced")
    return Put(seq, events, first_ms, last_ms, reported)


class Sealed(msgspec.Struct):
    """A file that is not written any more. All events put before it was sealed are below `end_seqs`."""

    number: int
    path: Path
    end_seqs: list[int]
    size: int = 0


class Journal:
    """Writes the journal. `append` and `switch` run on the event loop; what touches folders does not."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.number = 0
        self.sealed: list[Sealed] = []
        self.trouble: str | None = None
        self.written = 0  # records since the header
        self.size = 0  # bytes of the file in use
        self._fd: int | None = None
        self._torn = False

    @property
    def failed(self) -> bool:
        """Whether records are missing, so that only the store can keep what happened since."""
        return self._fd is None or self._torn

    @property
    def total(self) -> int:
        """Bytes that all files take, about."""
        return self.size + sum(max(_PAGE, sealed.size) for sealed in self.sealed)

    def prepare(self) -> int | None:
        """Create the next file and return its descriptor, or None (`trouble` says why)."""
        path = self._path(self.number + 1)
        try:
            if self._fd is not None and not self.size:  # not even the header could be written: no file for each try
                os.ftruncate(self._fd, 0)
                return self._fd
            return os.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except OSError as error:
            self.trouble = f"cannot create {path}: {error.strerror}"
            return None

    def begin(self, fd: int, header: Header) -> None:
        """Go on in the prepared file."""
        if fd != self._fd:
            self._seal(header.next_seqs)
        self._fd, self.size, self._torn, self.trouble = fd, 0, False, None
        self.append(frame(header))
        self.written = 0

    def end(self, end_seqs: list[int], *, torn: bool) -> None:
        """Write nothing until the next file. `torn`: more numbers will be given out in spite of that."""
        if torn:
            self._tear()
        self._seal(end_seqs)
        self.written = 0

    def _seal(self, end_seqs: list[int]) -> None:
        if self._fd is not None:
            self.sealed.append(Sealed(self.number, self._path(self.number), end_seqs, self.size))
            with contextlib.suppress(OSError):  # what it may tell of is of no use: nothing was promised to the disk
                os.close(self._fd)
        self.number += 1
        self._fd = None

    def append(self, data: bytes) -> None:
        """Write one frame. A failure is told by `trouble`, never raised: the event is in memory still."""
        if self._fd is None or self._torn:
            return
        if self.size + len(data) > MAX_SIZE:
            self._fail(f"more than {MAX_SIZE >> 20} MB wait for the store")
            return
        try:
            size = os.write(self._fd, data)
        except OSError as error:
            self._fail(error.strerror)
            return
        if size != len(data):
            self._fail("no space left on device")
            return
        self.size += size
        self.written += 1

    def _fail(self, reason: str | None) -> None:
        self.trouble = f"cannot write {self._path(self.number)}: {reason}"
        self._tear()

    def _tear(self) -> None:
        self._torn = True
        if self._fd is not None:
            with contextlib.suppress(OSError):  # there is no better mark left if this fails too
                os.ftruncate(self._fd, self.size + 1)

    def has_room(self, size: int) -> bool:
        """Whether so many bytes more can be written."""
        try:
            return not self.failed and shutil.disk_usage(self.directory).free > size
        except OSError:
            return False

    def write_again(self, groups: Iterable[Group]) -> None:
        """Write all events that only the journal has once more, so that the files before are not needed."""
        for each in groups:
            payload = b"\n".join(each.events)
            self.append(put_frame(each.seq, each.count, payload, each.first_ms, each.last_ms, reported=()))
        if not self.failed:
            for sealed in self.sealed:
                sealed.end_seqs = [0] * len(sealed.end_seqs)

    def take_sealed(self, first_needed: Sequence[int | None]) -> list[Sealed]:
        """Give up the files whose events are all below `first_needed` (None: any is), oldest first."""
        given: list[Sealed] = []
        while self.sealed and all(
            first is None or end <= first for end, first in zip(self.sealed[0].end_seqs, first_needed, strict=True)
        ):
            given.append(self.sealed.pop(0))
        return given

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
        self._fd = None
        self.sealed = []

    def _path(self, number: int) -> Path:
        return self.directory / f"journal-{number}"


def remove(files: Iterable[Sealed]) -> None:
    """Delete files, oldest first."""
    for sealed in files:
        sealed.path.unlink(missing_ok=True)
