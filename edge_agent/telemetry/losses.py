"""The ledger of what was given up: cause, count and time range, until a loss event has reported it."""

from collections.abc import Iterable

import msgspec


class Loss(msgspec.Struct, frozen=True):
    """Events (or samples) that are gone. The times are those of the oldest and newest one, ms since the epoch."""

    cause: str
    count: int
    first_ms: int
    last_ms: int


class Ledger:
    """Losses by cause that nobody has been told of yet."""

    def __init__(self, losses: Iterable[Loss] = ()) -> None:
        self._by_cause: dict[str, Loss] = {}
        for loss in losses:
            self.add(loss)

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

    def subtract(self, losses: Iterable[Loss]) -> None:
        """Take off what was reported. What was counted for the same cause since then stays."""
        for loss in losses:
            known = self._by_cause.pop(loss.cause, None)
            if known is not None and known.count > loss.count:
                left = known.count - loss.count
                self._by_cause[loss.cause] = Loss(loss.cause, left, known.first_ms, known.last_ms)
