"""What the worker says of its source: into the status, the log, and, when somebody should know, an event."""

import time
from collections.abc import Callable

import structlog

from edge_agent.inference.protocol import SourceState
from edge_agent.inference.supervision.guard import OnHealth
from edge_agent.inference.supervision.status import WorkerStatus

# A source that comes and goes with the same trouble is told of this often, in seconds.
SAME_TROUBLE = 300.0

log = structlog.get_logger()


class SourceNews:
    """Takes `SourceState`s. `on_end` is called when a recorded source has come to its end."""

    def __init__(
        self,
        status: WorkerStatus,
        *,
        on_health: OnHealth,
        on_end: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._status = status
        self._on_health = on_health
        self._on_end = on_end
        self._clock = clock
        self._trouble = ""
        self._told = ""
        self._told_at = 0.0

    def well(self) -> None:
        """A sample has come."""
        self._trouble = ""

    def take(self, message: SourceState) -> None:
        """Take what the worker says."""
        match message.state:
            case "skipped":
                self._status.skipped += message.count
                log.warning("source skipped samples it could not use", count=message.count, newest=message.detail)
                return
            case "set_aside":
                self._status.set_aside += message.count
                log.warning(
                    "samples left out, as they have ended the worker before", count=message.count, newest=message.detail
                )
                return
            case "trouble":
                log.warning("source has trouble, will be opened again", reason=message.detail)
                self._take_trouble(message.detail)
            case "ended":
                log.info("source has ended", reason=message.detail)
                self._on_end()
        self._status.source = f"{message.state}: {message.detail}" if message.detail else message.state

    def _take_trouble(self, trouble: str) -> None:
        # One event for a trouble, not one for each of the tries to open the source again.
        lasts, self._trouble = trouble == self._trouble, trouble
        if lasts or (trouble == self._told and self._clock() - self._told_at < SAME_TROUBLE):
            return
        self._told, self._told_at = trouble, self._clock()
        self._on_health("source", "trouble", trouble)
