"""Turns the time of a capture into wall-clock time, and says how far that is to be trusted.

Many boards have no clock battery: they start in the past and jump when the network has told them the time. Captures
are therefore timed by CLOCK_MONOTONIC, and turned into wall-clock time as late as possible, with the clock as it is
then. A clock that was once set during this run counts as set from then on: without a network it drifts by seconds a
week, not by years.
"""

import ctypes
import time
from collections.abc import Callable
from pathlib import Path

from edge_agent.records import TimeSource

_REFRESH_NS = 10_000_000_000
# systemd-timesyncd makes this file when it has set the clock; it is gone after a boot.
_TIMESYNCD_FILE = "run/systemd/timesync/synchronized"
# The kernel's limit: a clock that nobody has set has this error, and one that nobody tends reaches it in nine hours.
# STA_UNSYNC would not do, as chrony leaves it on unless it may also set the clock of the board (rtcsync).
_MAX_ERROR_US = 16_000_000


class Clock:
    """Belongs to one thread. `root`, the clocks (nanoseconds) and the kernel's answer can be replaced for tests."""

    def __init__(
        self,
        *,
        root: Path = Path("/"),
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
        time_ns: Callable[[], int] = time.time_ns,
        kernel_max_error_us: Callable[[], int | None] | None = None,
    ) -> None:
        self._timesyncd_file = root / _TIMESYNCD_FILE
        self._monotonic_ns = monotonic_ns
        self._time_ns = time_ns
        self._kernel_max_error_us = kernel_max_error_us or kernel_max_error
        self._source: TimeSource = "unverified"
        self._next_look_ns = 0

    def wall_ms(self, captured_ns: int) -> int:
        """Milliseconds since the epoch of a CLOCK_MONOTONIC time of this boot, by the clock as it is now."""
        return (self._time_ns() - self._monotonic_ns() + captured_ns) // 1_000_000

    def time_source(self) -> TimeSource:
        """Whether the network has set the clock; looks at most every ten seconds, and not any more once it has."""
        if self._source == "unverified" and (now := self._monotonic_ns()) >= self._next_look_ns:
            self._next_look_ns = now + _REFRESH_NS
            if self._is_set():
                self._source = "synchronized"
        return self._source

    def _is_set(self) -> bool:
        if self._timesyncd_file.exists():
            return True
        error = self._kernel_max_error_us()
        return error is not None and error < _MAX_ERROR_US


class _Timex(ctypes.Structure):
    """The start of `struct timex`, and room for the rest of it on any machine; see adjtimex(2)."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("rest", ctypes.c_byte * 256),
    )


def kernel_max_error() -> int | None:
    """How wrong the kernel thinks the clock is at most, in µs; None where a sandbox forbids to ask."""
    answer = _Timex(modes=0)  # 0: change nothing, which needs no privilege
    status: int = ctypes.CDLL(None).adjtimex(ctypes.byref(answer))
    maximum: int = answer.maxerror
    return None if status == -1 else maximum
