"""A model in the plain form: one object whose metadata say all there is to say, or a file with a sidecar in JSON.

Devices that have keys take it if its signature is good, which is over all of them
(`edge_agent.models.release.signatures.sign_model`).
"""

import json
from collections.abc import Callable
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edge_agent.durable import replace_file
from edge_agent.models.release.audience import write_audience
from edge_agent.models.release.manifest import MANIFEST, Audience
from edge_agent.models.release.releases import Claims, RemoteObject, clean_version
from edge_agent.models.release.signatures import sign_model
from edge_agent.models.stores.base import Missing, Store, StoreError, file_sha256
from edge_agent.models.stores.directory import FileStore
from edge_agent.models.stores.gcs import GcsFolder, GcsStore, Upload
from edge_agent.publisher.audiences import UNCHANGED, Change
from edge_agent.publisher.errors import ReleaseError
from edge_agent.publisher.places import copy, locked
from edge_agent.publisher.progress import show_progress
from edge_agent.publisher.publish import Show, next_sequence
from edge_agent.settings.location import Location, parse_location

# Of an object in Cloud Storage: 8 KiB for keys and values together.
_MAX_METADATA = 8 * 1024
_URL = "the URL"
_MEANWHILE = "somebody else has uploaded a model meanwhile; look which one it is, and try again"


class Plain(msgspec.Struct, frozen=True, kw_only=True):
    """What is uploaded. `accuracy` is from 0 to 1. Without a `name` it is the one that devices take from the URL."""

    model: Path
    version: str
    name: str = ""
    labels: list[str] | None = None
    accuracy: float | None = None


class Uploaded(msgspec.Struct, frozen=True):
    """Where it is now, and which version was there before, or None. `audience` is the text form."""

    url: str
    previous: str | None
    audience: str


def upload(
    plain: Plain,
    url: str,
    *,
    change: Change = UNCHANGED,
    key: Ed25519PrivateKey | None = None,
    show: Show = show_progress,
) -> Uploaded:
    """Upload the model, unless somebody else does meanwhile. Raises ReleaseError, OSError."""
    location = _location(url)
    if clean_version(plain.version) != plain.version or not plain.version:
        raise ReleaseError(f"{plain.version!r} is no version: give one line of up to 128 letters")
    if plain.accuracy is not None and not 0 <= plain.accuracy <= 1:
        raise ReleaseError(f"--accuracy: {plain.accuracy:g} is none: it is from 0 to 1")
    target = _Object(location) if location.scheme == "gs" else _File(Path(location.path))
    previous = _previous(target.store)
    audience = "" if change == UNCHANGED else write_audience(change.applied(Audience()))
    name = plain.name or location.default_name
    claims = _claims(plain, name, previous, audience, key)
    metadata = {"version": plain.version} | {
        each: text for each, text in msgspec.structs.asdict(claims).items() if text
    }
    with show(plain.model.name, plain.model.stat().st_size) as watch:
        target.put(plain.model, metadata, previous, watch)
    return Uploaded(target.store.url, None if previous is None else previous.version, audience or "100%")


def _location(url: str) -> Location:
    try:
        location = parse_location(url)
    except ValueError as error:
        raise ReleaseError(str(error)) from error
    if location.path.rpartition("/")[2] == MANIFEST:
        raise ReleaseError(f"{url}: that is the manifest of releases; use `edge-agent release publish`")
    return location


def _previous(store: Store) -> RemoteObject | None:
    try:
        return store.stat()
    except Missing:
        return None
    except StoreError as error:
        raise ReleaseError(str(error)) from error


def _claims(
    plain: Plain, name: str, previous: RemoteObject | None, audience: str, key: Ed25519PrivateKey | None
) -> Claims:
    before = "" if previous is None else previous.claims.sequence
    sequence = next_sequence(int(before) if before.isascii() and before.isdecimal() else 0)
    claims = Claims(
        sha256=file_sha256(plain.model),
        sequence=str(sequence),
        rollout=audience,
        name=name,
        labels="" if plain.labels is None else json.dumps(plain.labels, ensure_ascii=False),
        accuracy="" if plain.accuracy is None else f"{plain.accuracy:g}",
    )
    return claims if key is None else sign_model(plain.version, claims, key)


def _upload_of(found: RemoteObject | None) -> str:
    return "" if found is None else found.id


def _is(found: RemoteObject, metadata: dict[str, str]) -> bool:
    """Say whether what is there is this upload. Nobody else's has this sequence and content."""
    claims = found.claims
    return (claims.sequence, claims.sha256) == (metadata["sequence"], metadata["sha256"])


class _Object:
    """An object in a bucket."""

    def __init__(self, location: Location) -> None:
        self.store = GcsStore(location.bucket, location.path, setting=_URL, publishing=True)
        self._folder = GcsFolder(location.bucket, "", setting=_URL, publishing=True)
        self._name = location.path

    def put(
        self, model: Path, metadata: dict[str, str], previous: RemoteObject | None, watch: Callable[[int], None]
    ) -> None:
        size = sum(len(name.encode()) + len(value.encode()) for name, value in metadata.items())
        if size > _MAX_METADATA:
            raise ReleaseError(
                f"the metadata would have {size} bytes, and Cloud Storage takes {_MAX_METADATA}: leave the labels out, "
                "or make a release of it (edge-agent release build)"
            )
        replacing = 0 if previous is None else int(previous.generation)
        try:
            with model.open("rb") as file:
                self._folder.replace(self._name, Upload(file, watch), replacing=replacing, metadata=metadata)
        except StoreError as error:
            try:
                now = _previous(self.store)
            except ReleaseError:  # of a bucket that does not answer the first error says more
                raise ReleaseError(str(error)) from error
            if now is not None and _is(now, metadata):
                return  # only the answer was lost
            why = str(error) if _upload_of(now) == _upload_of(previous) else f"{self.store.url}: {_MEANWHILE}"
            raise ReleaseError(why) from error


class _File:
    """A file, with what is metadata in a bucket beside it."""

    def __init__(self, path: Path) -> None:
        self.store = FileStore(path, setting=_URL)
        self._path = path

    def put(
        self, model: Path, metadata: dict[str, str], previous: RemoteObject | None, watch: Callable[[int], None]
    ) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with locked(self._path.parent):
            if _upload_of(_previous(self.store)) != _upload_of(previous):
                raise ReleaseError(f"{self.store.url}: {_MEANWHILE}")
            # Whoever reads between the two sees that the SHA-256 in the sidecar is another.
            copy(model, self._path, watch)
            document = json.dumps(metadata, ensure_ascii=False, indent=2)
            replace_file(self._path.with_name(f"{self._path.name}.json"), f"{document}\n".encode())
