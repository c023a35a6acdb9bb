"""Returns to the Edge TPU once it can be had again: plugged in, free, permitted, or worth another try."""

import asyncio
import time
from collections.abc import Awaitable, Callable

import structlog

from edge_agent.inference.accelerators.recovery import Recovery
from edge_agent.inference.accelerators.uevents import Uevent, UeventListener, UeventsUnavailable

# What sysfs shows is looked at this often while the Edge TPU is wanted: a lifted permission makes no event.
CHECK_INTERVAL = 30.0
# A try holds up the worker for as long as opening the device takes, so they get ever rarer.
FIRST_PAUSE, LAST_PAUSE = 30.0, 600.0

log = structlog.get_logger()


class DeviceWatch:
    """`wanted` is `[inference].device` while the Edge TPU is wanted and not in use, else None; `again` tries it."""

    def __init__(
        self,
        recovery: Recovery,
        *,
        wanted: Callable[[], str | None],
        again: Callable[[], Awaitable[None]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._recovery = recovery
        self._wanted = wanted
        self._again = again
        self._clock = clock
        self._news = asyncio.Event()
        self._was_usable = False
        self._pause = FIRST_PAUSE
        self._try_again_at = 0.0

    async def run(self) -> None:
        """Watch until cancelled."""
        listener = UeventListener(self.heard)
        try:
            listener.start()
        except UeventsUnavailable as error:
            log.info("devices are looked for now and then", interval=CHECK_INTERVAL, reason=str(error))
        try:
            while True:
                await self._wait(CHECK_INTERVAL)
                await self.look()
        finally:
            listener.stop()

    def heard(self, event: Uevent) -> None:
        """Take an event of the kernel's."""
        if event.action == "add":
            self._recovery.appeared()
        self._news.set()

    async def look(self) -> None:
        """Try the Edge TPU again if it is wanted, looks well, and it is time."""
        wanted = self._wanted()
        if wanted is None:
            self._pause, self._try_again_at, self._was_usable = FIRST_PAUSE, 0.0, False
            return
        usable = bool(await asyncio.to_thread(self._recovery.usable, wanted))
        if usable and not self._was_usable:
            self._pause, self._try_again_at = FIRST_PAUSE, 0.0
        self._was_usable = usable
        if usable and not self._recovery.avoid() and self._clock() >= self._try_again_at:
            self._try_again_at = self._clock() + self._pause
            self._pause = min(self._pause * 2, LAST_PAUSE)
            await self._again()

    async def _wait(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._news.wait()
        except TimeoutError:
            return
        self._news.clear()
