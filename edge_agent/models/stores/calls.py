"""Blocking calls in daemon threads that may be left behind.

A pool's threads are waited for when the process ends; a request that hangs would then hold the process up.
"""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from edge_agent.models.release.releases import RemoteObject
from edge_agent.models.stores.base import FetchFailed, Store, StoreUnavailable
from edge_agent.models.stores.download import throw_away
from edge_agent.models.stores.limits import DownloadLimits

T = TypeVar("T")
STAT_LIMIT = 60.0
"""Seconds; more than all timeouts of one request together."""
STALL_LIMIT = 180.0
"""Seconds in which a download must gain a byte on disk; otherwise it may take as long as it likes. They are more than
the timeouts and pauses of a store that goes on by itself, and than a piece takes at the lowest bandwidth."""


class Calls:
    """Runs one call at a time for an event loop, and leaves behind at most one that does not end.

    `limits` say which downloads may begin. A store that has asked to be left alone is left alone: until then its error
    is raised again. `clock` is in seconds.
    """

    def __init__(
        self,
        limits: DownloadLimits | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        stall_limit: float = STALL_LIMIT,
    ) -> None:
        self.limits = limits or DownloadLimits()
        self._clock = clock
        self._stall_limit = stall_limit
        self._left_behind: threading.Thread | None = None
        self._refusal = ""
        self._rests_until = 0.0

    async def stat(self, store: Store) -> RemoteObject:
        """Ask a store which upload is there now. Raises `StoreError`."""
        return await self._ask(lambda _: store.stat(), limit=STAT_LIMIT)

    async def fetch(self, store: Store, remote: RemoteObject, path: Path) -> None:
        """Have a store write `remote` to `path`. Raises `StoreError`."""
        await self.fetch_file(lambda stop: store.fetch(remote, path, stop), path)

    async def fetch_file(self, fetch: Callable[[threading.Event], None], path: Path) -> None:
        """Have `fetch` write to `path`. Raises `StoreError`; `FetchFailed` once what came was thrown away."""

        def fetched(stop: threading.Event) -> None:
            try:
                fetch(stop)
            except FetchFailed:
                throw_away(path)
                raise

        await self._ask(fetched, limit=self._stall_limit, growing=path)

    async def run(
        self, call: Callable[[threading.Event], T], *, limit: float | None = None, growing: Path | None = None
    ) -> T:
        """Return or raise what `call` does in its own thread.

        The event that `call` is given is set once nobody waits for it: this task was cancelled, or `limit` seconds
        are over without a change of the size of `growing`, which raises `StoreUnavailable`. While a call that went over
        its limit has not ended, further calls with a limit raise it too.
        """
        if limit is not None and self._left_behind is not None and self._left_behind.is_alive():
            raise StoreUnavailable("an earlier request to the model store still hangs")
        future, stop, thread = _begin(call)
        before, size = -1, 0
        try:
            while before != size:
                await asyncio.wait({future}, timeout=limit)
                if future.done():
                    return future.result()
                before, size = size, await _begin(lambda _: _size(growing))[0]
        finally:
            stop.set()
            future.cancel()
        self._left_behind = thread
        what = "did not finish" if growing is None else "sent nothing more"
        raise StoreUnavailable(f"the model store {what} within {limit:.0f} s")

    async def _ask(self, call: Callable[[threading.Event], T], *, limit: float, growing: Path | None = None) -> T:
        if self._refusal and self._clock() < self._rests_until:
            raise StoreUnavailable(self._refusal)
        try:
            return await self.run(call, limit=limit, growing=growing)
        except StoreUnavailable as refusal:
            if refusal.rest:
                self._refusal, self._rests_until = refusal.reason, self._clock() + refusal.rest
            raise


def _begin(
    call: Callable[[threading.Event], T],
) -> "tuple[asyncio.Future[T], threading.Event, threading.Thread]":
    future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
    stop = threading.Event()
    thread = threading.Thread(target=_deliver, args=(call, stop, future), name="model-store", daemon=True)
    thread.start()
    return future, stop, thread


def _size(path: Path | None) -> int:
    try:
        return path.stat().st_size if path is not None else 0
    except FileNotFoundError:
        return 0


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
