"""Looks at the board's sensors now and then, and says when somebody has to do something about it."""

import asyncio
import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec
import structlog

from edge_agent.device.changes import ChangeListener
from edge_agent.device.sensors import Readings, Sensors
from edge_agent.device.troubles import Troubles
from edge_agent.health import DeviceHealth

T = TypeVar("T")
LOOK_EVERY_S = 10.0
# Reading is a matter of milliseconds, unless a device or a disk that is dying keeps the kernel waiting.
PATIENCE_S = 5.0
SHARES_EVERY_S = 300.0
SILENT = "the sensors of this device do not answer; a device on PCIe or the disk may have failed: see dmesg"

log = structlog.get_logger()


class OnHealth(Protocol):
    """Takes what somebody should know: component, state, and a sentence."""

    def __call__(self, component: str, state: str, detail: str) -> None: ...


class DeviceMonitor:
    """Belongs to the event loop; reads `sensors` in a thread. `worker_pid` is the worker's process, or None."""

    def __init__(
        self,
        sensors: Sensors,
        *,
        on_health: OnHealth,
        worker_pid: Callable[[], int | None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sensors = sensors
        self._on_health = on_health
        self._worker_pid = worker_pid
        self._clock = clock
        self._troubles = Troubles(clock)
        self._waiting: asyncio.Future[Any] | None = None
        self._shares_due = clock()
        self._news = asyncio.Event()
        self._heard: Path | None = None  # the alarm that is listened to

    async def run(self) -> None:
        """Look until cancelled: every few seconds, and when the voltage changes, which it may do for a moment only."""
        with contextlib.ExitStack() as listening:
            while True:
                self._news.clear()
                await self.look()
                self._listen(listening)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_EVERY_S):
                        await self._news.wait()

    def _listen(self, listening: contextlib.ExitStack) -> None:
        alarm = self._sensors.voltage_alarm
        if alarm is None or alarm == self._heard:
            return
        self._heard = alarm
        try:
            listening.callback(ChangeListener.open(alarm, self._news.set).close)
        except OSError as error:
            log.info("the voltage is looked at now and then", interval=LOOK_EVERY_S, reason=error.strerror)

    async def look(self) -> None:
        """Read what may need somebody, and tell what has changed."""
        readings = await self._read(self._sensors.look)
        for change in self._troubles.take(readings or Readings()):
            tell = log.info if change.state == "ok" else log.warning
            tell(change.detail, component=change.component, state=change.state)
            self._on_health(change.component, change.state, change.detail)

    async def survey(self) -> DeviceHealth | None:
        """Read everything for an event; None when the sensors do not answer."""
        shares = self._clock() >= self._shares_due
        if shares:
            self._shares_due = self._clock() + SHARES_EVERY_S
        return await self._survey(shares=shares)

    async def show(self) -> DeviceHealth | None:
        """Read everything for a person who asks now."""
        return await self._survey(shares=True)

    async def _survey(self, *, shares: bool) -> DeviceHealth | None:
        processes = {"agent": os.getpid()}
        if (worker := self._worker_pid()) is not None:
            processes["worker"] = worker
        health = await self._read(lambda: self._sensors.survey(processes, shares=shares))
        if health is None or isinstance(health.undervoltage, msgspec.UnsetType):
            return health
        return msgspec.structs.replace(health, undervoltages=self._troubles.undervoltages)

    @property
    def problems(self) -> list[str]:
        """Return what is wrong with the board and what to do, most important first."""
        return [*([SILENT] if self._silent else []), *self._troubles.problems]

    @property
    def _silent(self) -> bool:
        return self._waiting is not None and not self._waiting.done()

    async def _read(self, read: Callable[[], T]) -> T | None:
        """Read in a thread, but do not wait for ever; a read that never ends is not joined by others."""
        if self._silent:
            return None
        reading = asyncio.ensure_future(asyncio.to_thread(read))
        done, _ = await asyncio.wait([reading], timeout=PATIENCE_S)
        if not done:
            self._waiting = reading
            log.warning(SILENT)
            return None
        return reading.result()
