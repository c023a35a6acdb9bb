"""Deaths of workers: told to who should know, counted, and put down to the samples they happened over."""

import time
from collections import deque

import structlog

from edge_agent.inference.supervision.deaths import MAX_SAMPLE_DEATHS, Death, Suspects
from edge_agent.inference.supervision.guard import Guard, OnHealth
from edge_agent.inference.supervision.status import WorkerStatus
from edge_agent.records import LoadReport

log = structlog.get_logger()

# More deaths than this within an hour are reported as a state of their own; the worker is still started again.
DEATHS_PER_HOUR = 20
_HOUR = 3600.0


class DeathLog:
    """Takes each death. `suspects` are the samples that may be to blame."""

    def __init__(self, status: WorkerStatus, guard: Guard, on_health: OnHealth) -> None:
        self.suspects = Suspects()
        self._status = status
        self._guard = guard
        self._on_health = on_health
        self._on_probation = False
        self._deaths: deque[float] = deque(maxlen=DEATHS_PER_HOUR)

    def add(self, death: Death) -> None:
        """Report a death."""
        now = time.monotonic()
        self._deaths.append(now)
        self._status.deaths += 1
        self._status.last_death = death.cause
        self._status.state = "restarting"
        often = len(self._deaths) == DEATHS_PER_HOUR and now - self._deaths[0] < _HOUR
        log.error("worker died, starting it again", cause=death.cause, deaths=self._status.deaths)
        state = "failing" if often else "died"
        self._on_health("worker", state, death.cause, exit_status=death.exit_status, stage=death.last.doing)
        self._on_probation = False
        if not death.of_trial and (what := self.suspects.blame(death.last)):
            self._on_probation = death.last.on_sample
            log.error("a sample has ended the worker twice and is left out", sample=what)
            self._on_health("source", "sample_set_aside", f"{what} has ended the worker twice: {death.cause}")

    def works(self, report: LoadReport) -> None:
        """The model, loaded like this, has a result. After a sample was left out, that acquits the device."""
        if self._on_probation:
            self._on_probation = False
            if report.accelerator == "edgetpu":
                self._guard.acquit(MAX_SAMPLE_DEATHS)
