"""Turns the time of a capture into wall-clock time, and notices when somebody moves the clock.

Many boards have no clock battery: they start in the past and jump when the network has told them the time. Captures
are therefore timed by CLOCK_MONOTONIC, which never jumps, and turned into wall-clock time as late as possible, with
the clock as it is then. Whether that clock may be believed is for the `Timekeeper` to find out.
"""

import time
from collections.abc import Callable

from edge_agent.records import TimeSource

_NS_PER_MS = 1_000_000
_JUMP_NS = 2_000_000_000
"""More than any slewing does between two ticks of the housekeeping: chrony's fastest is 0.4 s in 5 s."""
_TOGETHER_NS = 1_000_000
"""Both clocks are read in a small part of this, unless the process is stopped in between."""
_TRIES = 5


class Clock:
    """Belongs to one thread. The two clocks (nanoseconds) can be replaced for tests.

    `is_set` is whether the clock is known to be set; a jump makes it false, and calls `on_jump`.
    """

    def __init__(
        self,
        *,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
        time_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.is_set = False
        self.on_jump: Callable[[], None] = _nothing
        self._monotonic_ns = monotonic_ns
        self._time_ns = time_ns
        self._offset_ns = self._measure()
        self._jumped_ns = 0

    def wall_ms(self, captured_ns: int) -> int:
        """Milliseconds since the epoch of a CLOCK_MONOTONIC time of this boot, by the clock as it is now."""
        offset_ns = self._time_ns() - self._monotonic_ns()
        if not -_TOGETHER_NS < offset_ns - self._offset_ns < _TOGETHER_NS:
            offset_ns = self._measure()
            self._follow(offset_ns - self._offset_ns)
        self._offset_ns = offset_ns
        return (offset_ns + captured_ns) // _NS_PER_MS

    def now_ms(self) -> int:
        """Milliseconds since the epoch, now."""
        return self.wall_ms(self._monotonic_ns())

    def time_source(self) -> TimeSource:
        """Whether the clock is known to be set."""
        return "synchronized" if self.is_set else "unverified"

    def offset_ms(self) -> int:
        """What has to be added to CLOCK_MONOTONIC (ms) to get the time, by the clock as it is now."""
        return self._measure() // _NS_PER_MS

    def take_jump(self) -> int:
        """How far the clock was moved (ms, forwards is positive) since this was last asked."""
        jumped_ns, self._jumped_ns = self._jumped_ns, 0
        return jumped_ns // _NS_PER_MS

    def _follow(self, moved_ns: int) -> None:
        if -_JUMP_NS < moved_ns < _JUMP_NS:
            return
        self._jumped_ns += moved_ns
        self.is_set = False
        self.on_jump()

    def _measure(self) -> int:
        """Read both clocks at one moment: the process may be stopped for seconds between any two lines."""
        for _ in range(_TRIES):
            before = self._monotonic_ns()
            now = self._time_ns()
            after = self._monotonic_ns()
            if after - before < _TOGETHER_NS:
                break
        return now - (before + after) // 2


def _nothing() -> None:
    pass
