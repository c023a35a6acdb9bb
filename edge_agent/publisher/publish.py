"""Brings a release to where devices look for it: its objects first, then its record, and its manifest last.

Objects are never replaced: their names hold their SHA-256. The record says what a version is made of, so that devices
find it which are to run just that one; a version stays what it was. The manifest is replaced only if it is still the
one that was compared with, so that of two who publish at the same time one is told.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edge_agent.models.release.manifest import (
    MANIFEST,
    MAX_SEQUENCE,
    OBJECTS,
    Audience,
    Manifest,
    ManifestError,
    Signature,
    SignedManifest,
    parse,
    pin_name,
)
from edge_agent.models.release.signatures import UntrustedError
from edge_agent.models.stores.base import file_sha256
from edge_agent.publisher.audiences import UNCHANGED, Change, is_for_all
from edge_agent.publisher.errors import ReleaseError
from edge_agent.publisher.keys import check_signed, lost_signatures, read_manifest, signed_with
from edge_agent.publisher.places import Place
from edge_agent.publisher.progress import show_progress
from edge_agent.publisher.times import why_untimely

Keys = Sequence[Ed25519PrivateKey]
Show = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]


class Published(msgspec.Struct, frozen=True):
    """What is there now, and what was there before. `uploaded` are the names of the objects that were not there yet."""

    manifest: Manifest
    previous: Manifest | None
    uploaded: list[str]
    warnings: list[str]


def publish(
    folder: Path,
    place: Place,
    *,
    change: Change = UNCHANGED,
    keys: Keys = (),
    new_interface: bool = False,
    show: Show = show_progress,
) -> Published:
    """Publish the release in `folder`, for those that `change` says.

    With `keys` it is signed anew. `new_interface` is whether its inputs and outputs may be others than those of the
    release that is there. Raises ReleaseError, OSError.
    """
    built = read_manifest(folder)
    _check_files(folder, built.manifest)
    there, state = place.read(MANIFEST)
    previous = None if there is None else read_document(there, f"{place.url}/{MANIFEST}")
    if previous is not None:
        _check_name(built.manifest, previous.manifest, place)
        if not new_interface:
            _check_interface(built.manifest, previous.manifest)
    file = _prepared(built, previous, change, keys, place)
    if untimely := why_untimely(file.manifest):
        raise ReleaseError(f"no device would take it: {untimely}")
    record = _Record(place, signed_with(built.manifest, keys) if keys else built)
    uploaded = _upload(folder, built.manifest, place, show)
    record.write()
    place.replace(MANIFEST, file.encode(), state)
    before = None if previous is None else previous.manifest
    return Published(file.manifest, before, uploaded, list(_warnings(built, file, previous)))


def read_document(data: bytes, url: str) -> SignedManifest:
    """Read a manifest or record that is there. Raises ReleaseError."""
    try:
        return parse(data)
    except ManifestError as error:
        raise ReleaseError(f"{url}: {error}; remove it if it does not matter") from error


def next_sequence(previous: int) -> int:
    """Return the sequence of what comes after `previous`. Raises ReleaseError where nothing can."""
    if previous + 1 >= MAX_SEQUENCE:
        raise ReleaseError(
            f"what is there has the sequence {previous}, which nothing can follow: find out who wrote it, and remove it"
        )
    return max(int(time.time() * 1000), previous + 1)


def _check_files(folder: Path, manifest: Manifest) -> None:
    for each in manifest.files:
        path = folder / OBJECTS / each.name
        if not path.is_file():
            raise ReleaseError(f"{path}: is missing; build the release again")
        if (path.stat().st_size, file_sha256(path)) != (each.size, each.sha256):
            raise ReleaseError(f"{path}: is not what {folder / MANIFEST} says; build the release again")


def _check_name(new: Manifest, previous: Manifest, place: Place) -> None:
    if previous.name != new.name:
        raise ReleaseError(f"{place.url} has releases of {previous.name!r}, not of {new.name!r}")


def _check_interface(new: Manifest, previous: Manifest) -> None:
    for what, ours, theirs in (("input", new.inputs, previous.inputs), ("output", new.outputs, previous.outputs)):
        if None not in (ours, theirs) and ours != theirs:
            raise ReleaseError(
                f"{new.version} has another {what} than {previous.version}, which is there: {', '.join(ours or [])}, "
                f"and not {', '.join(theirs or [])}. Devices whose source or task does not fit refuse it; publish with "
                "--new-interface if that is meant"
            )


def _prepared(
    built: SignedManifest, previous: SignedManifest | None, change: Change, keys: Keys, place: Place
) -> SignedManifest:
    """Return what is to be published: what was built, or that with another audience and signed anew."""
    manifest = msgspec.structs.replace(built.manifest, audience=change.applied(built.manifest.audience))
    if not is_for_all(manifest.audience):
        manifest = msgspec.structs.replace(manifest, before=_for_the_rest(previous, manifest, keys, place))
    if previous is not None and previous.manifest.sequence > manifest.sequence:
        if built.signatures and not keys:
            raise ReleaseError(
                f"{place.url} has {previous.manifest.version}, which was built later; devices would take "
                f"{manifest.version} for an old one shown again: build it again to go back to it, or give --key"
            )
        manifest = msgspec.structs.replace(manifest, sequence=next_sequence(previous.manifest.sequence))
    if not keys and manifest == built.manifest:
        return built
    if not keys and built.signatures:
        raise ReleaseError("--percent, --cohort and --shadow change what is signed: give the keys, too (--key)")
    return signed_with(manifest, keys)


def _for_the_rest(previous: SignedManifest | None, new: Manifest, keys: Keys, place: Place) -> Manifest | None:
    """Return the release of the devices that the new one is not for."""
    if previous is None:
        return None
    manifest = previous.manifest
    again = manifest.version == new.version or not is_for_all(manifest.audience)
    standing = manifest.before if again else manifest
    if standing is None:
        return None
    if keys:
        # Whoever may write to the bucket could else have anything signed.
        try:
            check_signed(previous, keys)
        except UntrustedError as error:
            raise ReleaseError(
                f"{place.url}/{MANIFEST} {error}. What is there would stay the release of the devices that "
                f"{new.version} is not for, and be signed with it: publish {standing.version} signed, first"
            ) from error
    # How long it is good is said by the manifest that it becomes part of.
    return msgspec.structs.replace(standing, before=None, audience=Audience(), expires=None)


def _upload(folder: Path, manifest: Manifest, place: Place, show: Show) -> list[str]:
    uploaded = []
    for each in manifest.files:
        path = folder / OBJECTS / each.name
        if not place.has_object(each, path):
            with show(each.name, each.size) as watch:
                place.put_object(each, path, watch)
            uploaded.append(each.name)
    return uploaded


class _Record:
    """The record of a version. It is read at once, so that nothing is uploaded for a version that is something else."""

    def __init__(self, place: Place, file: SignedManifest) -> None:
        self._place = place
        self._file = file
        self._name = pin_name(file.manifest.version)
        there, self._state = place.read(self._name)
        self._there = None if there is None else read_document(there, f"{place.url}/{self._name}")
        if self._there is not None and _content(self._there.manifest) != _content(file.manifest):
            raise ReleaseError(
                f"{place.url} has a {file.manifest.version} that is made of other files; a version stays what it was: "
                "build the release again under another one"
            )

    def write(self) -> None:
        """Write it, unless what is there says the same. Signatures and expiry are renewed."""
        there, file = self._there, self._file
        if there is None or there.signed != file.signed or not _all_in(file.signatures, there.signatures):
            self._place.replace(self._name, file.encode(), self._state)


def _all_in(wanted: list[Signature], found: list[Signature]) -> bool:
    return all(each in found for each in wanted)


def _content(manifest: Manifest) -> tuple[object, ...]:
    return manifest.name, manifest.files, manifest.labels


def _warnings(built: SignedManifest, file: SignedManifest, previous: SignedManifest | None) -> Iterator[str]:
    lost = lost_signatures(built, file)
    if lost:
        yield f"it was signed with {', '.join(lost)}, too, and is not any more: devices with only that key refuse it"
    if previous is not None:
        yield from _compared_with(previous, file, lost)
    if not is_for_all(file.manifest.audience) and file.manifest.before is None:
        yield "there is no release for the other devices: they go on with what they have, or wait"


def _compared_with(previous: SignedManifest, file: SignedManifest, lost: Sequence[str]) -> Iterator[str]:
    version, gone = previous.manifest.version, [each for each in lost_signatures(previous, file) if each not in lost]
    if previous.signatures and not file.signatures:
        yield f"{version} was signed, and this is not: devices with keys do not take it"
    elif gone:
        yield (
            f"{version} was signed with {', '.join(gone)}, and this is not: devices with only that key refuse it; "
            "publish it again with that --key, too, unless they have the new one"
        )
    if previous.manifest.labels is not None and file.manifest.labels is None:
        yield f"{version} had labels, and this has none: devices use [inference].labels, or number the classes"
