"""Where models come from: two blocking calls, and three ways in which they fail.

Both calls may take as long as a bad network makes them, so they run in a thread that nobody has to wait for.
"""

import hashlib
import threading
from collections.abc import Callable
from io import FileIO
from pathlib import Path
from typing import Protocol

from edge_agent.models.release.releases import RemoteObject

PORTAL = "a web page came instead of the object: a captive portal or proxy is between this device and Google"

OnSkew = Callable[[str, float], None]
"""Gets the name of a server that has answered, and by how many seconds this clock is behind its clock, or ahead if
negative. Called in the thread that asked."""


class StoreError(Exception):
    """The store gave no model. `reason` says what happened and where, in the same words at every try."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class StoreUnavailable(StoreError):  # states of the store rather than mistakes
    """No answer now; a later try may well succeed. `rest` is for how many seconds the server asks to be left alone."""

    def __init__(self, reason: str, *, rest: float = 0.0) -> None:
        super().__init__(reason)
        self.rest = rest


class LineBroken(StoreUnavailable):
    """The connection broke, or nothing came any more. What has come until then is good."""


class Postponed(StoreUnavailable):
    """It may be fetched in `seconds`, and not before."""

    def __init__(self, reason: str, seconds: float) -> None:
        super().__init__(reason)
        self.seconds = seconds


class FetchFailed(StoreError):
    """Bytes came, but not those that were announced."""


class StoreNeedsPerson(StoreError):
    """It stays like this until somebody does `what_to_do`."""

    def __init__(self, reason: str, what_to_do: str) -> None:
        super().__init__(reason)
        self.what_to_do = what_to_do

    def __str__(self) -> str:
        return f"{self.reason}; {self.what_to_do}"


class Untrusted(StoreNeedsPerson):
    """None of those who are trusted has signed it."""


class Missing(StoreNeedsPerson):
    """The store says that there is no such object."""


class Forbidden(StoreNeedsPerson):
    """The object may not be read, or must not even be known to be missing."""


class Store(Protocol):
    """One object at one URL."""

    url: str

    def stat(self) -> RemoteObject:
        """Say which upload is there now. Raises `StoreError`."""

    def fetch(self, remote: RemoteObject, destination: Path, stop: threading.Event) -> None:
        """Write the bytes of `remote` to `destination`, checked against its size and checksum.

        Raises `StoreError`; `destination` then holds anything. A store that can go on with it later notes beside it
        what has come; after `FetchFailed` whoever called throws both away. Ends early, with `StoreUnavailable`, soon
        after `stop` was set.
        """


class Readable(Store, Protocol):
    """A store whose object can be read whole, where that is small."""

    def read(self, limit: int) -> tuple[bytes, str]:
        """Return the object, checked as by `fetch`, and its generation.

        Raises `StoreError`, also where it has more than `limit` bytes.
        """


def too_long(url: str, size: int, limit: int) -> StoreNeedsPerson:
    """The error of `read`."""
    return StoreNeedsPerson(f"{url} has {size} bytes, and at most {limit} are read", "see that it is the right object")


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal digits. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_all(file: FileIO, data: bytes) -> None:
    """Write to an unbuffered file, so that a full disk shows here and not when the file is closed."""
    rest = memoryview(data)
    try:
        while rest:
            rest = rest[file.write(rest) :]
    except OSError as error:
        raise FetchFailed(f"cannot write {file.name}: {error.strerror}") from error
