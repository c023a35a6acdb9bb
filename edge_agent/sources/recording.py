"""Plays back recorded samples: a CSV file, JSON lines or a .npy array, one sample per row.

See `edge_agent.sources.formats` for what the files may look like. A bad row is left out and counted; only a file
that cannot be read, or has no usable row, is an error.

A position is `CYCLE:PLACE`: how often the file was played to its end, and the place in it.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy.typing as npt
from annotated_types import Ge, Le, doc

from edge_agent.records import Sample
from edge_agent.sources.base import Pacer, Source, SourceEnded, SourceError, describe
from edge_agent.sources.rows import BadRow, Rows, open_rows


class Recording(Source):
    """Samples of a file, in its order. Never live: each waits for the model."""

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """Options in the [source] table."""

        path: Annotated[Path, doc("The file.")]
        rate: Annotated[float, Ge(0), Le(100_000), doc("Samples per second; 0: as fast as possible.")] = 0.0
        repeat: Annotated[bool, doc("Begin again at the end.")] = False

        def check(self) -> None:
            """Try to read the first row. Raises ValueError, or OSError where there is no such file now."""
            open_rows(self.path).close()

    def __init__(self, options: Options, *, pacer: Pacer | None = None) -> None:
        super().__init__(options)
        self.live = False
        self._options = options
        self._pacer = pacer or Pacer(options.rate)
        self._cycle = 0
        self._rows: Rows | None = None

    def open(self, resume: str | None) -> None:
        """Open the file, and go on after `resume`."""
        cycle, _, place = (resume or "").partition(":")
        self._cycle = int(cycle) if cycle.isdecimal() else 0
        self._start().go_on_after(place)

    def pass_over(self) -> None:
        """Leave out the next row. One that cannot be used counts as a row, too: finding out means reading it."""
        try:
            row = self._opened().pass_over()
            if row is None and self._options.repeat:
                row = self._start().pass_over()
                self._cycle += 1
        except (OSError, ValueError) as error:
            raise self._unreadable(error) from error
        if row is not None:
            self.skip_deadly(row)

    def read(self, timeout: float) -> Sample | None:
        """Return the next usable row."""
        if not self._pacer.wait(timeout):
            return None
        give_up = time.monotonic() + timeout
        while True:
            try:
                data = self._next_row()
            except BadRow as error:
                self.skip(str(error))
                if time.monotonic() >= give_up:
                    return None
            else:
                self._pacer.step()
                return Sample(data, time.monotonic_ns(), f"{self._cycle}:{self._opened().place}")

    def key(self, position: str) -> str:
        """Return the place of a row, whatever the cycle."""
        return position.partition(":")[2]

    def close(self) -> None:
        """Close the file."""
        if self._rows is not None:
            self._rows.close()
            self._rows = None

    def _next_row(self) -> npt.NDArray[Any]:
        """Return the next row. Opening has found a usable one in the file, so each cycle yields something."""
        try:
            while (data := self._opened().read()) is None:
                if not self._options.repeat:
                    raise SourceEnded(f"{self._options.path} was read to its end")
                self._start()
                self._cycle += 1
        except BadRow:
            raise
        except (OSError, ValueError) as error:
            raise self._unreadable(error) from error
        return data

    def _opened(self) -> Rows:
        if self._rows is None:
            raise RuntimeError("the recording is not open")
        return self._rows

    def _start(self) -> Rows:
        self.close()
        try:
            self._rows = open_rows(self._options.path)
        except (OSError, ValueError) as error:
            raise self._unreadable(error) from error
        return self._rows

    def _unreadable(self, error: OSError | ValueError) -> SourceError:
        if isinstance(error, OSError):
            return SourceError(describe(error), "see that the file is there and that the service may read it")
        return SourceError(str(error), "the recording must be CSV, JSON lines or .npy with one sample per row")
