"""Source plugins that misbehave on purpose, as a third party would install them.

Each reads 128 values per sample, numbered by `position`.
"""

import ctypes
import os
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from edge_agent.records import Sample
from edge_agent.sources.base import Source, SourceEnded, SourceError

# By then the model has worked on all that was read before.
_REST = 0.5


@dataclass(frozen=True, kw_only=True)
class FaultyOptions:
    """`what` happens before sample number `at`; once only if a file `marker` is named.

    With `call` it happens when that file is made, once, while the model has nothing to do. The last of the `total`
    samples comes once there is a file `last`, if one is named.
    """

    at: int = 10
    total: int = 100
    what: str = "end"
    marker: Path | None = None
    call: Path | None = None
    values: int = 128
    pause: float = 0.0
    last: Path | None = None
    labels: list[str] = field(default_factory=list)


class Faulty(Source):
    """Counts, and misbehaves as told."""

    Options = FaultyOptions

    def __init__(self, options: FaultyOptions) -> None:
        super().__init__(options)
        self.live = False
        self._options = options
        self._number = 0
        self._troubled = False

    def open(self, resume: str | None) -> None:
        """Go on after `resume`."""
        self._number = int(resume) if resume else 0

    def read(self, timeout: float) -> Sample | None:
        """Return the next sample, or misbehave."""
        last = self._options.last
        if last is not None and self._number == self._options.total - 1 and not last.exists():
            time.sleep(0.01)
            return None
        self._number += 1
        if self._is_called() or (self._number == self._options.at and self._first_time()):
            self._misbehave()
        if self._number > self._options.total:
            raise SourceEnded("all samples were read")
        time.sleep(self._options.pause)
        values = np.full(self._options.values, 0.5, np.float32)
        return Sample(values, time.monotonic_ns(), str(self._number))

    def pass_over(self) -> None:
        """Go on behind the next sample."""
        self._number += 1
        self.skip_deadly(str(self._number))

    def close(self) -> None:
        """Misbehave after trouble, if told to."""
        if not self._troubled:
            return
        self._troubled = False
        if self._options.what == "close_hangs":
            time.sleep(3600)
        elif self._options.what == "close_fails":
            raise KeyError("closed badly")

    def _is_called(self) -> bool:
        call = self._options.call
        if call is None or not call.exists():
            return False
        call.unlink()
        time.sleep(_REST)
        return True

    def _first_time(self) -> bool:
        marker = self._options.marker
        if marker is None:
            return True
        first = not marker.exists()
        marker.touch()
        return first

    def _misbehave(self) -> None:
        what = self._options.what
        if what == "abort":
            os.write(2, b"F driver.cc:42] USB transfer error\n")
            os.abort()
        elif what == "segv":
            os.kill(os.getpid(), signal.SIGSEGV)
        elif what == "hang":
            time.sleep(3600)
        elif what == "hang_with_lock":
            # As native code that keeps Python's lock: no thread of the process can do anything.
            ctypes.PyDLL(None).sleep(3600)
        elif what in {"trouble", "close_hangs", "close_fails"}:
            self._troubled = True
            raise SourceError("the cable is loose", "plug it in")
        elif what == "bug":
            raise KeyError("no such thing")


class Busy(Faulty):
    """Keeps the interpreter to itself for as long as the worker allows, which it tells as its position."""

    def read(self, timeout: float) -> Sample | None:
        """Return the next sample."""
        return Sample(np.full(128, 0.5, np.float32), time.monotonic_ns(), str(sys.getswitchinterval()))


class Aborting(Faulty):
    """Brings down the process when it is closed."""

    def close(self) -> None:
        """Do so."""
        os.abort()
