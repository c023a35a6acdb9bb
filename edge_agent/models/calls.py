"""Blocking calls in daemon threads that may be left behind.

A pool's threads are waited for when the process ends; a request that hangs would then hold the process up.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from edge_agent.models.releases import RemoteObject
from edge_agent.models.stores import Store, StoreUnavailable

T = TypeVar("T")
STAT_LIMIT = 60.0
"""Seconds; more than all timeouts of one request together."""
FETCH_LIMIT = 60.0
SLOWEST_DOWNLOAD = 2_000
"""Bytes per second. A download may take `FETCH_LIMIT` and its size at this rate."""


class Calls:
    """Runs one call at a time for an event loop, and leaves behind at most one that does not end."""

    def __init__(self) -> None:
        self._left_behind: threading.Thread | None = None

    async def stat(self, store: Store) -> RemoteObject:
        """Ask a store which upload is there now. Raises `StoreError`."""
        return await self.run(lambda _: store.stat(), limit=STAT_LIMIT)

    async def fetch(self, store: Store, remote: RemoteObject, path: Path) -> None:
        """Have a store write `remote` to `path`. Raises `StoreError`."""
        await self.fetch_file(lambda stop: store.fetch(remote, path, stop), remote.size)

    async def fetch_file(self, fetch: Callable[[threading.Event], None], size: int) -> None:
        """Fetch `size` bytes by `fetch`. Raises `StoreError`."""
        await self.run(fetch, limit=FETCH_LIMIT + size / SLOWEST_DOWNLOAD)

    async def run(self, call: Callable[[threading.Event], T], *, limit: float | None = None) -> T:
        """Return or raise what `call` does in its own thread.

        The event that `call` is given is set once nobody waits for it: this task was cancelled, or `limit` seconds
        are over, which raises `StoreUnavailable`. While a call that went over its limit has not ended, further
        calls with a limit raise it too.
        """
        if limit is not None and self._left_behind is not None and self._left_behind.is_alive():
            raise StoreUnavailable("an earlier request to the model store still hangs")
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        stop = threading.Event()
        thread = threading.Thread(target=_deliver, args=(call, stop, future), name="model-store", daemon=True)
        thread.start()
        try:
            await asyncio.wait({future}, timeout=limit)
            if future.done():
                return future.result()
        finally:
            stop.set()
            future.cancel()
        self._left_behind = thread
        raise StoreUnavailable(f"the model store did not finish within {limit:.0f} s")


def _deliver(call: Callable[[threading.Event], T], stop: threading.Event, future: "asyncio.Future[T]") -> None:
    try:
        result = call(stop)
    except Exception as error:  # noqa: BLE001  # it is raised again by whoever waits
        _settle(future, future.set_exception, error)
    else:
        _settle(future, future.set_result, result)


def _settle(future: "asyncio.Future[Any]", settle: Callable[[Any], None], outcome: object) -> None:
    def unless_left() -> None:
        if not future.done():
            settle(outcome)

    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to be told
        future.get_loop().call_soon_threadsafe(unless_left)
