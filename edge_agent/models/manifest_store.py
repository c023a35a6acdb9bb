"""Models by way of a manifest: `release.json` says which objects make a release, and keys say whether to believe it.

    [model]
    url = "gs://bucket/models/vibration/release.json"
    keys = ["/etc/edge-agent/release.pub.pem"]

A poll reads the manifest, and only that; what it names is asked for when it is fetched. Nothing of a manifest is used
before its signature was found good, if there are keys.
"""

import datetime as dt
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from edge_agent.models.manifest import MANIFEST, MAX_SIZE, Manifest, ManifestError, ObjectFile, SignedManifest, parse
from edge_agent.models.releases import RemoteObject
from edge_agent.models.stores import (
    FetchFailed,
    Missing,
    Readable,
    Store,
    StoreNeedsPerson,
    StoreUnavailable,
    file_sha256,
)


class ManifestStore:
    """The model of a release. `file` is its manifest, `open_object` makes the store of an object by its name.

    `keys` are the PEM files of those who may release models; where there are none nobody is asked for a signature.
    `clock` is in seconds since 1970.
    """

    def __init__(
        self,
        file: Readable,
        open_object: Callable[[str], Store],
        keys: Sequence[Path],
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.url = file.url
        self._file = file
        self._open_object = open_object
        self._keys = keys
        self._clock = clock
        self._manifest: Manifest | None = None

    def stat(self) -> RemoteObject:
        """Read the manifest and say which model it names. Raises `StoreError`."""
        manifest = self._read()
        self._manifest = manifest
        return self._described(self.url, manifest, manifest.model)

    def fetch(self, remote: RemoteObject, destination: Path, stop: threading.Event) -> None:
        """Download an object of the manifest that was read last, and compare its SHA-256."""
        self._fetch_file(self._named(remote), destination, stop)

    def _fetch_file(self, file: ObjectFile, destination: Path, stop: threading.Event) -> None:
        store = self._open_object(file.name)
        found = store.stat()
        if found.size != file.size:
            raise FetchFailed(f"{found.url} has {found.size} bytes, and {self.url} says {file.size}; it is not fetched")
        store.fetch(found, destination, stop)
        if file_sha256(destination) != file.sha256:
            raise FetchFailed(f"{found.url} is not what {self.url} says: its SHA-256 is another; it was thrown away")

    def fetch_golden(self, remote: RemoteObject, destination: Path, stop: threading.Event) -> None:
        """Download the golden samples of the release that `remote` is the model of. Raises `StoreError`."""
        golden = remote.acceptance.golden
        if golden is None:
            raise Missing(f"{self.url} names no golden samples", "build the release with --golden")
        self._fetch_file(golden, destination, stop)

    @property
    def twin(self) -> "TwinOfManifest":
        """The store of the twin that the manifest names."""
        return TwinOfManifest(self)

    def stat_twin(self) -> RemoteObject:
        """Say which twin the manifest names that `stat` has read. Raises `StoreError`."""
        if self._manifest is None:
            raise StoreUnavailable(f"{self.url} was not read yet")
        if self._manifest.twin is None:
            raise Missing(f"{self.url} names no model for the CPU", "build the release with --twin")
        return self._described(self.twin.url, self._manifest, self._manifest.twin)

    def _described(self, url: str, manifest: Manifest, file: ObjectFile) -> RemoteObject:
        """The generation is that of the content, so that a manifest that was only signed anew names no other upload."""
        return RemoteObject(
            url=url,
            version=manifest.version,
            generation=file.sha256[:16],
            size=file.size,
            checksum=f"sha256:{file.sha256}",
            accuracy=manifest.accuracy,
            labels=manifest.labels,
            version_given=True,
            # Anybody could write a high one into a file that nobody has to sign, and so keep all later ones out.
            sequence=manifest.sequence if self._keys else 0,
        )

    def _named(self, remote: RemoteObject) -> ObjectFile:
        files = self._manifest.files if self._manifest is not None else []
        named = next((each for each in files if f"sha256:{each.sha256}" == remote.checksum), None)
        if named is None:
            raise StoreUnavailable(f"{self.url} has changed since it was read")
        return named

    def _read(self) -> Manifest:
        try:
            data, _ = self._file.read(MAX_SIZE)
            file = parse(data)
        except ManifestError as error:
            raise StoreNeedsPerson(f"{self.url} {error}", "publish the release again") from error
        if self._keys:
            self._check_signature(file)
        manifest = file.manifest
        if manifest.expires is not None and manifest.expires < self._clock():
            day = dt.datetime.fromtimestamp(manifest.expires, dt.UTC).date()
            raise StoreNeedsPerson(
                f"{self.url} has expired: {manifest.version} was good until {day}",
                "sign it again (edge-agent release sign), and see that the device's clock is right",
            )
        return manifest

    def _check_signature(self, file: SignedManifest) -> None:
        from edge_agent.models.signatures import (  # noqa: PLC0415  its library is loaded only where there are keys
            KeyFileError,
            UntrustedError,
            read_public_key,
            verify,
        )

        try:
            verify(file, [read_public_key(path) for path in self._keys])
        except UntrustedError as error:
            raise StoreNeedsPerson(
                f"{self.url} {error}",
                "it is not used: sign it with a key of [model].keys (edge-agent release sign), or find out who made it",
            ) from error
        except KeyFileError as error:
            raise StoreNeedsPerson(str(error), "correct [model].keys; no release is used until then") from error
        except OSError as error:
            reason = f"{error.filename}: {error.strerror}"
            raise StoreNeedsPerson(reason, "correct [model].keys; no release is used until then") from error


class UnsignedStore:
    """Stands for the object at `url`, which nobody has signed, where only what is signed may be used."""

    def __init__(self, url: str) -> None:
        self.url = url

    def stat(self) -> RemoteObject:
        """Refuse. Raises `StoreNeedsPerson`."""
        raise StoreNeedsPerson(
            f"{self.url} is not signed, and [model].keys is set",
            f"let [model].url name the {MANIFEST} of a release (edge-agent release publish), or take the keys away",
        )

    def fetch(self, remote: RemoteObject, destination: Path, stop: threading.Event) -> None:  # noqa: ARG002
        """Refuse. Raises `StoreNeedsPerson`."""
        self.stat()


class TwinOfManifest:
    """The twin of the release that a manifest names. Its manifest is the one that the model's store has read."""

    def __init__(self, store: ManifestStore) -> None:
        self.url = f"{store.url}#twin"
        self._store = store

    def stat(self) -> RemoteObject:
        """Say which twin there is. Raises `StoreError`."""
        return self._store.stat_twin()

    def fetch(self, remote: RemoteObject, destination: Path, stop: threading.Event) -> None:
        """Download it. Raises `StoreError`."""
        self._store.fetch(remote, destination, stop)
