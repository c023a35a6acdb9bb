"""Stop, reload and status, whoever asks: systemd, a signal, or somebody at the control socket.

It outlives what it is about. Before the settings are complete there is no agent yet, but the service runs, says what
it waits for, and takes up its work when a reload brings the rest.
"""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import structlog

from edge_agent.report import Reloaded, StatusReport
from edge_agent.service.control import ControlServer
from edge_agent.service.notify import ServiceManager

log = structlog.get_logger()


class Lifecycle:
    """Make it inside the event loop."""

    def __init__(self, control_socket: Path) -> None:
        self.service = ServiceManager()
        self.stopping = asyncio.Event()
        self._report: Callable[[], Awaitable[StatusReport]] | None = None
        self._at_work = asyncio.Event()
        self._reload = asyncio.Event()
        self._askers: list[asyncio.Future[Reloaded]] = []
        self._control = ControlServer(control_socket, {"status": self._status, "reload": self._ask_for_reload})

    def answer_status(self, report: Callable[[], Awaitable[StatusReport]]) -> None:
        """Let `report` answer `edge-agent status` from now on; who asked before the first report has waited for it."""
        self._report = report
        self._at_work.set()

    async def start(self) -> None:
        """Take over the signals, and open the control socket."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop_on_signal, number)
        loop.add_signal_handler(signal.SIGHUP, self._reload.set)
        await self._control.start()

    async def close(self) -> None:
        """Close the control socket; whoever waits for an answer gets none."""
        await self._control.close()
        for asker in self._askers:
            asker.cancel()

    def _stop_on_signal(self, number: signal.Signals) -> None:
        if self.stopping.is_set():
            # Asked twice: the person does not want to wait. What is queued is safe in the journal.
            os._exit(128 + number)
        log.info("stopping", signal=number.name)
        self.stopping.set()

    async def until_stopped(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work` until it ends, or until the program is told to stop, which cancels it."""
        async with asyncio.TaskGroup() as group:
            tasks: list[asyncio.Task[Any]] = [group.create_task(work), group.create_task(self.stopping.wait())]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                task.cancel()

    async def serve_reloads(self, reload: Callable[[], Awaitable[Reloaded]], status: Callable[[], str]) -> None:
        """Call `reload` at each request.

        Whoever asks during a reload gets the next one: the file may have changed since the first was read. `status`
        is the line for systemd afterwards.
        """
        while True:
            await self._reload.wait()
            self._reload.clear()
            askers, self._askers = self._askers, []
            self.service.reloading()
            try:
                reloaded = await reload()
            except asyncio.CancelledError:
                # Whatever is at work next answers them.
                self._askers[:0] = askers
                self._reload.set()
                raise
            self.service.ready(status())
            for asker in askers:
                if not asker.done():  # he may have gone away
                    asker.set_result(reloaded)

    async def _ask_for_reload(self) -> Reloaded:
        asker: asyncio.Future[Reloaded] = asyncio.get_running_loop().create_future()
        self._askers.append(asker)
        self._reload.set()
        return await asker

    async def _status(self) -> StatusReport:
        await self._at_work.wait()
        if self._report is None:
            raise RuntimeError("at work without a report")
        return await self._report()
