"""`publish` of [telemetry]: which results become events."""

from dataclasses import dataclass
from typing import Literal

from edge_agent.settings.showing import show
from edge_agent.settings.units import format_duration, parse_duration

MOST_ONE_IN = 1_000_000
SHORTEST_WINDOW, LONGEST_WINDOW = 1.0, 86_400.0
LESS = '{ one_in = 30 } or { summary = "1m" }'
"""Ways of publishing less that any task can do, as they stand in the file."""


@dataclass(frozen=True)
class Publish:
    """`one_in` is for the mode of that name, `window` (seconds) for "summary"."""

    mode: Literal["all", "change", "one_in", "summary"] = "all"
    one_in: int = 1
    window: float = 0.0

    def __str__(self) -> str:
        """As it stands in the file."""
        if self.mode == "one_in":
            return f"{{ one_in = {self.one_in} }}"
        if self.mode == "summary":
            return f'{{ summary = "{format_duration(self.window)}" }}'
        return f'"{self.mode}"'

    @property
    def words(self) -> str:
        """As it is told to people."""
        forms = {"one_in": f"one in {self.one_in}", "summary": f"a summary each {format_duration(self.window)}"}
        return forms.get(self.mode, self.mode)


ALL = Publish()


def parse_publish(value: object) -> Publish:
    """Return what the file says. Raises ValueError."""
    match value:
        case "all" | "change":
            return Publish(value)
        case {"one_in": count, **rest} if not rest:
            return Publish("one_in", one_in=_count(count))
        case {"summary": window, **rest} if not rest:
            return Publish("summary", window=_window(window))
    raise ValueError(f'expected "all", "change", {LESS}, not {show(value)}')


def _count(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MOST_ONE_IN:
        return value
    raise ValueError(f"one_in must be a whole number from 1 to {MOST_ONE_IN}, not {show(value)}")


def _window(value: object) -> float:
    window = parse_duration(value)
    if SHORTEST_WINDOW <= window <= LONGEST_WINDOW:
        return window
    shortest, longest = format_duration(SHORTEST_WINDOW), format_duration(LONGEST_WINDOW)
    raise ValueError(f'summary must be from "{shortest}" to "{longest}", not {show(value)}')
