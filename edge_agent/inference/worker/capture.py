"""The thread that captures: opens the source, reads it, and opens it again after trouble."""

import threading
import time
from collections import Counter

import msgspec

from edge_agent.inference.progress import Reporter, Stage
from edge_agent.inference.protocol import AgentGone, Channel, Configure, SourceState
from edge_agent.inference.worker.buffer import SampleBuffer
from edge_agent.records import Sample
from edge_agent.sources.base import Source, SourceEnded, SourceError

READ_TIMEOUT = 0.5
REPORT_INTERVAL = 5.0
REOPEN_DELAYS = (1.0, 2.0, 5.0, 10.0, 30.0)


class Capture:
    """Reads one source into the buffer. `ended` is set when the source has come to its end."""

    def __init__(
        self, source: Source, buffer: SampleBuffer, channel: Channel, progress: Reporter, configure: Configure
    ) -> None:
        self.ended: SourceEnded | None = None
        self._source = source
        self._buffer = buffer
        self._channel = channel
        self._progress = progress
        self._position = configure.resume
        self._avoid = frozenset(configure.avoid)
        self._pass_over = Counter(configure.pass_over)
        self._passed_over = 0
        self._stopping = threading.Event()
        self._trouble = False
        self._failures = 0
        self._skipped = 0
        self._set_aside = 0
        self._last_set_aside = ""
        self._next_report = 0.0

    def run(self) -> None:
        """Read until the source ends or `stop` is called."""
        while not self._stopping.is_set():
            try:
                self._use()
            finally:
                self._shut()
            if self._trouble:
                self._trouble = False
                self._progress.begin(Stage.WAIT)
                self._stopping.wait(REOPEN_DELAYS[min(self._failures, len(REOPEN_DELAYS) - 1)])
                self._failures += 1
        self._progress.begin(Stage.IDLE)

    def stop(self) -> None:
        """Make `run` return after the read under way."""
        self._stopping.set()

    def _use(self) -> None:
        self._progress.begin(Stage.OPEN)
        try:
            self._source.open(self._position)
            self._passed_over = 0
            self._channel.send(SourceState("open", "; ".join(self._source.remarks)))
            self._read_all()
        except SourceEnded as ended:
            self.ended = ended
            self._stopping.set()
            self._buffer.wake()
        except SourceError as error:
            self._report_trouble(str(error))
        except AgentGone:
            raise
        except Exception as error:  # noqa: BLE001  a plugin may raise anything; it is reported, and read again
            self._report_trouble(f"the plugin raised {type(error).__name__}: {error}")

    def _shut(self) -> None:
        self._progress.begin(Stage.SHUT)
        try:
            self._source.close()
        except Exception as error:  # noqa: BLE001  as above
            self._report_trouble(f"the plugin raised {type(error).__name__} as it was closed: {error}")
        self._report_left_out()

    def _report_trouble(self, reason: str) -> None:
        self._trouble = True
        self._channel.send(SourceState("trouble", reason))

    def _read_all(self) -> None:
        if not self._source.live or self._position is not None:
            self._progress.at(self._place)
        first = True
        while not self._stopping.is_set():
            sample = self._read()
            if (self._set_aside or self._source.skipped != self._skipped) and time.monotonic() >= self._next_report:
                self._report_left_out()
            if sample is None:
                continue
            self._progress.step(Stage.WAIT)
            if sample.position is None or not self._avoid or self._source.key(sample.position) not in self._avoid:
                # A model with a memory must not take the samples before a pause for those right before this one.
                self._buffer.put(msgspec.structs.replace(sample, first=True) if first else sample)
                first = False
            else:
                self._set_aside += 1
                self._last_set_aside = sample.position
            self._note(sample)

    def _read(self) -> Sample | None:
        self._progress.begin(Stage.READ)
        # A bad sample that the source would have skipped may lie before the deadly one: hence more than one, at times.
        while self._pass_over and self._passed_over < self._pass_over[self._place]:
            self._passed_over += 1
            self._source.pass_over()
        return self._source.read(READ_TIMEOUT)

    def _note(self, sample: Sample) -> None:
        self._position = sample.position
        self._passed_over = 0
        self._failures = 0
        if sample.position is not None:
            self._progress.at(self._source.key(sample.position))
        self._progress.finished()

    @property
    def _place(self) -> str:
        return self._source.key(self._position) if self._position else ""

    def _report_left_out(self) -> None:
        self._next_report = time.monotonic() + REPORT_INTERVAL
        if count := self._source.skipped - self._skipped:
            self._skipped = self._source.skipped
            newest = next(reversed(self._source.problems), "no reason given")
            self._channel.send(SourceState("skipped", newest, count))
        if self._set_aside:
            self._channel.send(SourceState("set_aside", self._last_set_aside, self._set_aside))
            self._set_aside = 0
