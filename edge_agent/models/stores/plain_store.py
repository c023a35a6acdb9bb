"""Models in the plain form: one object, and what its metadata say of it.

    gsutil -h "x-goog-meta-version:v1.3" -h "x-goog-meta-sha256:3f1c…" -h "x-goog-meta-rollout:10%" cp model.tflite gs://b/

`sha256` and `rollout` are optional, and where nobody has keys so are `signature`, `key` and `sequence`. The JSON file
beside a model in a folder may have the same members.
"""

import re
import threading
from pathlib import Path

from msgspec.structs import replace

from edge_agent.models.release.audience import AudienceError, Device, parse_audience, why_not
from edge_agent.models.release.manifest import MANIFEST
from edge_agent.models.release.releases import RemoteObject, Shadow
from edge_agent.models.stores.base import Store, StoreNeedsPerson, Untrusted
from edge_agent.models.stores.content import PromisedContent
from edge_agent.models.stores.trust import Trust

_SHA256 = re.compile(r"[0-9a-f]{64}")


class PlainStore:
    """The object in `store`, as far as its metadata may be believed and it is for this `device`.

    `device` is None where another object decides for whom this one is. `name` is that of the model in the settings,
    or empty: what is signed has to be of that model.
    """

    def __init__(self, store: Store, trust: Trust, device: Device | None, *, name: str = "") -> None:
        self.url = store.url
        self._store = store
        self._trust = trust
        self._device = device
        self._name = name
        self._content = PromisedContent()

    def beside(self, store: Store) -> "PlainStore":
        """The twin in `store`, on the same terms."""
        return PlainStore(store, self._trust, None, name=self._name)

    def stat(self) -> RemoteObject:
        """Say which upload is there, and whether it is for this device. Raises `StoreError`."""
        remote = self._store.stat()
        if remote.claims.sha256 and not _SHA256.fullmatch(remote.claims.sha256):
            raise StoreNeedsPerson(
                f"{self.url} has a sha256 in its metadata that is none", "write the 64 digits that sha256sum prints"
            )
        believed = self._believed(remote) if self._trust else remote
        return believed if self._device is None else self._offered(believed, self._device)

    def fetch(self, remote: RemoteObject, destination: Path, stop: threading.Event) -> None:
        """Download it, and compare its SHA-256 if the metadata say it. Raises `StoreError`."""
        sha256 = remote.claims.sha256
        if not sha256:
            self._store.fetch(remote, destination, stop)
            return
        self._content.fetch(self._store, remote, sha256, destination, stop, promised="its metadata")

    def _believed(self, remote: RemoteObject) -> RemoteObject:
        """Return what was signed of it. Raises `StoreError`."""
        claims = remote.claims
        if not claims.signature:
            raise Untrusted(
                f"{self.url} is not signed, and [model].keys is set",
                f"let [model].url name the {MANIFEST} of a release (edge-agent release publish), sign it"
                " (edge-agent release upload), or take the keys away",
            )
        if not (claims.sha256 and remote.version_given):
            raise StoreNeedsPerson(
                f"{self.url} is signed without version or sha256", "upload it again (edge-agent release upload)"
            )
        self._trust.check_model(self.url, remote.version, claims)
        if self._name and claims.name != self._name:
            raise StoreNeedsPerson(
                f"{self.url} is signed as a version of {claims.name!r}, and not of {self._name!r}",
                "upload it with that --name, or let [model].name be the one that was signed",
            )
        return replace(remote, sequence=self._trust.sequence(self.url, claims))

    def _offered(self, remote: RemoteObject, device: Device) -> RemoteObject:
        try:
            audience = parse_audience(remote.claims.rollout)
        except AudienceError as error:
            raise StoreNeedsPerson(f"{self.url} has a rollout in its metadata that is none", str(error)) from error
        why = why_not(audience, device, version=remote.version, sha256=remote.claims.sha256)
        if not why:
            return remote
        shadow = Shadow(remote, audience.shadow) if audience.shadow and not audience.halted else None
        return replace(remote, withheld=why, shadow=shadow)
