"""Where releases are published: a folder, or a folder in a bucket of Google Cloud Storage.

Two kinds of files are there: objects, which are never replaced, as their names hold their SHA-256, and documents: the
manifest, and one record for each version. A document is replaced only in the state in which it was read, so that of two
who publish at the same time one is told.
"""

import base64
import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import google_crc32c

from edge_agent.durable import replace_file, sync
from edge_agent.models.release.manifest import MANIFEST, MAX_SIZE, OBJECTS, ObjectFile
from edge_agent.models.stores.base import Missing, StoreError, file_sha256
from edge_agent.models.stores.gcs import GcsFolder, GcsStore, Upload
from edge_agent.publisher.errors import ReleaseError
from edge_agent.settings.location import parse_folder

MAX_NAMES = 10_000
_URL = "the URL"
_CHUNK = 1 << 18
_MEANWHILE = "somebody else has published meanwhile; look (edge-agent release list), then promote or publish again"


class Place(Protocol):
    """Where the releases of one model are. The methods raise ReleaseError, or OSError of a folder."""

    url: str

    def read(self, name: str) -> tuple[bytes | None, str]:
        """Return the document that is there, or None, and what tells this state of it from others."""

    def replace(self, name: str, data: bytes, state: str) -> None:
        """Replace the document if its state is still the one that `read` returned."""

    def names(self, folder: str) -> list[str]:
        """Return the names of what is in a folder, in their order."""

    def has_object(self, file: ObjectFile, path: Path) -> bool:
        """Say whether the object is there with the content of `path`."""

    def put_object(self, file: ObjectFile, path: Path, watch: Callable[[int], None]) -> None:
        """Write an object; `watch` hears of each number of bytes that is on its way."""


def open_place(text: str) -> Place:
    """Return the place behind gs://BUCKET/FOLDER, file:///FOLDER or a path. Raises ReleaseError."""
    try:
        location = parse_folder(text)
    except ValueError as error:
        raise ReleaseError(str(error)) from error
    folder, _, name = text.rstrip("/").rpartition("/")
    if name == MANIFEST:
        raise ReleaseError(f"{text}: is the manifest, as devices want it; give the folder: {folder or '.'}")
    return BucketPlace(location.bucket, location.path) if location.scheme == "gs" else FolderPlace(Path(location.path))


class BucketPlace:
    """A folder in a bucket."""

    def __init__(self, bucket: str, folder: str) -> None:
        self.url = f"gs://{bucket}/{folder}".rstrip("/")
        self._bucket = bucket
        self._prefix = f"{folder}/" if folder else ""
        self._folder = GcsFolder(bucket, folder, setting=_URL, publishing=True)

    def read(self, name: str) -> tuple[bytes | None, str]:
        """Return the document that is there, or None, and its generation."""
        try:
            return self._store(name).read(MAX_SIZE)
        except Missing:
            return None, "0"
        except StoreError as error:
            raise ReleaseError(str(error)) from error

    def replace(self, name: str, data: bytes, state: str) -> None:
        """Replace the document if its generation is still that one."""
        try:
            self._folder.replace(name, data, replacing=int(state))
        except StoreError as error:
            try:
                there, now = self.read(name)
            except ReleaseError:  # of a bucket that does not answer the first error says more
                raise ReleaseError(str(error)) from error
            if there == data:
                return  # only the answer was lost
            why = str(error) if now == state else f"{self.url}/{name}: {_MEANWHILE}"
            raise ReleaseError(why) from error

    def names(self, folder: str) -> list[str]:
        """Return the names of the objects in a folder."""
        try:
            return self._folder.names(folder, MAX_NAMES)
        except StoreError as error:
            raise ReleaseError(str(error)) from error

    def has_object(self, file: ObjectFile, path: Path) -> bool:
        """Say whether the object is there with the content of `path`."""
        store = self._store(f"{OBJECTS}/{file.name}")
        try:
            found = store.stat()
        except Missing:
            return False
        except StoreError as error:
            raise ReleaseError(str(error)) from error
        if (found.size, found.checksum) != (file.size, _crc32c(path)):
            raise ReleaseError(f"{store.url} is there with another content; find out who wrote it, and remove it")
        return True

    def put_object(self, file: ObjectFile, path: Path, watch: Callable[[int], None]) -> None:
        """Upload a file."""
        try:
            with path.open("rb") as source:
                self._folder.put(f"{OBJECTS}/{file.name}", Upload(source, watch))
        except StoreError as error:
            raise ReleaseError(str(error)) from error

    def _store(self, name: str) -> GcsStore:
        return GcsStore(self._bucket, self._prefix + name, setting=_URL, publishing=True)


class FolderPlace:
    """A folder: on a USB stick, a network share, or the device itself."""

    def __init__(self, folder: Path) -> None:
        self.url = folder.absolute().as_uri()
        self._folder = folder

    def read(self, name: str) -> tuple[bytes | None, str]:
        """Return the document that is there, or None, and a hash of it."""
        try:
            with (self._folder / name).open("rb") as file:
                data = file.read(MAX_SIZE + 1)
        except FileNotFoundError:
            return None, ""
        return data, hashlib.sha256(data).hexdigest()

    def replace(self, name: str, data: bytes, state: str) -> None:
        """Replace the document if nobody else has meanwhile."""
        path = self._folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(self._folder):
            if self.read(name)[1] != state:
                raise ReleaseError(f"{self.url}/{name}: {_MEANWHILE}")
            replace_file(path, data)

    def names(self, folder: str) -> list[str]:
        """Return the names of the files in a folder."""
        try:
            return sorted(path.name for path in (self._folder / folder).iterdir())[:MAX_NAMES]
        except FileNotFoundError:
            return []

    def has_object(self, file: ObjectFile, path: Path) -> bool:  # noqa: ARG002  a hash is enough here
        """Say whether the object is there, whole."""
        there = self._folder / OBJECTS / file.name
        return there.is_file() and file_sha256(there) == file.sha256

    def put_object(self, file: ObjectFile, path: Path, watch: Callable[[int], None]) -> None:
        """Copy a file, which gets its name when it is whole."""
        objects = self._folder / OBJECTS
        objects.mkdir(parents=True, exist_ok=True)
        copy(path, objects / file.name, watch)


def copy(source: Path, target: Path, watch: Callable[[int], None]) -> None:
    """Copy a file so that it is there under its name only as a whole. Raises OSError."""
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with source.open("rb") as from_file, part.open("wb") as to_file:
            while chunk := from_file.read(_CHUNK):
                to_file.write(chunk)
                watch(len(chunk))
        sync(part)
        part.rename(target)
    except OSError as error:  # of a disk that is full it names no file
        raise OSError(error.errno, error.strerror, error.filename or str(target)) from error
    finally:
        part.unlink(missing_ok=True)
    sync(target.parent)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep others who publish in a folder waiting."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _crc32c(path: Path) -> str:
    return f"crc32c:{base64.b64encode(google_crc32c.Checksum(path.read_bytes()).digest()).decode()}"
