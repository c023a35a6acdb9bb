"""A model that cannot run now, for want of a device most likely: told once, and tried again ever more rarely."""

import asyncio

import structlog

from edge_agent.inference.supervision.guard import OnHealth
from edge_agent.inference.supervision.status import WorkerStatus
from edge_agent.records import ModelFile

# While the model in use cannot run, a fresh worker tries it this often, in seconds.
FIRST_WAIT, LAST_WAIT = 2.0, 300.0

log = structlog.get_logger()


class Waiting:
    """Keeps `status.waiting`. `retry` is set when a fresh worker is to try the model in use."""

    def __init__(self, status: WorkerStatus, on_health: OnHealth) -> None:
        self.retry = asyncio.Event()
        self._status = status
        self._on_health = on_health
        self._wait = FIRST_WAIT
        self._first = ""

    def tell_of_first(self, reason: str) -> None:
        """The first model of all cannot run; whoever wants it asks again."""
        if reason != self._first:
            self._first = reason
            self._on_health("worker", "waiting", reason)

    def begin(self, model: ModelFile, reason: str) -> None:
        """The model in use cannot run."""
        if reason != self._status.waiting:
            log.warning("the model cannot run now", version=model.version, reason=reason)
            self._on_health("worker", "waiting", reason)
        self._status.state, self._status.waiting = "waiting", reason

    async def pause(self) -> None:
        """Let the time pass until the next try."""
        await asyncio.sleep(self._wait)
        self._wait = min(self._wait * 2, LAST_WAIT)

    def try_now(self) -> None:
        """Wait no longer: somebody may have mended it."""
        self._wait = FIRST_WAIT
        self.retry.set()

    def over(self) -> None:
        """The model in use runs."""
        self._wait = FIRST_WAIT
        self._status.waiting = ""
