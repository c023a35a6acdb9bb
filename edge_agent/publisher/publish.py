"""Brings a release to where devices look for it: its objects first, its manifest last.

Objects are never replaced: their names hold their SHA-256. The manifest is replaced only if it is still the one that
was compared with, so that of two who publish at the same time one is told.
"""

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import msgspec

from edge_agent.durable import replace_file, sync
from edge_agent.models.manifest import MANIFEST, MAX_SIZE, OBJECTS, Manifest, ManifestError, ObjectFile, parse
from edge_agent.publisher.build import ReleaseError
from edge_agent.publisher.keys import read_manifest


class Published(msgspec.Struct, frozen=True):
    """What is there now, and what was there before. `uploaded` are the names of the objects that were not there yet."""

    manifest: Manifest
    previous: Manifest | None
    uploaded: list[str]


class Place(Protocol):
    """Where releases of one model are. The methods raise ReleaseError, or OSError of a folder."""

    url: str

    def read_manifest(self) -> tuple[bytes | None, str]:
        """Return the manifest that is there, or None, and what tells this state of it from others."""

    def has_object(self, file: ObjectFile) -> bool:
        """Say whether the object is there, whole."""

    def put_object(self, file: ObjectFile, path: Path) -> None:
        """Write an object."""

    def put_manifest(self, data: bytes, state: str) -> None:
        """Replace the manifest if its state is still the one that `read_manifest` returned."""


def publish(folder: Path, place: Place, tell: Callable[[str], None] = lambda _: None) -> Published:
    """Publish the release in `folder`; `tell` gets a line for each object. Raises ReleaseError, OSError."""
    file = read_manifest(folder)
    _check_files(folder, file.manifest)
    there, state = place.read_manifest()
    previous = _previous(there, place)
    _check_sequence(file.manifest, previous, place)
    uploaded = []
    for each in file.manifest.files:
        if not place.has_object(each):
            tell(f"{each.name}: {each.size / 1e6:.1f} MB")
            place.put_object(each, folder / OBJECTS / each.name)
            uploaded.append(each.name)
    place.put_manifest(file.encode(), state)
    return Published(file.manifest, previous, uploaded)


def _check_files(folder: Path, manifest: Manifest) -> None:
    for each in manifest.files:
        path = folder / OBJECTS / each.name
        if not path.is_file():
            raise ReleaseError(f"{path}: is missing; build the release again")
        if (path.stat().st_size, _sha256(path)) != (each.size, each.sha256):
            raise ReleaseError(f"{path}: is not what {folder / MANIFEST} says; build the release again")


def _previous(data: bytes | None, place: Place) -> Manifest | None:
    if data is None:
        return None
    try:
        return parse(data).manifest
    except ManifestError as error:
        raise ReleaseError(f"{place.url}/{MANIFEST}: {error}; remove it if it does not matter") from error


def _check_sequence(new: Manifest, previous: Manifest | None, place: Place) -> None:
    if previous is None:
        return
    if previous.name != new.name:
        raise ReleaseError(f"{place.url} has releases of {previous.name!r}, not of {new.name!r}")
    if previous.sequence > new.sequence:
        raise ReleaseError(
            f"{place.url} has {previous.version}, which was built later; devices would take {new.version} for an old "
            "one shown again: build it again to go back to it"
        )


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

    def has_object(self, file: ObjectFile) -> bool:
        """Say whether the object is there, whole."""
        path = self._folder / OBJECTS / file.name
        return path.is_file() and _sha256(path) == file.sha256

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


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
