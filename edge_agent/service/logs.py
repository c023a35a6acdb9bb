"""Sets up the log lines of the agent: where they go, how they look, and which are shown.

A line takes this way: level, `throttle`, exceptions, `redaction`, and `render` for a terminal or the journal. The
standard library's `logging`, which the Google libraries use, and Python's warnings take it too.
"""

import logging
import os
import sys
import threading
import traceback
from pathlib import Path
from typing import Literal, TextIO

import structlog
from structlog.typing import EventDict, WrappedLogger

from edge_agent.service import render
from edge_agent.service.redaction import redact
from edge_agent.service.throttle import Throttle

Format = Literal["auto", "console", "journal"]
Level = Literal["debug", "info", "warning", "error"]


def configure(level: Level, format: Format, stream: TextIO = sys.stderr) -> None:  # noqa: A002 - as in the settings
    """Send the log lines of this process to `stream`. May be called again, to change the level for instance.

    Loggers must come from `structlog.get_logger()`; one that was bound before (`log.bind(...)`) keeps its old level.
    """
    journal = format == "journal" or (format == "auto" and is_journal(stream))
    lines = _Lines(stream)
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            Throttle(),
            _Exceptions(with_traceback=level == "debug"),
            redact,
            render.journal if journal else render.Console(colours=_wants_colours(stream)),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: lines,
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(level=logging.WARNING, handlers=[_Forward()], force=True)
    logging.captureWarnings(capture=True)
    # Google's libraries cut their logger off from all others when it has no level of its own.
    google = logging.getLogger("google")
    google.setLevel(logging.WARNING)
    google.propagate = True


def is_journal(stream: TextIO) -> bool:
    """Whether systemd connected the stream to the journal, by the device and inode in $JOURNAL_STREAM."""
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):  # there is no file behind it
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def _wants_colours(stream: TextIO) -> bool:
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


class _Lines:
    """Writes whole lines, from any thread. A stream that fails (disk full, reader gone) must not end the agent."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self._lost = 0

    def write(self, line: str) -> None:
        with self._lock:
            try:
                if self._lost:
                    self._stream.write(f"{self._lost} log lines could not be written\n")
                self._stream.write(line + "\n")
                self._stream.flush()
            except (OSError, ValueError):  # ValueError: closed
                self._lost += 1
            else:
                self._lost = 0

    debug = info = warning = error = critical = write


class _Exceptions:
    """Puts what went wrong into the line: `exception` says what, `at` where, `traceback` all of it."""

    def __init__(self, *, with_traceback: bool) -> None:
        self._with_traceback = with_traceback

    def __call__(self, _logger: WrappedLogger, _method: str, line: EventDict) -> EventDict:
        error = line.pop("exc_info", None)
        if error is True:
            error = sys.exc_info()
        if isinstance(error, tuple):
            error = error[1]
        if isinstance(error, BaseException):
            line["exception"] = _described(error)
            if frames := traceback.extract_tb(error.__traceback__):
                line["at"] = f"{Path(*Path(frames[-1].filename).parts[-2:])}:{frames[-1].lineno}"
            if self._with_traceback:
                line["traceback"] = "".join(traceback.format_exception(error))
        return line


def _described(error: BaseException) -> str:
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, BaseExceptionGroup):
        text += f" [{'; '.join(map(_described, error.exceptions))}]"
    return f"{text}, caused by {_described(error.__cause__)}" if error.__cause__ else text


class _Forward(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        log = structlog.get_logger()
        method = log.error if record.levelno >= logging.ERROR else log.warning
        try:
            method(record.getMessage(), logger=record.name, exc_info=record.exc_info)
        except Exception:  # noqa: BLE001 - a library's faulty call must not end the agent; this reports it
            self.handleError(record)
