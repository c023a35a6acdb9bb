"""What has come of a download: its count and its checksum, and on disk what the next try goes on with.

    model.tflite            the bytes so far, from the first one on
    model.tflite.resume     of which upload they are; written before the first byte

A file whose note is missing, or names another upload, is begun anew. Nothing is forced to disk on the way: what a power
cut took or tore shows in the checksum over the whole, at the price of another download from the start.
"""

import base64
import stat
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import google_crc32c
import msgspec

from edge_agent.durable import replace_file
from edge_agent.models.release.releases import RemoteObject
from edge_agent.models.stores.base import PORTAL, FetchFailed, StoreError, StoreUnavailable, write_all

NOTE_SUFFIX = ".resume"
_CHUNK = 1 << 18


class Note(msgspec.Struct, frozen=True):
    """Which upload the bytes in a file are of."""

    url: str
    generation: str
    checksum: str
    size: int

    @classmethod
    def of(cls, remote: RemoteObject) -> "Note":
        """Name an upload."""
        return cls(remote.url, remote.generation, remote.checksum, remote.size)


class Received:
    """What has come of `remote`, in order: `size` bytes of it. Its CRC32C is taken on the way."""

    def __init__(self, remote: RemoteObject) -> None:
        self._remote = remote
        self._start = b""
        self._forget()

    def write(self, data: bytes) -> None:
        """Take the next bytes. Raises `StoreError` if they are too many, or cannot be kept."""
        self._start = self._start or data[:64]
        if self.size + len(data) > self._remote.size:
            raise self.mismatch("more bytes than announced")
        self._keep(data)
        self._count(data)

    def restart(self) -> None:
        """Forget what has come: the server begins with the first byte again."""
        self._forget()

    def check(self) -> None:
        """Raise `StoreError` if the whole is not what was announced."""
        if self.size != self._remote.size:
            raise self.mismatch(f"{self.size} bytes instead of {self._remote.size}")
        found = f"crc32c:{base64.b64encode(self._checksum.digest()).decode()}"
        if found != self._remote.checksum:
            raise self.mismatch(f"checksum {found} instead of {self._remote.checksum}")

    def mismatch(self, what: str) -> StoreError:
        """The error that says what came instead of the object."""
        if self._start.lstrip()[:1] == b"<":
            return StoreUnavailable(f"{self._remote.url}: {PORTAL}")
        return FetchFailed(f"{self._remote.url}: the download came with {what}; it was thrown away")

    def _forget(self) -> None:
        self._checksum = google_crc32c.Checksum()
        self.size = 0

    def _count(self, data: bytes) -> None:
        self._checksum.update(data)
        self.size += len(data)

    def _keep(self, data: bytes) -> None:
        raise NotImplementedError


class InMemory(Received):
    """A small object, in `data`."""

    def __init__(self, remote: RemoteObject) -> None:
        self.data = bytearray()
        super().__init__(remote)

    def _forget(self) -> None:
        super()._forget()
        self.data.clear()

    def _keep(self, data: bytes) -> None:
        self.data.extend(data)


class Part(Received):
    """An object in the file at `path`, beginning with what an earlier try has left there of the same upload.

    Use it as a context manager; what was found to be wrong is gone when it ends. Raises `StoreError` or `OSError`.
    """

    def __init__(self, path: Path, remote: RemoteObject) -> None:
        self._path = path
        held = holds(path, remote)
        self._file = path.open("r+b" if held else "wb", buffering=0)
        super().__init__(remote)
        try:
            if held:
                self._take_up()
            elif stat.S_ISREG(path.stat().st_mode):  # with anything else nobody could go on
                replace_file(note_of(path), msgspec.json.encode(Note.of(remote)))
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if isinstance(error, FetchFailed):
            throw_away(self._path)

    def restart(self) -> None:
        """Forget what has come, on disk too."""
        super().restart()
        self._file.seek(0)
        self._file.truncate()

    def _take_up(self) -> None:
        """Count what is there; the next bytes go behind it."""
        while data := self._file.read(_CHUNK):
            if self.size + len(data) > self._remote.size:
                self.restart()
                return
            self._count(data)

    def _keep(self, data: bytes) -> None:
        write_all(self._file, data)


def note_of(path: Path) -> Path:
    """Where the note on a file is."""
    return path.with_name(f"{path.name}{NOTE_SUFFIX}")


def holds(path: Path, remote: RemoteObject) -> bool:
    """Whether the file at `path` is the beginning of this very upload, by its note."""
    with suppress(FileNotFoundError, ValueError):
        note = msgspec.json.decode(note_of(path).read_bytes(), type=Note)
        return path.is_file() and note == Note.of(remote)
    return False


def can_go_on(folder: Path) -> bool:
    """Whether there is a download in `folder` that a later try goes on with."""
    return any(folder.glob(f"*{NOTE_SUFFIX}"))


def size_held(folder: Path) -> int:
    """How many bytes of downloads there are in `folder`."""
    return sum(file.stat().st_size for file in folder.iterdir() if file.suffix != NOTE_SUFFIX)


def drop_notes(folder: Path) -> None:
    """The downloads in `folder` are whole and checked. Raises `OSError`."""
    for note in folder.glob(f"*{NOTE_SUFFIX}"):
        note.unlink()


def throw_away(path: Path) -> None:
    """Remove a download that no later try shall go on with. Raises `OSError`."""
    note_of(path).unlink(missing_ok=True)
    if path.is_file():
        path.unlink()
