"""Lets through the first of what comes again and again, and counts the others."""

import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass

_MAX_KEPT = 256


@dataclass(slots=True)
class _Shown:
    at: float
    held_back: int = 0


class Repeats:
    """Remembers the last 256 keys that were let through. For one thread at a time."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._shown: dict[Hashable, _Shown] = {}

    def held_back(self, key: Hashable, every: float) -> int | None:
        """Return None if this one is to be held back: less than `every` seconds after one that was let through.

        Otherwise it may pass, and the answer is how many have been held back since the last one.
        """
        now = self._clock()
        shown = self._shown.get(key)
        if shown and now - shown.at < every:
            shown.held_back += 1
            return None
        self._shown.pop(key, None)
        self._shown[key] = _Shown(now)
        if len(self._shown) > _MAX_KEPT:
            del self._shown[next(iter(self._shown))]  # the one shown longest ago
        return shown.held_back if shown else 0
