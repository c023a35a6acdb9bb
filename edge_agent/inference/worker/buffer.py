"""The samples between the capture thread and the inference thread."""

import threading
from collections import deque

from edge_agent.records import Sample

CAPACITY = 64
LIVE_LEAST = 8  # these wait, however slowly they came
LIVE_AGE_NS = 500_000_000  # of more than that, none is older than the newest by so much
_PICTURE_RANK = 3
_MAX_BYTES = 8 * 1024 * 1024


class SampleBuffer:
    """Bounded hand-over of samples from one thread to another, in order.

    A live source never waits: the oldest sample makes room and is counted. The buffer bridges half a second in which
    the machine is busy with something else, and no more, for a model that is too slow always looks at the past. Of
    pictures only the newest is kept.
    A recorded source waits, so none of its samples is lost. The consumer takes all there is at once, so that
    under full load the threads meet once per bufferful and not once per sample.
    """

    def __init__(self, *, live: bool) -> None:
        self._dropped = 0
        self._live = live
        self._samples: deque[Sample] = deque()
        self._condition = threading.Condition()
        self._consumer_waits = False
        self._producer_waits = False
        self._woken = False
        self._closed = False

    def _capacity(self, sample: Sample) -> int:
        data = sample.data
        if self._live and data.ndim == _PICTURE_RANK and data.itemsize == 1:
            return 1
        size: int = data.nbytes
        return max(1, min(CAPACITY, _MAX_BYTES // max(1, size)))

    def _make_room(self, sample: Sample, capacity: int) -> None:
        samples, oldest_ns = self._samples, sample.captured_ns - LIVE_AGE_NS
        while len(samples) >= capacity or (len(samples) >= LIVE_LEAST and samples[0].captured_ns < oldest_ns):
            samples.popleft()
            self._dropped += 1

    def put(self, sample: Sample) -> None:
        """Add a sample; blocks while a recorded source is ahead of the model."""
        with self._condition:
            capacity = self._capacity(sample)
            if self._live:
                self._make_room(sample, capacity)
            while not self._live and len(self._samples) >= capacity and not self._closed:
                self._producer_waits = True
                self._condition.wait()
            self._samples.append(sample)
            if self._consumer_waits:
                self._consumer_waits = False
                self._condition.notify_all()

    def take(self, timeout: float | None) -> deque[Sample]:
        """Return all samples there are; waits for the first, for `wake`, or for `timeout` seconds."""
        with self._condition:
            if not self._samples and not self._woken:
                self._consumer_waits = True
                self._condition.wait(timeout)
                self._consumer_waits = False
            taken, self._samples = self._samples, deque()
            # Who was woken looks around only when there is nothing to work on: that is still to come.
            self._woken = self._woken and bool(taken)
            if self._producer_waits:
                self._producer_waits = False
                self._condition.notify_all()
            return taken

    def wake(self) -> None:
        """Make a waiting `take` return, with or without samples."""
        with self._condition:
            self._woken = True
            self._condition.notify_all()

    def close(self) -> None:
        """Keep nobody waiting from now on: what is in the buffer will not be worked on."""
        with self._condition:
            self._closed = self._woken = True
            self._condition.notify_all()

    def take_dropped(self) -> int:
        """Return how many samples made room since the last call."""
        with self._condition:
            dropped, self._dropped = self._dropped, 0
            return dropped
