"""A source plugin whose samples are all the same but for one, which a test calls for while the worker runs."""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edge_agent.records import Sample
from edge_agent.sources.base import Source, SourceEnded


@dataclass(frozen=True, kw_only=True)
class MarkedOptions:
    """The next sample after `marker` was made consists of `special`, all others of `usual`; its number is put there."""

    marker: Path
    usual: float = 0.5
    special: float = float("inf")
    values: int = 8
    total: int = 10**6
    pause: float = 0.002


class Marked(Source):
    """Counts its samples, and gives the same one for the same number also after the worker was started again."""

    Options = MarkedOptions

    def __init__(self, options: MarkedOptions) -> None:
        super().__init__(options)
        self.live = False
        self._options = options
        self._number = 0

    def open(self, resume: str | None) -> None:
        """Go on after `resume`."""
        self._number = int(resume) if resume else 0

    def read(self, timeout: float) -> Sample | None:
        """Return the next sample."""
        self._number += 1
        if self._number > self._options.total:
            raise SourceEnded("all samples were read")
        time.sleep(self._options.pause)
        value = self._options.special if self._is_marked() else self._options.usual
        return Sample(np.full(self._options.values, value, np.float32), time.monotonic_ns(), str(self._number))

    def _is_marked(self) -> bool:
        marker = self._options.marker
        if not marker.exists():
            return False
        if not marker.read_text():
            marker.write_text(str(self._number))
        return marker.read_text() == str(self._number)
