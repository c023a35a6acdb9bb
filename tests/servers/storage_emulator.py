"""gcp-storage-emulator: a server of the storage API that others have written, in this process and in memory.

It has no preconditions, no older generations and no entity tags that change with the metadata; `tests.servers.gcs` has.
"""

from types import TracebackType
from typing import Any, Self

from gcp_storage_emulator.server import create_server


class StorageEmulator:
    """The emulator on a free port of 127.0.0.1; use it as a context manager. `bucket` is there from the beginning."""

    def __init__(self, bucket: str) -> None:
        self._server: Any = create_server("127.0.0.1", 0, in_memory=True, default_bucket=bucket)

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.stop()

    def wipe(self) -> None:
        """Forget all objects."""
        self._server.wipe(keep_buckets=True)

    @property
    def url(self) -> str:
        """What STORAGE_EMULATOR_HOST is set to."""
        return f"http://127.0.0.1:{self._server._api._httpd.server_address[1]}"
