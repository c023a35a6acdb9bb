r"""Turns a log line into text, for a person at a terminal or for the journal.

    14:03:07  model ready                   model=hand version=v1.3          a terminal
    <6>model ready  model=hand version=v1.3                                  the journal, which adds the time

Values are quoted as in logfmt. `<N>` is the priority that journald takes from the start of a line. Nothing that comes
from outside can start a new line or reach the terminal as a control sequence: it is shown as `\n`, `\x1b` and so on.
A text of several lines stands beneath its line at the terminal; in the journal it stays in its line, except for a
traceback, which only the level `debug` asks for.
"""

import re
import time
from collections.abc import Callable
from typing import Any

from structlog.typing import EventDict, WrappedLogger

_PRIORITY = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}
_COLOUR = {"debug": "2", "warning": "1;33", "error": "1;31", "critical": "1;31"}
_MAX_CHARS = 4096
_MAX_TRACEBACK_LINES = 100
_EVENT_WIDTH = 28
_INDENT = " " * 10
_PLAIN = re.compile(r"[^\s\"=\\]+")


def journal(_logger: WrappedLogger, _method: str, line: EventDict) -> str:
    """A structlog processor: the line and, with a traceback, one more line for each of its lines."""
    prefix = f"<{_PRIORITY[line.pop('level')]}>"
    trace = _cut(line.pop("traceback", ""))
    event = escape(str(line.pop("event")))
    head = f"{event}  {_pairs(line)}" if line else event
    return "\n".join(prefix + text for text in [head, *trace])


class Console:
    """A structlog processor: one line, with what has several lines of its own indented beneath it."""

    def __init__(self, *, colours: bool, now: Callable[[], time.struct_time] = time.localtime) -> None:
        self._colours = colours
        self._now = now

    def __call__(self, _logger: WrappedLogger, _method: str, line: EventDict) -> str:
        """Return the text, without the newline at its end."""
        level = line.pop("level")
        event = escape(str(line.pop("event")))
        beneath = {name: line.pop(name) for name, value in list(line.items()) if _has_lines(value)}
        if level not in {"info", "debug"}:
            event = f"{level.upper()} {event}"
        clock = time.strftime("%H:%M:%S", self._now())
        padded = f"{event:<{_EVENT_WIDTH}}" if line else event
        head = f"{self._dim(clock)}  {self._paint(_COLOUR.get(level), padded)}"
        if line:
            head += f"  {_pairs(line)}"
        return "\n".join(
            [head, *(f"{_INDENT}{name} | {text}" for name, value in beneath.items() for text in _cut(value))]
        )

    def _dim(self, text: str) -> str:
        return self._paint("2", text)

    def _paint(self, colour: str | None, text: str) -> str:
        return f"\x1b[{colour}m{text}\x1b[0m" if colour and self._colours else text


def escape(text: str) -> str:
    """The text with everything written out that a terminal might take as more than a character to show."""
    if len(text) > _MAX_CHARS:
        text = text[:_MAX_CHARS] + "…"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _has_lines(value: Any) -> bool:
    return isinstance(value, str) and "\n" in value


def _cut(text: str) -> list[str]:
    return [escape(line) for line in text.split("\n")[-_MAX_TRACEBACK_LINES:] if line]


def _pairs(line: EventDict) -> str:
    return " ".join(f"{escape(str(name))}={_quoted(value)}" for name, value in line.items())


def _quoted(value: Any) -> str:
    match value:
        case None | bool():
            return str(value).lower()
        case float():
            return f"{value:.10g}"
    text = str(value)
    if _PLAIN.fullmatch(text) and text.isprintable() and len(text) <= _MAX_CHARS:
        return text
    inner = text[:_MAX_CHARS].replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escape(inner)}{"…" if len(text) > _MAX_CHARS else ""}"'
