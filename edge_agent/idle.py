"""What the service does while its settings lack what no agent can do without: it waits, and says for what."""

import asyncio
from pathlib import Path

import structlog

from edge_agent import __version__
from edge_agent.configuration import Configuration, load_configuration
from edge_agent.lifecycle import Lifecycle
from edge_agent.report import Reloaded, StatusReport
from edge_agent.settings.faults import MISSING, Fault, NotSetUp, SettingsError

TICK = 5.0
# What no agent can do without: all else has a default, or is a matter of the source.
ESSENTIAL = ("[source].plugin", "[model].url", "[telemetry].sink")

log = structlog.get_logger()


class Idle:
    """The service without an agent. `lacking` says what is missing in the file."""

    def __init__(self, config_file: Path, lacking: NotSetUp, lifecycle: Lifecycle) -> None:
        self._config_file = config_file
        self._missing = lacking.missing
        self._lifecycle = lifecycle
        self._problem: str | None = None
        self._configuration: Configuration | None = None
        self._complete = asyncio.Event()

    async def run(self) -> Configuration | None:
        """Wait for a reload that completes the settings, and return them; None when told to stop before."""
        service = self._lifecycle.service
        self._lifecycle.answer_status(self._report)
        log.warning("waiting for settings", missing=", ".join(self._missing), file=str(self._config_file))
        service.ready(self._status_line())
        await self._lifecycle.until_stopped(self._wait())
        return self._configuration

    async def _wait(self) -> None:
        async with asyncio.TaskGroup() as group:
            reloads = group.create_task(self._lifecycle.serve_reloads(self._reload, self._status_line))
            alive = group.create_task(self._stay_alive())
            await self._complete.wait()
            reloads.cancel()
            alive.cancel()

    async def _stay_alive(self) -> None:
        service = self._lifecycle.service
        while True:
            service.status(self._status_line())
            service.watchdog()
            await asyncio.sleep(min(TICK, service.watchdog_interval or TICK))

    async def _reload(self) -> Reloaded:
        try:
            self._configuration = await load_configuration(self._config_file)
        except NotSetUp as lacking:
            self._missing, self._problem = lacking.missing, None
            log.warning("still waiting for settings", missing=", ".join(self._missing), file=str(self._config_file))
        except SettingsError as error:
            # What is missing is told anyway. A file that is no TOML does not tell what it lacks.
            self._missing = [fault.key for fault in error.faults if _is_waited_for(fault)]
            self._problem = str(next(fault for fault in error.faults if not _is_waited_for(fault)))
            for fault in error.faults:
                log.error(str(fault))
            return Reloaded([str(fault) for fault in error.faults], self._what_is_missing())
        else:
            self._complete.set()
            return Reloaded([], "settings complete, starting to work")
        return Reloaded([], self._what_is_missing())

    def _status_line(self) -> str:
        if self._configuration is not None:
            return "starting"
        line = self._what_is_missing()
        return f"settings refused: {self._problem}; {line}" if self._problem else line

    def _what_is_missing(self) -> str:
        if not self._missing:
            return f"not set up yet: {self._config_file} has mistakes"
        *others, last = self._missing
        missing = f"{', '.join(others)} and {last} are" if others else f"{last} is"
        return f"not set up yet: {missing} missing in {self._config_file}"

    async def _report(self) -> StatusReport:
        return StatusReport(
            state="idle",
            version=__version__,
            config=str(self._config_file),
            summary=self._status_line(),
            problems=self._problems(),
        )

    def _problems(self) -> list[str]:
        if self._configuration is not None:
            return []
        to_do = f"give {', '.join(self._missing)} in" if self._missing else "mend"
        advice = f"not set up yet: {to_do} {self._config_file}, then: systemctl reload edge-agent"
        return [f"settings refused: {self._problem}", advice] if self._problem else [advice]


def _is_waited_for(fault: Fault) -> bool:
    return fault.key in ESSENTIAL and fault.message.startswith(MISSING)
