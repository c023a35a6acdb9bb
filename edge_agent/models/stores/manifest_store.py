"""Models by way of a manifest: `release.json` says which objects make a release, and keys say whether to believe it.

    [model]
    url = "gs://bucket/models/vibration/release.json"
    keys = ["/etc/edge-agent/release.pub.pem"]

A poll reads the manifest, and only that; what it names is asked for when it is fetched. Nothing of a manifest is used
before its signature was found good, if there are keys. `stat` answers for this one device: a device that a release is
not for is offered the one before.
"""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from msgspec.structs import replace

from edge_agent.models.release.audience import Device, why_not
from edge_agent.models.release.manifest import MAX_GOLDEN, MAX_SIZE, Manifest, ManifestError, ObjectFile, parse
from edge_agent.models.release.releases import Claims, Release, RemoteObject, Shadow
from edge_agent.models.stores.base import FetchFailed, Missing, Readable, Store, StoreNeedsPerson, StoreUnavailable
from edge_agent.models.stores.content import PromisedContent
from edge_agent.models.stores.trust import Trust


class HasGolden(Protocol):
    """A store whose releases may have golden samples."""

    def fetch_golden(self, remote: RemoteObject, destination: Path, stop: threading.Event) -> None:
        """Write the golden samples of `remote.acceptance` to `destination`, checked. Raises `StoreError`."""


def _nothing() -> None:
    return None


class ManifestStore:
    """The model of a release, at `url`. `file` is its manifest, `open_object` makes the store of an object by its name.

    `name` is what the release must be called if there are keys, or empty. `pin` is the version that alone is wanted,
    or empty; `file` is then the manifest that stays for it. `committed` says what the device starts with.
    """

    def __init__(
        self,
        file: Readable,
        open_object: Callable[[str], Store],
        trust: Trust,
        device: Device,
        *,
        url: str,
        name: str = "",
        pin: str = "",
        committed: Callable[[], Release | None] = _nothing,
    ) -> None:
        self.url = url
        self._file = file
        self._open_object = open_object
        self._trust = trust
        self._device = device
        self._name = name
        self._pin = pin
        self._committed = committed
        self._content = PromisedContent()
        self._manifest: Manifest | None = None
        self._chosen: Manifest | None = None

    def stat(self) -> RemoteObject:
        """Read the manifest and say which model this device is to run. Raises `StoreError`."""
        manifest = self._read()
        chosen, remote = self._choose(manifest)
        self._manifest, self._chosen = manifest, chosen
        return replace(remote, outlook=self._trust.outlook(manifest))

    def fetch(self, remote: RemoteObject, destination: Path, stop: threading.Event) -> None:
        """Download an object of the manifest that was read last, and compare its SHA-256."""
        files = [file for release in self._releases() for file in release.files]
        self._fetch(next((each for each in files if _checksum(each) == remote.checksum), None), destination, stop)

    def fetch_golden(self, remote: RemoteObject, destination: Path, stop: threading.Event) -> None:
        """Download the golden samples of a release of the manifest that was read last, likewise."""
        golden = next((one.acceptance.golden for one in self._releases() if _is(one, remote)), None)
        if golden is not None and golden.size > MAX_GOLDEN:
            raise StoreNeedsPerson(
                f"{self._file.url} has golden samples of {golden.size} bytes, and at most {MAX_GOLDEN} are read",
                "build the release with fewer",
            )
        self._fetch(golden, destination, stop)

    @property
    def twin(self) -> "TwinOfManifest":
        """The store of the twin that the manifest names."""
        return TwinOfManifest(self)

    def stat_twin(self) -> RemoteObject:
        """Say which twin belongs to the model that `stat` has named. Raises `StoreError`."""
        if self._chosen is None:
            raise StoreUnavailable(f"{self.url} was not read yet")
        if self._chosen.twin is None:
            raise Missing(f"{self.url} names no model for the CPU", "build the release with --twin")
        return _described(self.twin.url, self._chosen, self._chosen.twin)

    def _choose(self, manifest: Manifest) -> tuple[Manifest, RemoteObject]:
        release, audience, before = self._model(manifest, manifest), manifest.audience, manifest.before
        why = why_not(audience, self._device, version=manifest.version, sha256=manifest.model.sha256)
        if self._pin or not why:
            return manifest, release
        shadow = Shadow(release, audience.shadow) if audience.shadow and not audience.halted else None
        if before is None or (audience.halted and self._runs(release)):
            return manifest, replace(release, withheld=why, shadow=shadow)
        return before, replace(self._model(before, manifest), shadow=shadow)

    def _runs(self, release: RemoteObject) -> bool:
        committed = self._committed()
        return committed is not None and _identity(committed) == _identity(release)

    def _model(self, release: Manifest, manifest: Manifest) -> RemoteObject:
        described = _described(self.url, release, release.model)
        return replace(described, acceptance=release.acceptance, sequence=self._sequence(manifest))

    def _sequence(self, manifest: Manifest) -> int:
        # Anybody could write a high one into a file that nobody has to sign, and so keep all later ones out. Whoever
        # has pinned a version wants it whatever has come after it.
        return manifest.sequence if self._trust and not self._pin else 0

    def _releases(self) -> list[Manifest]:
        return [each for each in (self._manifest, self._manifest and self._manifest.before) if each is not None]

    def _fetch(self, file: ObjectFile | None, destination: Path, stop: threading.Event) -> None:
        if file is None:
            raise StoreUnavailable(f"{self.url} has changed since it was read")
        store = self._open_object(file.name)
        found = store.stat()
        if found.size != file.size:
            raise FetchFailed(f"{found.url} has {found.size} bytes, and {self.url} says {file.size}; it is not fetched")
        self._content.fetch(store, found, file.sha256, destination, stop, promised=self.url)

    def _read(self) -> Manifest:
        url = self._file.url
        try:
            data, _ = self._file.read(MAX_SIZE)
            file = parse(data)
        except ManifestError as error:
            raise StoreNeedsPerson(f"{url} {error}", "publish the release again") from error
        except Missing as error:
            raise self._missing(error) from error
        if self._trust:
            self._trust.check(url, file)
        self._check_names(file.manifest)
        self._trust.check_time(url, file.manifest)
        return file.manifest

    def _missing(self, error: Missing) -> Missing:
        if not self._pin:
            return error
        return Missing(f"{error.reason}: no release {self._pin}", "publish it again, or correct [model].pin")

    def _check_names(self, manifest: Manifest) -> None:
        """Whoever may write to the bucket could put the signed release of another model there."""
        url = self._file.url
        if self._trust and self._name and manifest.name != self._name:
            raise StoreNeedsPerson(
                f"{url} is a release of {manifest.name}, and this device runs {self._name}",
                "correct [model].url or [model].name, or find out who put it there",
            )
        if self._pin and manifest.version != self._pin:
            raise StoreNeedsPerson(f"{url} is {manifest.version}, and not {self._pin}", "find out who put it there")


def _described(url: str, release: Manifest, file: ObjectFile) -> RemoteObject:
    """The generation is that of the content, so that a manifest that was only signed anew names no other upload."""
    return RemoteObject(
        url=url,
        version=release.version,
        generation=file.sha256[:16],
        size=file.size,
        checksum=_checksum(file),
        accuracy=release.accuracy,
        labels=release.labels,
        version_given=True,
        claims=Claims(sha256=file.sha256),
    )


def _checksum(file: ObjectFile) -> str:
    return f"sha256:{file.sha256}"


def _identity(model: RemoteObject | Release) -> tuple[str, str]:
    return model.version, model.checksum


def _is(release: Manifest, remote: RemoteObject) -> bool:
    return (release.version, _checksum(release.model)) == _identity(remote)


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
