"""Cuts a stream of scans into windows, which may overlap."""

import numpy as np
import numpy.typing as npt

Scans = npt.NDArray[np.float32]
Times = npt.NDArray[np.int64]


class Windows:
    """`window` scans in each; the next one begins `step` scans later."""

    def __init__(self, window: int, step: int) -> None:
        self._window = window
        self._step = step
        self._scans: Scans | None = None
        self._times: Times = np.empty(0, np.int64)
        self._start = 0
        self._interrupted = False

    def interrupt(self) -> None:
        """What is added next does not follow on what was added before: no window may have both."""
        self._interrupted = True

    def add(self, scans: Scans, times: Times) -> None:
        """Add scans of shape (scans, channels), and when each was taken. All windows there are must have been taken."""
        if self._scans is None or self._interrupted:
            self._scans, self._times, self._start, self._interrupted = scans, times, 0, False
            return
        done = min(self._start, len(self._scans))
        self._scans = np.concatenate((self._scans[done:], scans))
        self._times = np.concatenate((self._times[done:], times))
        self._start -= done

    def take(self) -> tuple[Scans, int] | None:
        """Return the next window, of shape (window, channels), and when its last scan was taken; None if there is none.

        The array is a view of one that is not changed any more.
        """
        end = self._start + self._window
        if self._scans is None or end > len(self._scans):
            return None
        window = self._scans[self._start : end]
        self._start += self._step
        return window, int(self._times[end - 1])
