"""When and how fast models are fetched over a network, and whether there is memory to try them.

One object serves all downloads of an agent: models, their twins and golden samples. The manifest is small, and is read
at any time. A file is copied at once, since that costs nobody's line.

- The window is local time. Outside of it polls still look. A download that is not finished when it closes goes on when
  it opens again. A device that has no model yet does not wait.
- While the clock is not known to be set, nobody can tell what time it is: then a release waits until the clock as it is
  says so, and for a day at most.
- The bandwidth is an average over `_BURST`.
- Memory: the worker builds the new model beside the one in use. On the CPU that took 3.1 to 4.2 times the file (LiteRT
  2.3, four quantised models of 0.1 to 3.4 MiB; 2.1 to 3.1 times is memory that the kernel cannot take back), hence
  `MEMORY_FACTOR`, and `MEMORY_BASE` for what does not grow with the file.
"""

import math
import threading
import time
from collections.abc import Callable

from edge_agent.device.memory import Memory, available_memory
from edge_agent.models.release.releases import RemoteObject
from edge_agent.models.stores.base import Postponed, StoreUnavailable
from edge_agent.settings.window import Window, time_of_day

LONGEST_WAIT = 86_400.0
"""Seconds that a release waits for the window while the clock is not set."""
MEMORY_FACTOR = 4
MEMORY_BASE = 8 << 20
_BURST = 0.25
_MINUTE = 60.0
_MIB = 1 << 20


def minute_of_day() -> float:
    """Minutes after midnight, local time."""
    time.tzset()  # the time zone may have been set since the start
    now = time.localtime()
    return now.tm_hour * 60 + now.tm_min + now.tm_sec / 60


class DownloadLimits:
    """What `[model.download]` says, and the memory of the device.

    `bandwidth` is in bytes per second. `clock_is_set` is whether `now` (minutes after midnight) may be believed, while
    `clock` (seconds) never jumps. `memory` tells what is available.
    """

    def __init__(
        self,
        *,
        bandwidth: int | None = None,
        window: Window | None = None,
        clock_is_set: Callable[[], bool] = lambda: True,
        now: Callable[[], float] = minute_of_day,
        clock: Callable[[], float] = time.monotonic,
        memory: Callable[[], Memory | None] = available_memory,
    ) -> None:
        self._bandwidth = bandwidth
        self._window = window
        self._clock_is_set = clock_is_set
        self._now = now
        self._clock = clock
        self._memory = memory
        self._waiting_since: float | None = None
        self._closes = math.inf
        self._fetching: RemoteObject | None = None
        self._free_at = 0.0

    def configure(self, *, bandwidth: int | None, window: Window | None) -> None:
        """Take other settings; a download under way goes by the new bandwidth, and by the window it began in."""
        self._bandwidth = bandwidth
        self._window = window
        self._waiting_since = None

    def admit(self, remote: RemoteObject, *, urgent: bool) -> None:
        """Note that `remote` is fetched from now on. Raises `Postponed` unless it is `urgent`."""
        self._fetching, self._closes = remote, math.inf
        if self._window is None or urgent or not remote.url.startswith("gs://"):
            return
        left = self._window.left(self._now()) * _MINUTE
        if left > 0:
            self._closes = self._clock() + left
        elif self._must_wait():
            raise self._postponed(remote, self._window)
        self._waiting_since = None

    def pace(self, count: int, stop: threading.Event) -> None:
        """Note that `count` bytes have come, and wait until more may come, or `stop`. Raises `Postponed`."""
        now = self._clock()
        if now > self._closes and self._fetching is not None and self._window is not None:
            raise self._postponed(self._fetching, self._window)
        if self._bandwidth is not None:
            self._free_at = max(self._free_at, now) + count / self._bandwidth
            if self._free_at - now > _BURST:
                stop.wait(self._free_at - now)

    def check_memory(self, remote: RemoteObject) -> None:
        """Raise `StoreUnavailable` if there is no room for the model beside the one in use. Waits for the kernel."""
        need = remote.size * MEMORY_FACTOR + MEMORY_BASE
        found = self._memory()
        if found is not None and found.available < need:
            raise StoreUnavailable(
                f"{remote.version} waits: to try it beside the model in use takes about {math.ceil(need / _MIB)} MiB of"
                f" memory, and {found.source} has less; end something else, or make the model smaller"
            )

    def _must_wait(self) -> bool:
        if self._clock_is_set():
            return True
        if self._waiting_since is None:
            self._waiting_since = self._clock()
        return self._clock() < self._waiting_since + LONGEST_WAIT

    def _postponed(self, remote: RemoteObject, window: Window) -> Postponed:
        at_the_latest = "" if self._clock_is_set() else ", or after a day if the clock is not set by then"
        return Postponed(
            f"{remote.version} is offered and is fetched from {time_of_day(window.start)} on{at_the_latest}",
            window.until(self._now()) * _MINUTE,
        )
