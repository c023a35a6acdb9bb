"""Pressure of a pump, as its controller writes it: one file for each reading, with a number of bars on each line."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from annotated_types import Ge

from edge_agent.records import Sample
from edge_agent.settings.units import Duration
from edge_agent.sources.base import Pacer, Source, SourceError, describe


class Pump(Source):
    """The reading that stands in the file, at a beat."""

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """Options in the [source] table."""

        path: Path
        every: Annotated[Duration, Ge(0.001)] = 1.0

        def check(self) -> None:
            """Look for the file."""
            self.path.stat()

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.live = True
        self._path = options.path
        self._pacer = Pacer(1 / options.every)

    def read(self, timeout: float) -> Sample | None:
        """Return the reading of this moment."""
        if not self._pacer.wait(timeout):
            return None
        self._pacer.step()
        try:
            bars = [float(line) for line in self._path.read_text().split()]
        except OSError as error:
            raise SourceError(describe(error), "start the pump's controller") from error
        except ValueError as error:
            self.skip(str(error))
            return None
        return Sample(np.array(bars, np.float32), time.monotonic_ns())
