"""Holds back warnings and errors that say the same again and again, and counts them.

Within a window of `EVERY` seconds only the first of them is let through; the first after it carries `repeated=N`.
"The same" is level, event and all values that are text: numbers may differ. Two keywords of a log call change that,
and are never printed: `_every` is the window in seconds (0 for none; any level may be given one), and `_per` is
compared in place of the values.
"""

import threading
import time
from collections.abc import Callable, Hashable

import structlog
from structlog.typing import EventDict, WrappedLogger

from edge_agent.repeats import Repeats

EVERY = 60.0
_LEVELS = frozenset({"warning", "error", "critical"})


class Throttle:
    """A structlog processor; stands after `add_log_level`. May be called from any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._repeats = Repeats(clock)
        self._lock = threading.Lock()

    def __call__(self, _logger: WrappedLogger, _method: str, line: EventDict) -> EventDict:
        """Let the line through, or raise `structlog.DropEvent`."""
        every = line.pop("_every", EVERY if line["level"] in _LEVELS else 0.0)
        per = line.pop("_per", None)
        if every > 0:
            key = (line["level"], line["event"], _texts(line) if per is None else per)
            with self._lock:
                held_back = self._repeats.held_back(key, every)
            if held_back is None:
                raise structlog.DropEvent
            if held_back:
                line["repeated"] = held_back
        return line


def _texts(line: EventDict) -> Hashable:
    return tuple(sorted((key, value) for key, value in line.items() if isinstance(value, str)))
