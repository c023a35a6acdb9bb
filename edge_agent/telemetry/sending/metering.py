"""Holds sending to a bandwidth and to a daily budget, for links that are paid by the byte.

- The bandwidth is an average over seconds: a request goes out as fast as the line takes it, and the next one waits
  until the bandwidth has caught up. Requests are kept small enough for that.
- A day of the budget lasts 24 hours of running time, or less by the wall clock where that can be trusted: so a
  device that is switched off at night gets its budget every day, and one whose clock goes wrong waits for 24 hours
  at most. A trusted clock that jumps ahead ends one day too early, and no more than that one.
- The count outlives a restart. The file runs ahead of it by a fiftieth of the budget, so that it is written fifty
  times a day: after a crash a little less is left of the budget, never more.
"""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import structlog

from edge_agent.durable import replace_file
from edge_agent.settings.units import format_duration, format_size

DAY = 86_400.0
_BURST = 2.0
"""Seconds of the bandwidth that one request may take."""
_LEAST = 4096
"""Bytes below which a request is mostly framing: so much is sent at a time, and what is left below it is nothing."""
_STEPS = 50
_LONGEST_UNSAVED = 3600.0
_MINUTE = 60

log = structlog.get_logger()


class Day(msgspec.Struct):
    """`used` bytes, in `ran` seconds. `began` is in seconds since the epoch, or None: nobody knew the time."""

    used: int = 0
    ran: float = 0.0
    began: float | None = None


class Meter:
    """Counts what goes over the line. Without limits it counts nothing and never holds anything up.

    `bandwidth` is in bytes per second, `daily_budget` in bytes. `file` keeps the day's count. `wall` returns the
    seconds since the epoch, or None while the clock is not known to be right. `clock` is monotonic, in seconds.
    """

    def __init__(
        self,
        file: Path | None = None,
        *,
        bandwidth: int | None = None,
        daily_budget: int | None = None,
        wall: Callable[[], float | None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.bandwidth = bandwidth
        self._budget = daily_budget
        self._file = file
        self._wall = wall
        self._clock = clock
        self._day = _load(file) if daily_budget is not None else Day()
        self._saved = Day(self._day.used, self._day.ran, self._day.began)
        self._looked = self._request_began = self._free_at = clock()
        self._told = False

    def configure(self, *, bandwidth: int | None, daily_budget: int | None) -> None:
        """Take over changed settings. What was used of this day's budget counts for a new one, too."""
        self._look()
        if self._budget is None and daily_budget is not None:
            self._day = _load(self._file)
        self.bandwidth = bandwidth
        self._budget = daily_budget

    @property
    def limited(self) -> bool:
        """Whether anybody wants to know what goes over the line."""
        return self.bandwidth is not None or self._budget is not None

    # -- counting

    def begin(self) -> None:
        """A request begins now."""
        self._request_began = self._clock()

    def count(self, length: int) -> None:
        """So many bytes went over the line for the last request, in both directions."""
        if self.bandwidth is not None:
            self._free_at = max(self._free_at, self._request_began) + length / self.bandwidth
        if self._budget is not None:
            self._look()
            self._day.used += length

    # -- what may be sent

    def pause(self) -> float:
        """Seconds until the bandwidth allows the next request."""
        return 0.0 if self.bandwidth is None else max(0.0, self._free_at - self._clock())

    def room(self, most: int) -> int:
        """Return how many bytes the next request may have, of `most`.

        Half of the rest of the budget at a time: framing and attributes come on top of the events.
        """
        if self.bandwidth is not None:
            most = min(most, max(_LEAST, int(self.bandwidth * _BURST)))
        if self._budget is not None and not self.used_up:
            most = min(most, max(_LEAST, (self._budget - self._day.used) // 2))
        return most

    @property
    def used_up(self) -> bool:
        """Whether nothing is left of the day's budget, but for what has to go out in any case."""
        if self._budget is None:
            return False
        self._look()
        return self._budget - self._day.used < _LEAST

    @property
    def budget(self) -> tuple[int, int] | None:
        """The bytes that went over the line this day, and those that may; None without a daily budget."""
        if self._budget is None:
            return None
        self._look()
        return self._day.used, self._budget

    def renewal(self) -> float:
        """Seconds until the next day begins."""
        self._look()
        wall, began = self._wall(), self._day.began
        by_wall = DAY if wall is None or began is None else began + DAY - wall
        return max(0.0, min(DAY - self._day.ran, by_wall))

    def explain(self) -> str:
        """Say what is used up, and until when."""
        left, wall = self.renewal(), self._wall()
        if wall is None:
            until = f"for {format_duration(_MINUTE * (1 + left // _MINUTE))} more"
        else:
            until = time.strftime("until %Y-%m-%d %H:%M UTC", time.gmtime(wall + left + _MINUTE))
        return f"the daily budget of {format_size(self._budget or 0)} is used up {until}"

    def _look(self) -> None:
        """Note how the time passes, and begin a new day when the old one is over."""
        now, wall, day = self._clock(), self._wall(), self._day
        day.ran += now - self._looked
        self._looked = now
        if wall is not None and (day.began is None or day.began > wall):
            day.began = wall - day.ran  # the time was not known then, or wrong
        if day.ran >= DAY or (wall is not None and day.began is not None and wall - day.began >= DAY):
            self._day = Day(began=wall)
            self._saved = Day(used=-1)

    # -- what outlives a restart

    async def save(self, *, exactly: bool = False) -> None:
        """Write the count where it is due; `exactly`: as it is, when the agent ends."""
        if self._file is None or self._budget is None:
            return
        self._look()
        day, saved = self._day, self._saved
        ahead = 0 if exactly else self._budget // _STEPS
        if not exactly and day.used <= saved.used and day.ran - saved.ran < _LONGEST_UNSAVED:
            return
        self._saved = Day(day.used + ahead, day.ran, day.began)
        try:
            await asyncio.to_thread(replace_file, self._file, msgspec.json.encode(self._saved))
        except OSError as error:
            self._tell(f"cannot write {self._file}: {error.strerror}; a restart begins a new day's budget")
        else:
            self._told = False

    def _tell(self, reason: str) -> None:
        if not self._told:
            self._told = True
            log.warning("the day's count of bytes is not kept", reason=reason)


def _load(file: Path | None) -> Day:
    try:
        return msgspec.json.decode(file.read_bytes(), type=Day) if file is not None else Day()
    except FileNotFoundError:
        return Day()
    except (OSError, ValueError) as error:
        log.warning("the day's count of bytes is lost, and begins anew", file=str(file), reason=str(error))
        return Day()
