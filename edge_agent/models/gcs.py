"""Models from Google Cloud Storage, and pictures to it: the only module that knows its client library.

The library is imported at the first call: it takes 0.3 s and 48 MiB, which nobody pays who uses a file. Its
own retries are off, since each would hide up to two minutes: the roll-out tries again, where it can be seen.
`STORAGE_EMULATOR_HOST` is honoured; otherwise Application Default Credentials are used.
"""

import base64
import functools
import mimetypes
import os
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

import google_crc32c

from edge_agent.device.skew import measure_skew
from edge_agent.models.releases import RemoteObject, describe
from edge_agent.models.stores import (
    PORTAL,
    FetchFailed,
    Missing,
    OnSkew,
    StoreError,
    StoreNeedsPerson,
    StoreUnavailable,
    too_long,
    write_all,
)

TIMEOUT = (10.0, 20.0)
"""Seconds to connect, and to wait for the next bytes."""
_PIECE = 1 << 20


class GcsStore:
    """The object `name` in `bucket`; `setting` is what named it."""

    def __init__(
        self,
        bucket: str,
        name: str,
        *,
        timeout: tuple[float, float] = TIMEOUT,
        setting: str = "[model].url",
        on_skew: OnSkew | None = None,
    ) -> None:
        self.url = f"gs://{bucket}/{name}"
        self._setting = setting
        self._bucket = bucket
        self._name = name
        self._timeout = timeout
        self._on_skew = on_skew
        self._client: Any = None
        self._read = (b"", "")

    def stat(self) -> RemoteObject:
        """Read the object's metadata."""
        try:
            blob = self._blob()
            blob.reload(timeout=self._timeout, retry=None)
            return self._described(blob)
        except Exception as error:
            raise self._failed(error) from error
        finally:
            self._hang_up()

    def fetch(self, remote: RemoteObject, destination: Path, stop: threading.Event) -> None:
        """Download just the generation of `remote`."""
        try:
            with destination.open("wb", buffering=0) as file:
                self._download(remote, _Sink(functools.partial(write_all, file), remote, stop))
        except Exception as error:
            raise self._failed(error, fetching=True) from error
        finally:
            self._hang_up()

    def read(self, limit: int) -> tuple[bytes, str]:
        """Return the object, of which no more than `limit` bytes are read, and its generation."""
        remote = self.stat()
        if remote.generation != self._read[1]:
            if remote.size > limit:
                raise too_long(self.url, remote.size, limit)
            data = bytearray()
            try:
                self._download(remote, _Sink(data.extend, remote, threading.Event()))
            except Exception as error:
                raise self._failed(error, fetching=True) from error
            finally:
                self._hang_up()
            self._read = bytes(data), remote.generation
        return self._read

    def _download(self, remote: RemoteObject, sink: "_Sink") -> None:
        blob = self._blob(generation=int(remote.generation))
        # Raw and without the library's checksum: it would compare with what this answer says of itself.
        blob.download_to_file(sink, raw_download=True, checksum=None, timeout=self._timeout, retry=None)
        sink.check()

    def _blob(self, generation: int | None = None) -> Any:
        if self._client is None:
            self._client = _connect()
            if self._on_skew is not None:
                # The library hands out no headers; its session, as any of `requests`, shows each answer to a hook.
                self._client._http.hooks["response"].append(functools.partial(_compare_clocks, self._on_skew))
        return self._client.bucket(self._bucket).blob(self._name, generation=generation)

    def _described(self, blob: Any) -> RemoteObject:
        if blob.generation is None or blob.size is None or not blob.crc32c:
            raise StoreUnavailable(f"{self.url}: the answer is not the metadata of an object")
        if blob.content_encoding:
            raise StoreNeedsPerson(
                f"{self.url} is stored with Content-Encoding {blob.content_encoding}",
                "upload it again without compression (gsutil cp without -z, -Z, -j and -J)",
            )
        return describe(
            self.url,
            blob.metadata or {},
            generation=str(blob.generation),
            size=blob.size,
            checksum=f"crc32c:{blob.crc32c}",
            uploaded=blob.time_created and blob.time_created.timestamp(),
        )

    def _failed(self, error: Exception, *, fetching: bool = False) -> Exception:
        if isinstance(error, StoreError):
            return error
        from edge_agent.models.gcs_errors import explain  # noqa: PLC0415  # heavy, and seldom needed

        explained = explain(error, self.url, fetching=fetching, setting=self._setting)
        if isinstance(explained, StoreNeedsPerson) and not isinstance(explained, Missing):
            self._client = None  # credentials are read anew once somebody has put them right
        return explained

    def _hang_up(self) -> None:
        """An idle connection would not live until the next poll anyway."""
        if self._client is not None:
            self._client.close()


class GcsFolder:
    """The objects below `prefix` in `bucket`; `setting` is what named it.

    The role Storage Object Creator is enough to `put`. `publishing` is whether a person does it, and no device.
    """

    def __init__(
        self,
        bucket: str,
        prefix: str,
        *,
        setting: str,
        timeout: tuple[float, float] = TIMEOUT,
        publishing: bool = False,
    ) -> None:
        self._publishing = publishing
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self._setting = setting
        self._timeout = timeout
        self._client: Any = None

    def put(self, name: str, data: "bytes | Path | Upload") -> None:
        """Store an object, or a file. Raises `StoreError`, but not if the name is there: it tells it from all others.

        Blocks until the bucket has it, or does not answer in time.
        """
        try:
            self._upload(name, data, replacing=0)
        except Exception as error:
            if not _is_there(error):
                raise self._failed(error) from error

    def replace(
        self, name: str, data: "bytes | Upload", *, replacing: int, metadata: dict[str, str] | None = None
    ) -> None:
        """Store an object in the place of the generation `replacing`; 0 is none. Raises `StoreError`.

        That is `StoreUnavailable` where another generation is there.
        """
        try:
            self._upload(name, data, replacing=replacing, metadata=metadata)
        except Exception as error:
            raise self._failed(error) from error

    def names(self, folder: str, most: int) -> list[str]:
        """Return the names of the first `most` objects in a folder below this one, in their order.

        Raises `StoreError`.
        """
        prefix = f"{self._prefix}{folder}/"
        try:
            found = self._connected().list_blobs(
                self._bucket, prefix=prefix, max_results=most, timeout=self._timeout, retry=None
            )
            return [blob.name.removeprefix(prefix) for blob in found]
        except Exception as error:
            raise self._failed(error) from error
        finally:
            self._hang_up()

    def _upload(
        self, name: str, data: "bytes | Path | Upload", *, replacing: int, metadata: dict[str, str] | None = None
    ) -> None:
        try:
            blob = self._connected().bucket(self._bucket).blob(self._prefix + name)
            if metadata is not None:
                blob.metadata = metadata
            if isinstance(data, Upload):
                # In pieces, as only these show how far it is; the library sends a file of up to 8 MiB as one.
                blob.chunk_size = _PIECE
                upload = blob.upload_from_file
            else:
                upload = blob.upload_from_filename if isinstance(data, Path) else blob.upload_from_string
            upload(
                data,
                content_type=mimetypes.guess_type(name)[0] or "application/octet-stream",
                if_generation_match=replacing,
                checksum="crc32c",
                timeout=self._timeout,
                retry=None,
            )
        finally:
            self._hang_up()

    def _connected(self) -> Any:
        if self._client is None:
            self._client = _connect()
        return self._client

    def _hang_up(self) -> None:
        """Uploads are rare: an idle connection would hardly live until the next one."""
        if self._client is not None:
            self._client.close()

    def _failed(self, error: Exception) -> StoreError:
        from edge_agent.models.gcs_errors import PUBLISH, WRITE, explain  # noqa: PLC0415  # heavy, and seldom needed

        access = PUBLISH if self._publishing else WRITE
        explained = explain(error, f"gs://{self._bucket}/{self._prefix}", setting=self._setting, access=access)
        if isinstance(explained, StoreNeedsPerson):
            self._client = None  # credentials are read anew once somebody has put them right
        return explained


class Upload:
    """A file that is open for reading; `watch` hears of each number of bytes that is taken from it to be sent."""

    def __init__(self, file: BinaryIO, watch: Callable[[int], None]) -> None:
        self._file = file
        self._watch = watch

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes."""
        data = self._file.read(size)
        self._watch(len(data))
        return data

    def tell(self) -> int:
        """Return the position."""
        return self._file.tell()


def _is_there(error: Exception) -> bool:
    """Whether an upload was refused because it had arrived before, with the answer lost.

    Who may create objects but not replace them is told that he may not delete the one that is there.
    """
    code = getattr(error, "code", None)
    return code == HTTPStatus.PRECONDITION_FAILED or (
        code == HTTPStatus.FORBIDDEN and "storage.objects.delete" in str(error)
    )


def _connect() -> Any:
    # Unasked, the client asks for the bucket itself in a thread of its own, for traces that nobody collects: a
    # request that the role Storage Object Viewer does not allow, and a thread at every new client.
    os.environ.setdefault("DISABLE_GCS_PYTHON_CLIENT_OTEL_BUCKET_METADATA", "true")
    from google.cloud.storage import Client  # noqa: PLC0415  # see the module's docstring

    emulator = os.environ.get("STORAGE_EMULATOR_HOST", "")
    if emulator and "://" not in emulator:  # as other Google clients want it; this one wants a scheme
        return Client(project=None, client_options={"api_endpoint": f"http://{emulator}"})
    return Client(project=None)


def _compare_clocks(on_skew: OnSkew, response: Any, **_: object) -> None:
    skew = measure_skew(response.headers, response.elapsed.total_seconds(), time.time())
    if skew is not None:
        on_skew(urlsplit(response.url).hostname or "", skew)


class _Sink:
    """Where a download goes; it keeps count and checksum of what it passes on to `take`."""

    def __init__(self, take: Callable[[bytes], None], remote: RemoteObject, stop: threading.Event) -> None:
        self._take = take
        self._remote = remote
        self._stop = stop
        self._checksum = google_crc32c.Checksum()
        self._written = 0
        self._start = b""

    def write(self, data: bytes) -> int:
        if self._stop.is_set():
            raise StoreUnavailable(f"{self._remote.url}: the download was stopped")
        self._start = self._start or data[:64]
        self._written += len(data)
        if self._written > self._remote.size:
            raise self._mismatch("more bytes than announced")
        self._checksum.update(data)
        self._take(data)
        return len(data)

    def check(self) -> None:
        if self._written != self._remote.size:
            raise self._mismatch(f"{self._written} bytes instead of {self._remote.size}")
        found = f"crc32c:{base64.b64encode(self._checksum.digest()).decode()}"
        if found != self._remote.checksum:
            raise self._mismatch(f"checksum {found} instead of {self._remote.checksum}")

    def _mismatch(self, what: str) -> StoreError:
        if self._start.lstrip()[:1] == b"<":
            return StoreUnavailable(f"{self._remote.url}: {PORTAL}")
        return FetchFailed(f"{self._remote.url}: the download came with {what}; it was thrown away")
