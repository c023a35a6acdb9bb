"""How much the queue may keep, and for how long.

Age is measured on the queue's own clock, which only runs while the queue is open: no jump of the device's clock can
make an event expire, and neither can a month in a drawer. How far the queue was at which age is noted `_STEPS` times
in each `max_age`, so an event expires when it is at most that much older.
"""

import math
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from edge_agent.telemetry.queue.losses import DISK_RESERVE, QUEUE_FULL
from edge_agent.telemetry.queue.store_file import Position

COMMIT_SIZE: Final = 8_000_000

_MEMORY_LIMIT = 32 * 1024 * 1024
_STEPS = 32
_ALWAYS = 1_000_000
"""Bytes that the queue may take however full the disk is."""


class Bounds(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes that are stored or waiting (`max_size`), that wait for the interval (`commit_size`), that the disk must
    have free before the queue grows (`reserve`); and seconds that an event is kept (`max_age`).
    """

    max_size: int
    commit_size: int = COMMIT_SIZE
    reserve: int = 0
    max_age: float = math.inf

    @property
    def memory(self) -> int:
        """How many of the bytes may be in memory only."""
        return min(_MEMORY_LIMIT, self.max_size)

    @property
    def early(self) -> int:
        """So many bytes do not wait for the next tick."""
        return min(self.commit_size, self.memory // 4)

    @property
    def journal(self) -> int:
        """How large a file of the journal gets while the store fails."""
        return self.memory // 16


class Retention:
    """Applies the `bounds`. `monotonic` is in seconds."""

    def __init__(self, bounds: Bounds, monotonic: Callable[[], float]) -> None:
        self.bounds = bounds
        self.positions: list[Position] = []
        self._monotonic = monotonic
        self._born = monotonic()
        self._held: int | None = None  # bytes that the queue had when the disk became short of space
        self._free = 0

    # -- age

    @property
    def age(self) -> float:
        return self._monotonic() - self._born

    def adopt(self, age: float, positions: Sequence[Position]) -> None:
        """Go on from what was saved. What was noted since the start is younger."""
        since = [Position(own.age + age, own.next_seqs) for own in self.positions]
        self._born -= age
        self.positions = [*positions, *since]

    def note(self, next_seqs: list[int]) -> bool:
        """Note how far the queue is, if it is time to. Return whether it was."""
        age = self.age
        if math.isinf(self.bounds.max_age):
            self.positions = []
            return False
        if self.positions and age - self.positions[-1].age < self.bounds.max_age / _STEPS:
            return False
        self.positions = [*self._needed(), Position(age, next_seqs)]
        return True

    def _needed(self) -> list[Position]:
        expired = sum(1 for position in self.positions if self._is_old(position))
        return self.positions[max(0, expired - 1) :]

    def _is_old(self, position: Position) -> bool:
        return self.age - position.age >= self.bounds.max_age

    def expired_ends(self) -> list[int] | None:
        """Return the seqs, by priority, below which every event is too old; None if there are none yet."""
        return next((each.next_seqs for each in reversed(self.positions) if self._is_old(each)), None)

    # -- size

    def measure(self, free: int, size: int) -> None:
        """Take note that the disk has `free` bytes, and that the store holds `size`."""
        self._free = free
        if free >= self.bounds.reserve:
            self._held = None
        elif self._held is None:
            self._held = max(size, _ALWAYS)

    @property
    def limit(self) -> tuple[int, str]:
        """How many bytes the store may hold, and the cause of a loss for that."""
        if self._held is not None and self._held < self.bounds.max_size:
            return self._held, DISK_RESERVE
        return self.bounds.max_size, QUEUE_FULL

    @property
    def shortage(self) -> str | None:
        """Why the queue does not grow, in words, or None."""
        if self._held is None:
            return None
        return (
            f"the disk has {self._free / 1e6:.0f} MB free, less than the reserve of "
            f"{self.bounds.reserve / 1e6:.0f} MB: new events take the place of old ones until there is room"
        )
