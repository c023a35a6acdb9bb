"""Bytes per day, spread over the day.

A day's budget that is there at midnight would be gone with the first minute of a bad morning, on pictures that are all
the same. So it comes in little by little, and at most an hour's worth is saved up for when much is of interest. What
goes out is never cut: it may take more than there is, which is then paid off first. In any 24 hours at most the budget
is spent, and one sample. No clock that can be set has a say in it.
"""

import time
from collections.abc import Callable
from pathlib import Path

import msgspec

_DAY = 86_400.0
_SAVED_UP = 1 / 24


class _State(msgspec.Struct, frozen=True):
    level: float
    at: float


class Budget:
    """Begins with nothing saved up and nothing owed: the first sample can go out at once.

    `file` keeps the state for the next worker, as one that dies often must not be given something for it each time.
    `clock` is in seconds and runs on for as long as the file is kept.
    """

    def __init__(
        self,
        per_day: int,
        file: Path | None,
        *,
        clock: Callable[[], float] = lambda: time.clock_gettime(time.CLOCK_BOOTTIME),
    ) -> None:
        self._most = per_day * _SAVED_UP
        self._rate = (per_day - self._most) / _DAY
        self._file = file
        self._clock = clock
        self._level, self._at = 0.0, clock()
        self._restore()

    @property
    def open(self) -> bool:
        """Whether a sample may go out now."""
        return self._now() >= 0

    def spend(self, size: int) -> None:
        """Take off so many bytes. Raises nothing: without its file the state lasts as long as the worker."""
        self._level = self._now() - size
        if self._file is not None:
            self._save(self._file)

    def _now(self) -> float:
        now = self._clock()
        self._level = min(self._most, self._level + (now - self._at) * self._rate)
        self._at = now
        return self._level

    def _restore(self) -> None:
        if self._file is None:
            return
        try:
            saved = msgspec.json.decode(self._file.read_bytes(), type=_State)
        except (OSError, ValueError):
            return
        # From another boot it may lie ahead.
        self._level, self._at = saved.level, min(saved.at, self._at)

    def _save(self, file: Path) -> None:
        new = file.with_name(f"{file.name}.new")
        try:
            new.write_bytes(msgspec.json.encode(_State(self._level, self._at)))
            new.replace(file)
        except OSError:  # where pictures cannot be written either, and that is told
            return
