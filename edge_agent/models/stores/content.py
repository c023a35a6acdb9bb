"""Fetches objects whose SHA-256 was promised."""

import threading
from pathlib import Path

from edge_agent.models.release.releases import RemoteObject
from edge_agent.models.stores.base import FetchFailed, Store, file_sha256

_REMEMBERED = 16


class PromisedContent:
    """Compares what was fetched with what was promised.

    An upload that was found to be something else is not fetched again: a hundred megabytes at each of a thousand
    devices, once an hour, would be somebody's bill.
    """

    def __init__(self) -> None:
        self._wrong: list[tuple[str, ...]] = []

    def fetch(
        self, store: Store, found: RemoteObject, sha256: str, destination: Path, stop: threading.Event, *, promised: str
    ) -> None:
        """Fetch `found`, for which `promised` has given the SHA-256. Raises `StoreError`."""
        upload = (found.url, found.generation, found.checksum, sha256)
        if upload not in self._wrong:
            store.fetch(found, destination, stop)
            if file_sha256(destination) == sha256:
                return
            self._wrong = [*self._wrong, upload][-_REMEMBERED:]
        raise FetchFailed(f"{found.url} is not what {promised} says: its SHA-256 is another; it was thrown away")
