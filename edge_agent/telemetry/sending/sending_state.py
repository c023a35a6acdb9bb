"""How sending goes: kept for the status, and told to the log without filling it."""

import math
from collections.abc import Callable
from typing import Literal

import msgspec
import structlog
from msgspec.structs import replace

from edge_agent.telemetry.sending.sinks import SinkError, SinkNeedsPerson

_QUIET = 60.0
"""Seconds between two log lines about a sink that comes and goes."""

log = structlog.get_logger()

Status = Literal["idle", "sending", "over_budget", "offline", "needs_person"]


class SenderState(msgspec.Struct, frozen=True):
    """How sending goes.

    `since` is when `status` changed last, by the sender's (monotonic) clock in seconds. `failures` counts requests
    that failed since the last one that did not. With "over_budget" alarms and notices are sent all the same.
    """

    status: Status
    reason: str
    since: float
    sent_events: int
    sent_requests: int
    failures: int


class SendingRecord:
    """Keeps the state. `clock` is in seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.state = SenderState("idle", "", clock(), 0, 0, 0)
        self._clock = clock
        self._told = ""
        self._told_at = -math.inf

    def idle(self) -> None:
        """Nothing is left to send."""
        if self.state.status == "sending":
            self._change("idle")

    def sending(self) -> None:
        """A request begins."""
        if self.state.status == "idle":
            self._change("sending")

    def sent(self, events: int) -> None:
        """So many events have arrived."""
        state = self.state
        if state.failures:
            self._change("sending")
            self._tell_recovery(self._clock() - state.since)
        self.state = replace(
            self.state,
            sent_events=state.sent_events + events,
            sent_requests=state.sent_requests + 1,
            failures=0,
        )

    def failed(self, error: SinkError) -> None:
        """A request has failed."""
        status: Status = "needs_person" if isinstance(error, SinkNeedsPerson) else "offline"
        self._change(status, str(error))
        self.state = replace(self.state, failures=self.state.failures + 1)
        if isinstance(error, SinkNeedsPerson):
            self._tell_person(error)
        elif not self._told and self._clock() - self._told_at >= _QUIET:
            self._tell("offline")
            log.warning("events cannot be sent for now and are kept", reason=error.reason)

    def over_budget(self, reason: str) -> None:
        """The day's budget is used up. A sink that cannot be reached is the greater trouble."""
        if self.state.status in {"idle", "sending"}:
            log.warning("results and health events wait for the next day's budget", reason=reason)
        if not self.state.failures:
            self._change("over_budget", reason)

    def within_budget(self) -> None:
        """There is something left of the day's budget."""
        if self.state.status == "over_budget":
            self._change("idle")
            log.info("within the daily budget again: all events are sent")

    def _change(self, status: Status, reason: str = "") -> None:
        since = self.state.since if status == self.state.status else self._clock()
        self.state = replace(self.state, status=status, reason=reason, since=since)

    def _tell_person(self, error: SinkNeedsPerson) -> None:
        if self._told != str(error):
            self._tell(str(error))
            log.error("events cannot be sent until somebody acts", reason=error.reason, what_to_do=error.what_to_do)

    def _tell_recovery(self, seconds: float) -> None:
        if self._told:
            self._told = ""
            log.info("events are sent again", after_seconds=round(seconds))

    def _tell(self, what: str) -> None:
        self._told = what
        self._told_at = self._clock()
