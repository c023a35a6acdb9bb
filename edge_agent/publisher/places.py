"""Where releases are published: a folder, or a folder in a bucket of Google Cloud Storage."""

import base64
import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import google_crc32c

from edge_agent.durable import replace_file, sync
from edge_agent.models.gcs import GcsFolder, GcsStore
from edge_agent.models.manifest import MANIFEST, MAX_SIZE, OBJECTS, ObjectFile
from edge_agent.models.stores import Missing, StoreError, file_sha256
from edge_agent.publisher.build import ReleaseError
from edge_agent.settings.location import parse_folder

_URL = "the URL"


class Place(Protocol):
    """Where the releases of one model are. The methods raise ReleaseError, or OSError of a folder."""

    url: str

    def read_manifest(self) -> tuple[bytes | None, str]:
        """Return the manifest that is there, or None, and what tells this state of it from others."""

    def has_object(self, file: ObjectFile, path: Path) -> bool:
        """Say whether the object is there with the content of `path`."""

    def put_object(self, file: ObjectFile, path: Path) -> None:
        """Write an object."""

    def put_manifest(self, data: bytes, state: str) -> None:
        """Replace the manifest if its state is still the one that `read_manifest` returned."""


def open_place(text: str) -> Place:
    """Return the place behind gs://BUCKET/FOLDER, file:///FOLDER or a path. Raises ReleaseError."""
    try:
        location = parse_folder(text)
    except ValueError as error:
        raise ReleaseError(str(error)) from error
    return BucketPlace(location.bucket, location.path) if location.scheme == "gs" else FolderPlace(Path(location.path))


class BucketPlace:
    """A folder in a bucket."""

    def __init__(self, bucket: str, folder: str) -> None:
        self.url = f"gs://{bucket}/{folder}".rstrip("/")
        self._bucket = bucket
        self._prefix = f"{folder}/" if folder else ""
        self._manifest = GcsStore(bucket, self._prefix + MANIFEST, setting=_URL)
        self._folder = GcsFolder(bucket, folder, setting=_URL, publishing=True)

    def read_manifest(self) -> tuple[bytes | None, str]:
        """Return the manifest that is there, or None, and its generation."""
        try:
            return self._manifest.read(MAX_SIZE)
        except Missing:
            return None, "0"
        except StoreError as error:
            raise ReleaseError(str(error)) from error

    def has_object(self, file: ObjectFile, path: Path) -> bool:
        """Say whether the object is there with the content of `path`."""
        store = GcsStore(self._bucket, f"{self._prefix}{OBJECTS}/{file.name}", setting=_URL)
        try:
            found = store.stat()
        except Missing:
            return False
        except StoreError as error:
            raise ReleaseError(str(error)) from error
        if (found.size, found.checksum) != (file.size, _crc32c(path)):
            raise ReleaseError(f"{store.url} is there with another content; find out who wrote it, and remove it")
        return True

    def put_object(self, file: ObjectFile, path: Path) -> None:
        """Upload a file."""
        try:
            self._folder.put(f"{OBJECTS}/{file.name}", path)
        except StoreError as error:
            raise ReleaseError(str(error)) from error

    def put_manifest(self, data: bytes, state: str) -> None:
        """Replace the manifest if its generation is still that one."""
        try:
            self._folder.replace(MANIFEST, data, replacing=int(state))
        except StoreError as error:
            raise ReleaseError(f"{error}; look what is there (edge-agent release show), and publish again") from error


class FolderPlace:
    """A folder: on a USB stick, a network share, or the device itself."""

    def __init__(self, folder: Path) -> None:
        self.url = folder.absolute().as_uri()
        self._folder = folder

    def read_manifest(self) -> tuple[bytes | None, str]:
        """Return the manifest that is there, or None, and a hash of it."""
        try:
            with (self._folder / MANIFEST).open("rb") as file:
                data = file.read(MAX_SIZE + 1)
        except FileNotFoundError:
            return None, ""
        return data, hashlib.sha256(data).hexdigest()

    def has_object(self, file: ObjectFile, path: Path) -> bool:  # noqa: ARG002  a hash is enough here
        """Say whether the object is there, whole."""
        there = self._folder / OBJECTS / file.name
        return there.is_file() and file_sha256(there) == file.sha256

    def put_object(self, file: ObjectFile, path: Path) -> None:
        """Copy a file, which gets its name when it is whole."""
        objects = self._folder / OBJECTS
        objects.mkdir(parents=True, exist_ok=True)
        part = objects / f".{file.name}.part"
        shutil.copyfile(path, part)
        sync(part)
        part.rename(objects / file.name)
        sync(objects)

    def put_manifest(self, data: bytes, state: str) -> None:
        """Replace the manifest if nobody else has meanwhile."""
        with _locked(self._folder):
            if self.read_manifest()[1] != state:
                raise ReleaseError(f"{self.url}: somebody else has published meanwhile; look, and publish again")
            replace_file(self._folder / MANIFEST, data)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _crc32c(path: Path) -> str:
    return f"crc32c:{base64.b64encode(google_crc32c.Checksum(path.read_bytes()).digest()).decode()}"
