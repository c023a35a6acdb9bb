"""`window` of [model.download]: the time of day at which models are fetched."""

import re
from dataclasses import dataclass

from edge_agent.settings.showing import show

MINUTES_PER_HOUR = 60
MINUTES_PER_DAY = 24 * MINUTES_PER_HOUR
_WINDOW = re.compile(r"\s*(\d{1,2}):(\d\d)\s*-\s*(\d{1,2}):(\d\d)\s*")


@dataclass(frozen=True, slots=True)
class Window:
    """From `start` to `end`, in minutes after midnight, local time; over midnight where `end` is the smaller one."""

    start: int
    end: int

    def __str__(self) -> str:
        """As it stands in the file."""
        return f"{time_of_day(self.start)}-{time_of_day(self.end)}"

    def left(self, minute: float) -> float:
        """How many minutes it is still open, at `minute` after midnight; 0 if it is closed."""
        gone = (minute - self.start) % MINUTES_PER_DAY
        return max(0.0, (self.end - self.start) % MINUTES_PER_DAY - gone)

    def until(self, minute: float) -> float:
        """In how many minutes it opens, at `minute` after midnight."""
        return (self.start - minute) % MINUTES_PER_DAY


def time_of_day(minute: int) -> str:
    """Return "HH:MM"."""
    return f"{minute // 60:02}:{minute % 60:02}"


def parse_window(value: object) -> Window:
    """Read "HH:MM-HH:MM". Raises ValueError."""
    match = _WINDOW.fullmatch(value) if isinstance(value, str) else None
    if match is not None:
        start, end = _minute(match[1], match[2]), _minute(match[3], match[4])
        if start is not None and end is not None and start != end:
            return Window(start, end)
    raise ValueError(f'{show(value)} is no time of day; write for instance "01:00-05:00"')


def _minute(hours: str, minutes: str) -> int | None:
    """Minutes after midnight. 24:00 is how people write the end of a day."""
    minute = MINUTES_PER_HOUR * int(hours) + int(minutes)
    fits = minute <= MINUTES_PER_DAY and int(minutes) < MINUTES_PER_HOUR
    return minute % MINUTES_PER_DAY if fits else None
