"""Models from Google Cloud Storage, and pictures to it: the only module that knows its client library.

The library is imported at the first call: it takes 0.3 s and 48 MiB, which nobody pays who uses a file. Its
own retries are off, since each would hide up to two minutes: the roll-out tries again, where it can be seen.
`STORAGE_EMULATOR_HOST` is honoured; otherwise Application Default Credentials are used.
"""

import mimetypes
import os
import threading
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any, BinaryIO

import structlog

from edge_agent.models.release.releases import RemoteObject, as_facts, describe
from edge_agent.models.stores.base import (
    LineBroken,
    Missing,
    OnSkew,
    StoreError,
    StoreNeedsPerson,
    StoreUnavailable,
    too_long,
)
from edge_agent.models.stores.download import InMemory, Part, Received
from edge_agent.models.stores.gcs_answers import Answers
from edge_agent.models.stores.limits import DownloadLimits

TIMEOUT = (10.0, 20.0)
"""Seconds to connect, and to wait for the next bytes."""
TRIES = 4
"""How often a download goes on without a gain before it is left to the next poll."""
LEAST_GAIN = 4096
"""Bytes; fewer than a new connection costs are no gain."""
FIRST_PAUSE = 1.0
"""Seconds after a connection has broken; twice as many after each one that brought nothing."""
_PIECE = 1 << 20

_log = structlog.get_logger()


class GcsStore:
    """The object `name` in `bucket`; `setting` is what named it.

    `limits` say how fast it may be fetched. `publishing` is whether a person reads it, and no device. `pause` waits for
    so many seconds, or for an event.
    """

    def __init__(
        self,
        bucket: str,
        name: str,
        *,
        timeout: tuple[float, float] = TIMEOUT,
        setting: str = "[model].url",
        on_skew: OnSkew | None = None,
        limits: DownloadLimits | None = None,
        publishing: bool = False,
        pause: Callable[[threading.Event, float], object] = threading.Event.wait,
    ) -> None:
        self.url = f"gs://{bucket}/{name}"
        self._setting = setting
        self._bucket = bucket
        self._name = name
        self._timeout = timeout
        self._limits = limits or DownloadLimits()
        self._publishing = publishing
        self._pause = pause
        self._answers = Answers(self.url, on_skew)
        self._client: Any = None
        self._known: tuple[str, RemoteObject] | None = None
        self._read = (b"", "")

    def stat(self) -> RemoteObject:
        """Read the object's metadata, unless they are as they were: then the server only says that."""
        try:
            return self._look()
        except Exception as error:
            if self._known is not None and getattr(error, "code", None) == HTTPStatus.NOT_MODIFIED:
                return self._known[1]
            raise self._failed(error) from error
        finally:
            self._hang_up()

    def fetch(self, remote: RemoteObject, destination: Path, stop: threading.Event) -> None:
        """Download just the generation of `remote`, and go on with what is there of it."""
        try:
            with Part(destination, remote) as part:
                self._go_on(remote, part, stop)
                part.check()
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
            whole = InMemory(remote)
            try:
                self._download(remote, whole, whole.write)
                whole.check()
            except Exception as error:
                raise self._failed(error, fetching=True) from error
            finally:
                self._hang_up()
            self._read = bytes(whole.data), remote.generation
        return self._read

    def _look(self) -> RemoteObject:
        blob = self._blob()
        # Not the generation: other metadata of the same generation, as `gsutil setmeta` makes them, must be seen too.
        known = self._known[0] if self._known is not None else None
        blob.reload(timeout=self._timeout, retry=None, if_etag_not_match=known)
        remote = self._described(blob)
        self._known = (blob.etag, remote) if blob.etag else None
        return remote

    def _go_on(self, remote: RemoteObject, part: Part, stop: threading.Event) -> None:
        """Ask for what is missing until nothing is. A gain makes up for all tries before it."""

        def take(data: bytes) -> None:
            if stop.is_set():
                raise StoreUnavailable(f"{self.url}: the download was stopped")
            part.write(data)
            self._limits.pace(len(data), stop)

        fruitless = 0
        while part.size < remote.size and fruitless < TRIES:
            before = part.size
            try:
                self._download(remote, part, take)
            except Exception as error:
                broken = self._failed(error, fetching=True)
                fruitless = 0 if part.size >= before + LEAST_GAIN else fruitless + 1
                if not isinstance(broken, LineBroken) or fruitless == TRIES:
                    raise broken from error
                _log.debug("going on with a download", reason=broken.reason, bytes=part.size, of=remote.size)
                self._pause(stop, FIRST_PAUSE * 2**fruitless)
            else:
                fruitless = 0 if part.size > before else TRIES
            if stop.is_set():
                raise StoreUnavailable(f"{self.url}: the download was stopped")

    def _download(self, remote: RemoteObject, receiver: Received, take: Callable[[bytes], None]) -> None:
        blob = self._blob(generation=int(remote.generation))
        self._answers.receiver, self._answers.size = receiver, remote.size
        try:
            # Raw and without the library's checksum: it would compare with what this answer says of itself.
            blob.download_to_file(
                _Sink(take),
                start=receiver.size or None,
                raw_download=True,
                checksum=None,
                timeout=self._timeout,
                retry=None,
            )
        finally:
            self._answers.receiver = None

    def _blob(self, generation: int | None = None) -> Any:
        if self._client is None:
            self._client = _connect()
            # The library shows nobody its answers; its session, as any of `requests`, shows each to a hook.
            self._answers.watch(self._client._http)
        return self._client.bucket(self._bucket).blob(self._name, generation=generation)

    def _described(self, blob: Any) -> RemoteObject:
        try:
            facts = as_facts(blob.metadata or {})
            generation, size, checksum, uploaded = blob.generation, blob.size, blob.crc32c, blob.time_created
            packed = blob.content_encoding
        except (AttributeError, TypeError, ValueError) as error:  # JSON, but of another kind
            raise self._no_metadata() from error
        if generation is None or size is None or size < 0 or not isinstance(checksum, str) or not checksum:
            raise self._no_metadata()
        if packed:
            raise StoreNeedsPerson(
                f"{self.url} is stored with Content-Encoding {packed}",
                "upload it again without compression (gsutil cp without -z, -Z, -j and -J)",
            )
        return describe(
            self.url,
            facts,
            generation=str(generation),
            size=size,
            checksum=f"crc32c:{checksum}",
            uploaded=uploaded and uploaded.timestamp(),
        )

    def _no_metadata(self) -> StoreUnavailable:
        return StoreUnavailable(f"{self.url}: the answer is not the metadata of an object")

    def _failed(self, error: Exception, *, fetching: bool = False) -> Exception:
        if isinstance(error, StoreError):
            return error
        from edge_agent.models.stores.gcs_errors import PUBLISH, READ, explain  # noqa: PLC0415  # heavy, and seldom needed

        access = PUBLISH if self._publishing else READ
        explained = explain(error, self.url, fetching=fetching, setting=self._setting, access=access)
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
        from edge_agent.models.stores.gcs_errors import PUBLISH, WRITE, explain  # noqa: PLC0415  # heavy, and seldom needed

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


class _Sink:
    """The file that the client library thinks it writes to."""

    def __init__(self, take: Callable[[bytes], None]) -> None:
        self._take = take

    def write(self, data: bytes) -> int:
        self._take(data)
        return len(data)
