"""The thread that runs the model: the only one that touches the model in use."""

import threading
import time
from collections.abc import Callable

from edge_agent.inference.interpreter.inputs import InputMismatch
from edge_agent.inference.interpreter.model import LoadedModel
from edge_agent.inference.latencies import StageLatencies
from edge_agent.inference.progress import Reporter, Stage
from edge_agent.inference.protocol import Channel, Figures, Loaded, Results, SourceState
from edge_agent.inference.tasks.base import OutputMismatch
from edge_agent.inference.worker.buffer import SampleBuffer
from edge_agent.inference.worker.capture import Capture
from edge_agent.inference.worker.selection import Counts, Selection
from edge_agent.records import Result, Sample

# Results are gathered for this long under load; at lower rates each goes out at once.
GATHER_NS = 10_000_000
MAX_BATCH = 128
FIGURES_NS = 5_000_000_000
# So many failed invokes in a row mean a device that is gone; a fresh process opens it again.
MAX_FAILURES = 5


class InvokesFail(Exception):
    """The model has failed again and again, so that the device is not trusted any more."""


class Inference:
    """Works on the samples of the buffer, one after the other."""

    def __init__(
        self,
        buffer: SampleBuffer,
        channel: Channel,
        progress: Reporter,
        key: Callable[[str], str],
        selection: Selection | None = None,
    ) -> None:
        """`key` is the source's `Source.key`. `selection` looks at each result, unless no input is to be kept."""
        self.last: Sample | None = None
        self._buffer = buffer
        self._channel = channel
        self._progress = progress
        self._key = key
        self._selection = selection
        self._latencies = StageLatencies()
        self._model: LoadedModel | None = None
        self._next: tuple[LoadedModel, Loaded] | None = None
        self._taken = threading.Event()
        self._request = 0
        self._results: list[Result] = []
        self._sent_ns = 0
        self._figures_ns = time.monotonic_ns()
        self._failed = 0
        self._clipped = 0
        self._figures_wait = False
        self._failures_in_a_row = 0
        self._failure = ""
        self._told = ""
        self._stopping = False

    def offer(self, model: LoadedModel, loaded: Loaded) -> None:
        """Hand over a new model from another thread, to be taken between two invokes."""
        self._taken.clear()
        self._next = (model, loaded)
        self._buffer.wake()

    def wait_until_taken(self) -> None:
        """Wait until the offered model is in use, and the one before it no longer."""
        self._taken.wait()

    def stop(self) -> None:
        """Make `run` return after the invoke under way, with all results sent."""
        self._stopping = True
        self._buffer.wake()

    def run(self, capture: Capture) -> None:
        """Work on samples until `stop` is called. Raises InvokesFail, with the device closed in order."""
        try:
            self._run(capture)
        except InvokesFail:
            if self._model is not None:
                self._progress.begin(Stage.CLOSE)
                self._model.close()
                self._progress.begin(Stage.INVOKE)
            raise

    def _run(self, capture: Capture) -> None:
        while not self._stopping:
            if self._next is not None:
                self._take_over()
            self._progress.begin(Stage.WAIT)
            samples = self._buffer.take(self._patience())
            for sample in samples:
                self._work(sample)
                if self._stopping:
                    break
            if not samples:
                self._idle(capture)
        self._flush()
        self._send_figures()
        self._progress.begin(Stage.IDLE)

    def _take_over(self) -> None:
        assert self._next is not None  # noqa: S101  only called when it is set
        self._flush()
        self._model, loaded = self._next
        self._request = loaded.request
        self._next = None
        self._channel.send(loaded)
        self._taken.set()

    def _patience(self) -> float | None:
        if self._results or self._failed:
            due = self._sent_ns + GATHER_NS
        elif self._figures_wait:
            due = self._figures_ns + FIGURES_NS
        else:
            return None
        return max(0, due - time.monotonic_ns()) / 1e9

    def _idle(self, capture: Capture) -> None:
        self._flush()
        if self._figures_wait and (capture.ended or time.monotonic_ns() - self._figures_ns >= FIGURES_NS):
            self._send_figures()
        if capture.ended is not None:
            self._channel.send(SourceState("ended", str(capture.ended)))
            capture.ended = None

    def _work(self, sample: Sample) -> None:
        if self._next is not None:
            self._take_over()
        assert self._model is not None  # noqa: S101  capture starts after the first model
        if sample.position is not None:
            self._progress.at(self._key(sample.position))
        if sample.first:
            self._model.reset_state()
        try:
            result = self._model.run(sample, self._progress, self._latencies)
            self._results.append(result if self._selection is None else self._selection.look(sample, result))
            self._clipped += result.clipped > 0
            self._failures_in_a_row = 0
        except (InputMismatch, OutputMismatch) as error:
            self._failed += 1
            self._failure = str(error)
        except RuntimeError as error:
            self._note_failure(error)
        if self._failures_in_a_row >= MAX_FAILURES:
            # Not above: the error's traceback holds the interpreter, which has to go before the device is closed.
            failure = self._failure
            self._flush()
            raise InvokesFail(f"the model failed {MAX_FAILURES} times in a row: {failure}")
        self.last = sample
        self._figures_wait = True
        self._progress.finished()
        now = time.monotonic_ns()
        if len(self._results) >= MAX_BATCH or now - self._sent_ns >= GATHER_NS:
            self._flush()
        if now - self._figures_ns >= FIGURES_NS:
            self._send_figures()

    def _note_failure(self, error: RuntimeError) -> None:
        # The runtime's text grows with every failure of the same interpreter; its end is the newest.
        text = str(error)
        failure = " ".join(text.removeprefix(self._told).split())[-200:]
        self._told, self._failure = text, failure
        self._failed += 1
        self._failures_in_a_row += 1

    def _flush(self) -> None:
        if not self._results and not self._failed:
            return
        dropped = self._buffer.take_dropped()
        message = Results(self._request, self._results, dropped, self._failed, self._failure)
        self._progress.step(Stage.SEND)
        self._channel.send(message)
        self._results = []
        self._failed = 0
        self._failure = ""
        self._sent_ns = time.monotonic_ns()

    def _send_figures(self) -> None:
        self._progress.step(Stage.SEND)
        kept = self._selection.take_counts() if self._selection is not None else Counts()
        self._channel.send(Figures(self._latencies.take(), self._clipped, kept.over_budget, kept.failed, kept.failure))
        self._clipped = 0
        self._figures_wait = False
        self._figures_ns = time.monotonic_ns()
