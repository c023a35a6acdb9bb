"""The interface of a source plugin, and what sources share.

A source lives in the worker process and is used by one thread: `open`, `read` again and again, `close`. It only
reads. Pacing by the model, buffering, counting and starting again after trouble are the worker's business.

Trouble has three grades:

- one sample is bad (a damaged image, a row with a word in it): the source counts it with `skip` and goes on;
- the source cannot go on (unplugged, unreadable): `SourceError`; the worker reports it, closes the source and
  opens it again after a pause;
- a recorded source is at its end: `SourceEnded`.
"""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import msgspec

from edge_agent.records import Sample

# Enough to see a pattern in the status, few enough not to grow with the days.
MAX_PROBLEMS = 20


class SourceError(Exception):
    """The source cannot go on. `reason` says what happened and where, `remedy` what a person can do."""

    def __init__(self, reason: str, remedy: str) -> None:
        self.reason = printable(reason)
        self.remedy = remedy
        super().__init__(f"{self.reason}; {remedy}")


class SourceEnded(Exception):
    """A recorded source has no more samples. The message says of what."""


class Source(ABC):
    """Where samples come from.

    `Options` is a frozen, keyword-only dataclass: one field for each key of the [source] table, its constraints
    as `Annotated` metadata of `annotated_types`. It may have a method `check()` that raises ValueError or OSError
    with a message for the admin; it runs while the settings are read, so it must be cheap.

    `live` is True when only the newest samples matter (a sensor) and False when each one waits for the model
    (a recording).

    `skipped` counts the samples that could not be used; `problems` has the latest reasons, the newest last, and how
    often each came. `remarks` are what the admin should know although samples can be read.
    """

    Options: ClassVar[type]
    live: bool

    def __init__(self, options: Any) -> None:  # noqa: ARG002  each plugin has its own options
        self.skipped = 0
        self.problems: dict[str, int] = {}
        self.remarks: list[str] = []

    def open(self, resume: str | None) -> None:  # noqa: B027  many sources have nothing to open
        """Make ready to read.

        `resume` is the position of the last sample that was worked on before the worker was started again, or
        None. A position the source cannot use any more means: start from the beginning. Raises SourceError.
        """

    def prefer_size(self, width: int, height: int, resize: str) -> None:  # noqa: B027  few sources have pictures
        """Take note of the size that the model scales pictures to anyway, and of the way: nearest, bilinear or lanczos.

        A source that can scale more cheaply may give pictures of just this size, then with `Sample.size`. Called
        before `open`, and at any time by another thread.
        """

    @abstractmethod
    def read(self, timeout: float) -> Sample | None:
        """Return the next sample, or None when there was none within `timeout` seconds.

        Raises SourceEnded or SourceError.
        """

    def key(self, position: str) -> str:
        """Return what stays the same about a position when a recording is repeated: it tells deadly samples again."""
        return position

    def pass_over(self) -> None:  # noqa: B027  a live source has nothing to pass over
        """Go on behind the sample that `read` would return next, without touching its content.

        Called after `open` when reading that sample has ended the worker process again and again; each further call
        passes over one more. Count what is left out, with `skip_deadly`. Raises SourceError.
        """

    def close(self) -> None:  # noqa: B027  many sources have nothing to close
        """Release what `open` took. Also called after a failed `open`, and more than once."""

    def skip(self, reason: str) -> None:
        """Count a sample that cannot be used."""
        self.skipped += 1
        reason = printable(reason)
        self.problems[reason] = self.problems.pop(reason, 0) + 1
        if len(self.problems) > MAX_PROBLEMS:
            del self.problems[next(iter(self.problems))]

    def skip_deadly(self, name: str) -> None:
        """Count a sample that `pass_over` has left out."""
        self.skip(f"{name} has ended the worker twice and is left out")

    def remark(self, text: str) -> None:
        """Tell the admin what is not as asked for, although samples can be read, such as another rate."""
        text = printable(text)
        if text not in self.remarks:
            self.remarks.append(text)
            del self.remarks[:-MAX_PROBLEMS]


SourceT = TypeVar("SourceT", bound=Source)


def build(cls: type[SourceT], options: Mapping[str, object]) -> SourceT:
    """Make a source from its checked options as JSON has them: times in seconds, sizes in bytes, paths as text.

    Raises msgspec.ValidationError when they do not fit `cls.Options`.
    """
    return cls(msgspec.convert(options, cls.Options, dec_hook=_from_json))


def _from_json(wanted: type, value: object) -> object:
    if wanted is Path and isinstance(value, str):
        return Path(value)
    raise TypeError(f"cannot make {wanted.__name__} from {type(value).__name__}")


def describe(error: OSError) -> str:
    """Say what the operating system refused, and for which file."""
    what = error.strerror or str(error)
    what = what[:1].lower() + what[1:]
    return f"{error.filename}: {what}" if error.filename else what


def printable(text: str) -> str:
    """Replace what no UTF-8 can express: bytes of file names that are no text, and halves of surrogate pairs."""
    return text.encode("utf-8", "backslashreplace").decode()


class Pacer:
    """Gives the beat: `rate` samples per second, or no beat at all for a rate of 0.

    The beats lie on a fixed grid that starts with the first wait, so errors do not add up. Beats that were missed
    are left out: there is no burst after a pause.
    """

    def __init__(
        self,
        rate: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._rate = rate
        self._clock = clock
        self._sleep = sleep
        self._start: float | None = None
        self._beat = 0

    def now(self) -> float:
        """Return the time of the clock that the beat is measured with, in seconds."""
        return self._clock()

    def wait(self, timeout: float) -> bool:
        """Wait for the beat, at most `timeout` seconds. True: it is time for a sample; then call `step`."""
        if not self._rate:
            return True
        now = self._clock()
        if self._start is None:
            self._start = now
        remaining = self._start + self._beat / self._rate - now
        if remaining > timeout:
            self._sleep(max(timeout, 0.0))
            return False
        if remaining > 0:
            self._sleep(remaining)
        return True

    def step(self) -> None:
        """The sample of this beat was taken; `wait` waits for the next one that is still to come."""
        if self._rate and self._start is not None:
            # Rounding must not make a beat that is due right now look like one to come.
            passed = math.floor((self._clock() - self._start) * self._rate + 1e-6)
            self._beat = max(self._beat, passed) + 1
