"""Uploads the pictures that the worker has handed over, as long as it takes.

A picture leaves the device's folders only when its destination has it, or when too much waits; what is given up is
counted. While the destination cannot be reached the pictures wait on the disk, and it is tried ever more rarely.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence

import msgspec
import structlog

from edge_agent.models.stores.base import StoreError, StoreNeedsPerson, StoreUnavailable
from edge_agent.picture_names import object_name
from edge_agent.raw_data.destinations import Destination
from edge_agent.raw_data.spool import Damaged, Picture, Spool
from edge_agent.records import Result
from edge_agent.telemetry.sending.backoff import Backoff
from edge_agent.telemetry.sending.sinks import DaemonThread, SinkUnavailable

LOSS = "raw_data_dropped"
"""Cause of the losses: pictures whose events refer to them, and that will never be there."""
_RETRY_FIRST, _RETRY_CAP = 5.0, 300.0
_PERSON_FIRST, _PERSON_CAP = 60.0, 3600.0
_CLOSE_WITHIN = 0.05

log = structlog.get_logger()

CountLoss = Callable[[str, int, int, int], None]


class UploadsState(msgspec.Struct, frozen=True):
    """How uploading goes: counts since the start, and what is wrong, for a person."""

    uploaded: int = 0
    waiting: int = 0
    dropped: int = 0
    trouble: str = ""


class Uploads:
    """Takes pictures to one destination until cancelled. `count_loss` is that of the queue.

    `retry` and `ask` are the pauses after a failure, and after one that needs a person; `clock` is in seconds.
    """

    def __init__(
        self,
        count_loss: CountLoss,
        *,
        retry: Backoff | None = None,
        ask: Backoff | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.state = UploadsState()
        self._count_loss = count_loss
        self._retry = retry or Backoff(_RETRY_FIRST, _RETRY_CAP, jitter=0.5)
        self._ask = ask or Backoff(_PERSON_FIRST, _PERSON_CAP, jitter=0.2)
        self._clock = clock
        self._thread = DaemonThread("raw-data")
        self._news = asyncio.Event()
        self._spool: Spool | None = None
        self._destination: Destination | None = None
        self._cleaned: Spool | None = None
        self._retry_at = 0.0

    def use(self, spool: Spool, destination: Destination | None) -> None:
        """Take over settings; without a destination what waits is given up. What waits is tried at once."""
        self._spool, self._destination = spool, destination
        self._retry.reset()
        self._ask.reset()
        self._retry_at = 0.0
        self._news.set()

    def note(self, results: Sequence[Result]) -> None:
        """Look for pictures, if one of the results says that there is one."""
        if self._destination is not None and any(each.chosen is not None and each.chosen.url for each in results):
            self._news.set()

    async def run(self) -> None:
        """Upload whatever comes."""
        await self._begin()
        while True:
            await self._until_something_is_to_do()
            self._news.clear()
            spool, destination = self._spool, self._destination
            if spool is None:
                continue
            try:
                await self._round(spool, destination)
            except SinkUnavailable:  # `stop` was called
                return
            except StoreError as error:
                self._failed(error)
            except OSError as error:
                self._failed(StoreUnavailable(f"cannot read or write {error.filename}: {error.strerror}"))

    async def _begin(self) -> None:
        if self._spool is not None:
            with contextlib.suppress(OSError):  # it is in nobody's way
                await self._thread.run(self._spool.remove_unfinished)

    async def stop(self, deadline: float) -> None:
        """Bring to the disk within `deadline` seconds what has to wait for the next start."""
        if self._spool is not None and self._destination is not None:
            thread = DaemonThread("raw-data-stop")  # the other one may be busy with an upload
            with contextlib.suppress(TimeoutError, OSError):  # then it stays where the worker has put it
                async with asyncio.timeout(deadline):
                    self._drop(await thread.run(self._spool.settle), "no room for more")
            await thread.close(_CLOSE_WITHIN)
        await self._thread.close(_CLOSE_WITHIN)

    async def _until_something_is_to_do(self) -> None:
        pause = self._retry_at - self._clock() if self.state.trouble else None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await self._news.wait()

    async def _round(self, spool: Spool, destination: Destination | None) -> None:
        if self._cleaned is not spool:
            self._drop(await self._thread.run(spool.clean), "the settings name another place")
            self._cleaned = spool
        if destination is None:
            return
        failure: StoreError | None = None
        out_of_reach = self._clock() < self._retry_at
        if not out_of_reach:
            try:
                await self._upload_all(spool, destination)
            except StoreError as error:
                failure, out_of_reach = error, True
        if out_of_reach:
            self._drop(await self._thread.run(spool.settle), "too many wait")
        self._count_waiting(len(await self._thread.run(spool.pictures)))
        if failure is not None:
            raise failure

    async def _upload_all(self, spool: Spool, destination: Destination) -> None:
        while (picture := await self._thread.run(spool.oldest)) is not None and self._destination is destination:
            try:
                data = await self._thread.run(spool.read, picture)
            except Damaged as error:
                self._drop([picture], str(error))
            else:
                await self._thread.run(destination.put, object_name(picture.path.name), data)
                self._uploaded()
            await self._thread.run(spool.remove, picture)

    def _uploaded(self) -> None:
        if self.state.trouble:
            log.info("pictures are uploaded again")
        self._retry.reset()
        self._ask.reset()
        self._retry_at = 0.0
        self.state = msgspec.structs.replace(self.state, uploaded=self.state.uploaded + 1, trouble="")

    def _failed(self, error: StoreError) -> None:
        pause = self._ask if isinstance(error, StoreNeedsPerson) else self._retry
        self._retry_at = self._clock() + pause.next()
        if str(error) != self.state.trouble:
            log.warning("pictures cannot be uploaded and wait", reason=str(error))
        self.state = msgspec.structs.replace(self.state, trouble=str(error))

    def _drop(self, pictures: Sequence[Picture], reason: str) -> None:
        if not pictures:
            return
        times = [picture.written_ms for picture in pictures]
        self._count_loss(LOSS, len(pictures), min(times), max(times))
        log.warning("pictures were given up before they were uploaded", count=len(pictures), reason=reason)
        self.state = msgspec.structs.replace(self.state, dropped=self.state.dropped + len(pictures))

    def _count_waiting(self, waiting: int) -> None:
        trouble = self.state.trouble if waiting else ""
        self.state = msgspec.structs.replace(self.state, waiting=waiting, trouble=trouble)
