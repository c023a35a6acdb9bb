"""What becomes of events: each step counts in memory and in the journal, so that a kill does not undo it."""

import asyncio
from collections.abc import Sequence

from edge_agent.telemetry.queue import journal
from edge_agent.telemetry.queue.backlog import Run
from edge_agent.telemetry.queue.intervals import Span
from edge_agent.telemetry.queue.journal import Done, Journal
from edge_agent.telemetry.queue.losses import Loss
from edge_agent.telemetry.queue.state import State


class Accounts:
    """`unsaved` is set while there is something for a tick to do."""

    def __init__(self, state: State, journal: Journal) -> None:
        self.unsaved = asyncio.Event()
        self._state = state
        self._journal = journal

    def record(self, frame: bytes) -> None:
        self._journal.append(frame)
        self.unsaved.set()

    def finish(self, spans: list[Span]) -> None:
        """Note that these events have arrived."""
        self.record(journal.frame(Done(spans)))
        self._state.books.finish(spans)

    def lose(self, loss: Loss, spans: list[Span]) -> None:
        """Count events of the queue that are given up; `spans` as far as it is known which."""
        self._state.dropped[loss.cause] += loss.count
        self.note_loss(loss, spans)

    def lose_runs(self, cause: str, runs: Sequence[Run]) -> None:
        """Count events that were in memory."""
        if runs:
            first_ms, last_ms = min(run.first_ms for run in runs), max(run.last_ms for run in runs)
            loss = Loss(cause, sum(len(run.events) for run in runs), first_ms, last_ms)
            self.lose(loss, [(run.seq, run.end) for run in runs])

    def note_loss(self, loss: Loss, spans: list[Span]) -> None:
        """Count something that need not have been in the queue."""
        self.record(journal.frame(Done(spans, loss)))
        self._state.books.finish(spans, loss)
