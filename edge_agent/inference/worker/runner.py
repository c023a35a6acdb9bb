"""The thread that runs the model: the only one that touches the model in use, and those that are kept beside it.

While a model is on trial the one before it is kept. Where the new one fails on a sample that the one before can work
on, that one takes over again at once, so the sample is not lost. A sample that both fail on is to blame itself.
"""

import threading
import time
from collections.abc import Callable
from functools import partial

import msgspec

from edge_agent.inference.interpreter.inputs import InputMismatch
from edge_agent.inference.interpreter.model import LoadedModel
from edge_agent.inference.latencies import StageLatencies
from edge_agent.inference.progress import Reporter, Stage
from edge_agent.inference.protocol import (
    Channel,
    Figures,
    Load,
    Loaded,
    Results,
    Reverted,
    ShadowEnded,
    SourceState,
)
from edge_agent.inference.tasks.base import OutputMismatch
from edge_agent.inference.worker.buffer import SampleBuffer
from edge_agent.inference.worker.capture import Capture
from edge_agent.inference.worker.selection import Counts, Selection
from edge_agent.inference.worker.shadow import Shadow
from edge_agent.records import LoadReport, Result, Sample

# Results are gathered for this long under load; at lower rates each goes out at once.
GATHER_NS = 10_000_000
MAX_BATCH = 128
FIGURES_NS = 5_000_000_000
# So many failed invokes in a row mean a device that is gone; a fresh process opens it again.
MAX_FAILURES = 5


class InvokesFail(Exception):
    """The model has failed again and again, so that the device is not trusted any more."""


class Kept(msgspec.Struct, frozen=True):
    """A model beside the one in use, and the load request that it was built for."""

    model: LoadedModel
    request: int


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
        self._worked = False
        self._buffer = buffer
        self._channel = channel
        self._progress = progress
        self._key = key
        self._selection = selection
        self._latencies = StageLatencies()
        self._model: LoadedModel | None = None
        self._request = 0
        self._spare: Kept | None = None
        self._on_trial = False
        self._shadow: Shadow | None = None
        self._left: list[LoadedModel] = []
        self._order: Callable[[], None] | None = None
        self._obeyed = threading.Event()
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

    def offer(self, model: LoadedModel, load: Load, report: LoadReport) -> None:
        """Hand over a new model from another thread, to be taken between two invokes in the role that `load` names."""
        self._give(partial(self._take, model, load, report))

    def revert(self, request: int) -> None:
        """Go back to the model of this load request, if that is kept beside the one in use."""
        self._give(partial(self._revert, request))

    def keep(self, request: int) -> None:
        """Leave what is kept beside the model of this load request, if that is in use."""
        self._give(partial(self._keep, request))

    def end_shadow(self) -> None:
        """Leave the shadow."""
        self._give(self._leave_shadow)

    def wait_until_obeyed(self) -> list[LoadedModel]:
        """Wait until that is done; returns the models that are no longer needed, to be closed."""
        self._obeyed.wait()
        left, self._left = self._left, []
        return left

    @property
    def model(self) -> LoadedModel | None:
        """The model in use."""
        return self._model

    def close(self) -> None:
        """Close all models, once `run` has returned."""
        kept = [self._shadow.model if self._shadow else None, self._spare.model if self._spare else None, self._model]
        self._shadow = self._spare = self._model = None
        while kept:
            if (model := kept.pop(0)) is not None:
                model.close()

    def stop(self) -> None:
        """Make `run` return after the invoke under way, with all results sent."""
        self._stopping = True
        self._buffer.wake()

    def run(self, capture: Capture) -> None:
        """Work on samples until `stop` is called. Raises InvokesFail, with the device closed in order."""
        try:
            self._run(capture)
        except InvokesFail:
            last = Stage.BOTH_FAIL if self._on_trial else Stage.INVOKE
            self._progress.begin(Stage.CLOSE)
            self.close()
            self._progress.begin(last)
            raise

    def _run(self, capture: Capture) -> None:
        while not self._stopping:
            if self._order is not None:
                self._obey()
            self._progress.begin(Stage.WAIT)
            samples = self._buffer.take(self._patience())
            for sample in samples:
                result = self._work(sample)
                if self._shadow is not None:
                    self._run_shadow(sample, result)
                if self._stopping:
                    break
            if not samples:
                self._idle(capture)
        self._flush()
        self._send_figures()
        self._progress.begin(Stage.IDLE)

    # -- orders from the main thread

    def _give(self, order: Callable[[], None]) -> None:
        self._obeyed.clear()
        self._order = order
        self._buffer.wake()

    def _obey(self) -> None:
        order, self._order = self._order, None
        assert order is not None  # noqa: S101  only called when it is set
        order()
        self._obeyed.set()

    def _take(self, model: LoadedModel, load: Load, report: LoadReport) -> None:
        self._flush()
        if load.role == "shadow":
            self._leave_shadow()
            self._shadow = Shadow(model, load)
        elif load.role == "spare":
            self._set_spare(Kept(model, load.request))
        else:
            before = Kept(self._model, self._request) if self._model is not None else None
            if load.role == "use":
                self._set_spare(before if load.terms.trial else None)
            if before is not None and before is not self._spare:
                self._left.append(before.model)
            self._model, self._request = model, load.request
        self._channel.send(Loaded(load.request, report))

    def _set_spare(self, spare: Kept | None) -> None:
        if self._spare is not None:
            self._left.append(self._spare.model)
        self._spare, self._on_trial = spare, spare is not None

    def _keep(self, request: int) -> None:
        # What was said of another model has been overtaken by what this thread has done.
        if request == self._request:
            self._set_spare(None)

    def _revert(self, request: int) -> None:
        if self._spare is not None and self._spare.request == request:
            self._spare.model.reset_state()
            self._go_back("")

    def _go_back(self, reason: str) -> None:
        assert self._spare is not None  # noqa: S101  asked before
        assert self._model is not None  # noqa: S101  as above
        self._flush()
        back, self._spare = self._spare, Kept(self._model, self._request)
        self._model, self._request = back.model, back.request
        self._on_trial = False
        self._channel.send(Reverted(back.request, reason))

    def _leave_shadow(self) -> None:
        if self._shadow is not None:
            self._send_tally()
            self._left.append(self._shadow.model)
            self._shadow = None

    # -- samples

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

    def _remember(self, sample: Sample, *, worked: bool) -> None:
        """Keep what other models are tried with: once a model could work on some, none that no model could."""
        self._worked = self._worked or worked
        if worked or not self._worked:
            self.last = sample

    def _work(self, sample: Sample) -> Result | None:
        if self._order is not None:
            self._obey()
        assert self._model is not None  # noqa: S101  capture starts after the first model
        if sample.position is not None:
            self._progress.at(self._key(sample.position))
        if sample.first:
            self._model.reset_state()
        result = None
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
        # Not above: the error's traceback holds the interpreter, which has to go before the device is closed.
        if result is None and self._on_trial:
            result = self._fall_back(sample)
        if self._failures_in_a_row >= MAX_FAILURES:
            failure = self._failure
            self._flush()
            raise InvokesFail(f"the model failed {MAX_FAILURES} times in a row: {failure}")
        self._remember(sample, worked=result is not None)
        self._figures_wait = True
        self._progress.finished()
        now = time.monotonic_ns()
        if len(self._results) >= MAX_BATCH or now - self._sent_ns >= GATHER_NS:
            self._flush()
        if now - self._figures_ns >= FIGURES_NS:
            self._send_figures()
        return result

    def _fall_back(self, sample: Sample) -> Result | None:
        """Let the model before work on a sample that the one on trial has failed on; if it can, it takes over again."""
        assert self._spare is not None  # noqa: S101  kept as long as the trial lasts
        model = self._spare.model
        # It has not seen the samples before this one.
        model.reset_state()
        try:
            result = model.run(sample, self._progress, self._latencies)
        except (InputMismatch, OutputMismatch, RuntimeError):
            return None  # the sample is to blame, or the device; it is counted as the other model's failure
        reason = self._failure
        self._failed -= 1
        self._failure, self._failures_in_a_row, self._told = "", 0, ""
        self._go_back(reason)
        self._results.append(result if self._selection is None else self._selection.look(sample, result))
        self._clipped += result.clipped > 0
        return result

    def _run_shadow(self, sample: Sample, result: Result | None) -> None:
        shadow = self._shadow
        assert shadow is not None  # noqa: S101  asked before
        if sample.first:
            shadow.model.reset_state()
        if result is None or not shadow.is_due():
            return
        self._flush()
        self._progress.begin(Stage.SHADOW)
        reason = None
        try:
            shadow.run(sample, result)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[-200:]
        if reason is not None:
            # Not above: the error's traceback holds the interpreter.
            self._send_tally()
            self._shadow = None
            shadow.model.close()
            self._channel.send(ShadowEnded(shadow.request, reason))
        self._progress.begin(Stage.WAIT)

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
        self._send_tally()
        self._clipped = 0
        self._figures_wait = False
        self._figures_ns = time.monotonic_ns()

    def _send_tally(self) -> None:
        if self._shadow is not None and (tally := self._shadow.take()) is not None:
            self._channel.send(tally)
