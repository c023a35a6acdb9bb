"""How long to wait before the next try: longer after each failure, and never in step with other devices."""

import random
from collections.abc import Callable


class Backoff:
    """Exponential backoff with jitter.

    `first` and `cap` are seconds. `jitter` is the share of each delay that is left to chance; 1 is full
    jitter, anything from nothing to the whole delay. `chance` returns a number in [0, 1).
    """

    def __init__(
        self, first: float, cap: float, *, jitter: float = 1.0, chance: Callable[[], float] = random.random
    ) -> None:
        self._first = first
        self._cap = cap
        self._jitter = jitter
        self._chance = chance
        self._limit = first

    def next(self) -> float:
        """Return the seconds to wait after one more failure."""
        limit, self._limit = self._limit, min(self._cap, self._limit * 2)
        return limit * (1 - self._jitter * self._chance())

    def reset(self) -> None:
        """Begin anew: it worked."""
        self._limit = self._first
