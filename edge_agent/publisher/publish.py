"""Brings a release to where devices look for it: its objects first, its manifest last.

Objects are never replaced: their names hold their SHA-256. The manifest is replaced only if it is still the one that
was compared with, so that of two who publish at the same time one is told.
"""

from collections.abc import Callable
from pathlib import Path

import msgspec

from edge_agent.models.manifest import MANIFEST, OBJECTS, Manifest, ManifestError, parse
from edge_agent.models.stores import file_sha256
from edge_agent.publisher.build import ReleaseError
from edge_agent.publisher.keys import read_manifest
from edge_agent.publisher.places import Place


class Published(msgspec.Struct, frozen=True):
    """What is there now, and what was there before. `uploaded` are the names of the objects that were not there yet."""

    manifest: Manifest
    previous: Manifest | None
    uploaded: list[str]


def publish(folder: Path, place: Place, tell: Callable[[str], None] = lambda _: None) -> Published:
    """Publish the release in `folder`; `tell` gets a line for each object. Raises ReleaseError, OSError."""
    file = read_manifest(folder)
    _check_files(folder, file.manifest)
    there, state = place.read_manifest()
    previous = _previous(there, place)
    _check_sequence(file.manifest, previous, place)
    uploaded = []
    for each in file.manifest.files:
        if not place.has_object(each, folder / OBJECTS / each.name):
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
        if (path.stat().st_size, file_sha256(path)) != (each.size, each.sha256):
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
