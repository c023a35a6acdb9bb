"""The ledger of what was given up: cause, count and time range, until a loss event has reported it."""

from collections.abc import Iterable, Sequence

import msgspec

from edge_agent.telemetry.queue.intervals import Span

# Why the queue gives events up; docs/events.md explains each.
QUEUE_FULL = "queue_full"
DISK_RESERVE = "disk_reserve"
EXPIRED = "expired"
DAMAGED = "damaged"
REJECTED = "rejected"
"""Cause of a loss that the sink has refused. A report that is refused is not repeated: so would be the next one."""


class Loss(msgspec.Struct, frozen=True):
    """Events (or samples) that are gone. The times are those of the oldest and newest one, ms since the epoch."""

    cause: str
    count: int
    first_ms: int
    last_ms: int


Report = tuple[int, Loss]
"""Seq of an event that tells of a loss, and the loss: while it is unsent, the event itself may be lost."""


class Ledger:
    """Losses by cause that nobody has been told of yet."""

    def __init__(self, losses: Iterable[Loss] = ()) -> None:
        self._by_cause: dict[str, Loss] = {}
        self.add_all(losses)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ledger) and self._by_cause == other._by_cause

    __hash__ = None  # type: ignore[assignment]  # mutable

    def entries(self) -> list[Loss]:
        return list(self._by_cause.values())

    def add(self, loss: Loss) -> None:
        known = self._by_cause.get(loss.cause)
        if known is not None:
            loss = Loss(
                loss.cause,
                known.count + loss.count,
                min(known.first_ms, loss.first_ms),
                max(known.last_ms, loss.last_ms),
            )
        self._by_cause[loss.cause] = loss

    def add_all(self, losses: Iterable[Loss]) -> None:
        for loss in losses:
            self.add(loss)

    def subtract(self, losses: Iterable[Loss]) -> None:
        """Take off what was reported. What was counted for the same cause since then stays."""
        for loss in losses:
            known = self._by_cause.pop(loss.cause, None)
            if known is not None and known.count > loss.count:
                left = known.count - loss.count
                self._by_cause[loss.cause] = Loss(loss.cause, left, known.first_ms, known.last_ms)


class Books:
    """What was lost and nobody has been told of (`ledger`), and the reports that are still unsent.

    A report is an event of the queue, so it may be lost itself: then its loss goes back to the ledger.
    """

    def __init__(self, losses: Iterable[Loss] = (), reports: Iterable[Report] = ()) -> None:
        self.ledger = Ledger(losses)
        self._reports = dict(reports)

    @property
    def reports(self) -> list[Report]:
        return sorted(self._reports.items())

    def report(self, seq: int, losses: Sequence[Loss]) -> None:
        """Strike off losses that the events `seq`, `seq + 1`, ... tell of."""
        self.ledger.subtract(losses)
        self._reports |= enumerate(losses, start=seq)

    def finish(self, spans: Sequence[Span], loss: Loss | None = None) -> None:
        """Note that the events of the spans have arrived, or what was lost with them."""
        told = [self._reports.pop(seq) for seq in self.reports_in(spans)]
        if loss is not None:
            self.ledger.add(loss)
            if loss.cause != REJECTED:
                self.ledger.add_all(told)

    def restore(self, spans: Sequence[Span]) -> None:
        """Tell again what the reports in the spans told of: they are gone."""
        self.ledger.add_all([self._reports.pop(seq) for seq in self.reports_in(spans)])

    def reports_in(self, spans: Sequence[Span]) -> list[int]:
        return [seq for seq in self._reports if any(start <= seq < end for start, end in spans)]

    def adopt(self, losses: Iterable[Loss], reports: Iterable[Report]) -> None:
        """Add what was recovered."""
        self.ledger.add_all(losses)
        self._reports |= reports
