"""The worker process: owns the source and the Edge TPU, and may die without harm.

Three threads: the main one obeys the agent and builds models, one captures, one runs the model. A new model is
built and warmed up while the old one goes on; the inference thread then takes it between two invokes. Started as
`python -m edge_agent.inference.worker SOCKET PAGE` with two inherited file descriptors.
"""

import contextlib
import gc
import os
import pkgutil
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable

from edge_agent.inference.buffer import SampleBuffer
from edge_agent.inference.child import die_with_parent, volunteer_for_oom_killer
from edge_agent.inference.inputs import InputMismatch
from edge_agent.inference.model import LoadedModel, build
from edge_agent.inference.progress import ProgressPage, Reporter, Stage, Track
from edge_agent.inference.protocol import AgentGone, Channel, Configure, Load, Loaded, Ready, Results, SourceState, Stop
from edge_agent.inference.refusal import ModelRefused
from edge_agent.inference.runtimes import Runtime, find_runtime
from edge_agent.inference.tasks.base import OutputMismatch
from edge_agent.records import LoadReport, Result, Sample
from edge_agent.sources.base import Source, SourceEnded, SourceError
from edge_agent.sources.base import build as build_source

# Results are gathered for this long under load; at lower rates each goes out at once.
GATHER_NS = 10_000_000
MAX_BATCH = 128
READ_TIMEOUT = 0.5
REPORT_INTERVAL = 5.0
REOPEN_DELAYS = (1.0, 2.0, 5.0, 10.0, 30.0)
# So many failed invokes in a row mean a device that is gone; a fresh process opens it again.
MAX_FAILURES = 5
# Below the agent's own deadline for the worker (supervisor.STOP_DEADLINE).
STOP_DEADLINE = 1.0
EXIT_CRASHED = 70


class InvokesFail(Exception):
    """The model has failed again and again, so that the device is not trusted any more."""


class Capture:
    """The capture thread: opens the source, reads it, and opens it again after trouble."""

    def __init__(self, source: Source, buffer: SampleBuffer, channel: Channel, progress: Reporter) -> None:
        self.ended: SourceEnded | None = None
        self._source = source
        self._buffer = buffer
        self._channel = channel
        self._progress = progress
        self._stopping = threading.Event()
        self._position: str | None = None
        self._failures = 0
        self._skipped = 0
        self._next_report = 0.0

    def run(self, resume: str | None) -> None:
        """Read until the source ends or `stop` is called."""
        self._position = resume
        while not self._stopping.is_set():
            try:
                self._progress.begin(Stage.OPEN)
                self._source.open(self._position)
                self._channel.send(SourceState("open"))
                self._read_all()
            except SourceEnded as ended:
                self.ended = ended
                self._buffer.wake()
                return
            except SourceError as error:
                self._wait_after(str(error))
            except AgentGone:
                raise
            except Exception as error:  # noqa: BLE001  a plugin may raise anything; it is reported, and read again
                self._wait_after(f"the plugin raised {type(error).__name__}: {error}")
            finally:
                self._progress.begin(Stage.IDLE)
                self._source.close()

    def _wait_after(self, reason: str) -> None:
        self._channel.send(SourceState("trouble", reason))
        self._progress.begin(Stage.WAIT)
        self._stopping.wait(REOPEN_DELAYS[min(self._failures, len(REOPEN_DELAYS) - 1)])
        self._failures += 1

    def _read_all(self) -> None:
        while not self._stopping.is_set():
            self._progress.begin(Stage.READ)
            sample = self._source.read(READ_TIMEOUT)
            if self._source.skipped != self._skipped:
                self._report_skipped()
            if sample is None:
                continue
            self._progress.step(Stage.WAIT)
            self._buffer.put(sample)
            self._position = sample.position
            self._failures = 0
            self._progress.finished()

    def _report_skipped(self) -> None:
        now = time.monotonic()
        if now < self._next_report:
            return
        self._next_report = now + REPORT_INTERVAL
        count, self._skipped = self._source.skipped - self._skipped, self._source.skipped
        newest = next(reversed(self._source.problems), "no reason given")
        self._channel.send(SourceState("skipped", f"{count} samples; {newest}"))

    def stop(self) -> None:
        """Make `run` return after the read under way."""
        self._stopping.set()


class Inference:
    """The inference thread: the only one that touches the model in use."""

    def __init__(self, buffer: SampleBuffer, channel: Channel, progress: Reporter) -> None:
        self.last: Sample | None = None
        self._buffer = buffer
        self._channel = channel
        self._progress = progress
        self._model: LoadedModel | None = None
        self._next: tuple[LoadedModel, Loaded] | None = None
        self._taken = threading.Event()
        self._request = 0
        self._results: list[Result] = []
        self._sent_ns = 0
        self._failed = 0
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
        """Work on samples until `stop` is called."""
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

    def _take_over(self) -> None:
        assert self._next is not None  # noqa: S101  only called when it is set
        self._flush()
        self._model, loaded = self._next
        self._request = loaded.request
        self._next = None
        self._channel.send(loaded)
        self._taken.set()

    def _patience(self) -> float | None:
        if not self._results:
            return None
        return max(0, self._sent_ns + GATHER_NS - time.monotonic_ns()) / 1e9

    def _idle(self, capture: Capture) -> None:
        if self._results or self._failed:
            self._flush()
        if capture.ended is not None:
            self._channel.send(SourceState("ended", str(capture.ended)))
            capture.ended = None

    def _work(self, sample: Sample) -> None:
        if self._next is not None:
            self._take_over()
        assert self._model is not None  # noqa: S101  capture starts after the first model
        try:
            self._results.append(self._model.run(sample, self._progress))
            self._failures_in_a_row = 0
        except (InputMismatch, OutputMismatch) as error:
            self._failed += 1
            self._failure = str(error)
        except RuntimeError as error:
            self._fail(error)
        self.last = sample
        self._progress.finished()
        if len(self._results) >= MAX_BATCH or time.monotonic_ns() - self._sent_ns >= GATHER_NS:
            self._flush()

    def _fail(self, error: RuntimeError) -> None:
        # The runtime's text grows with every failure of the same interpreter; its end is the newest.
        text = str(error)
        failure = " ".join(text.removeprefix(self._told).split())[-200:]
        self._told, self._failure = text, failure
        self._failed += 1
        self._failures_in_a_row += 1
        if self._failures_in_a_row >= MAX_FAILURES:
            self._flush()
            self._progress.step(Stage.INVOKE)
            raise InvokesFail(f"the model failed {MAX_FAILURES} times in a row: {failure}") from error

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


class Worker:
    """The main thread: obeys the agent, builds models, ends the process."""

    def __init__(self, channel: Channel, page: ProgressPage, configure: Configure) -> None:
        self._channel = channel
        self._progress = Reporter(page, Track.CONTROL)
        self._options = configure.model
        self._resume = configure.resume
        source: Source = build_source(pkgutil.resolve_name(configure.plugin), configure.options)
        self._buffer = SampleBuffer(live=source.live)
        self._capture = Capture(source, self._buffer, channel, Reporter(page, Track.CAPTURE))
        self._inference = Inference(self._buffer, channel, Reporter(page, Track.INFERENCE))
        self._model: LoadedModel | None = None
        self._threads: list[threading.Thread] = []

    def run(self, runtime: Runtime) -> None:
        """Obey until told to stop, or until the agent is gone."""
        self._channel.send(Ready(str(runtime)))
        while True:
            self._progress.begin(Stage.IDLE)
            message = self._channel.receive()
            if isinstance(message, Load):
                self._progress.begin(Stage.LOAD)
                self._load(runtime, message)
            elif message is None or isinstance(message, Stop):
                break
        self._stop()

    def _load(self, runtime: Runtime, load: Load) -> None:
        start = time.monotonic()
        model = None
        try:
            model = build(runtime, load.model, self._options, self._inference.last)
        except ModelRefused as refused:
            report = LoadReport(accepted=False, reason=str(refused), permanent=refused.permanent)
        if model is None:
            # Told only here: the exception keeps the refused model, and with it the device.
            self._channel.send(Loaded(load.request, report))
            return
        report = LoadReport(
            accepted=True,
            accelerator=model.accelerator,
            degraded=model.degraded,
            detail=f"input {model.input}, {model.task}, "
            f"built in {(time.monotonic() - start) * 1000:.0f} ms by {runtime}",
        )
        # From here on the thread that runs the model has its say: what it does is no fault of the new model.
        self._progress.begin(Stage.WAIT)
        # What was made while starting and loading stays: keep the collector from walking it again and again.
        gc.collect()
        gc.freeze()
        old, self._model = self._model, model
        self._inference.offer(model, Loaded(load.request, report))
        if not self._threads:
            self._start_threads()
        self._inference.wait_until_taken()
        if old is not None:
            old.close()

    def _start_threads(self) -> None:
        self._threads = [
            threading.Thread(target=guarded(self._inference.run, self._capture), name="inference", daemon=True),
            threading.Thread(target=guarded(self._capture.run, self._resume), name="capture", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def _stop(self) -> None:
        self._capture.stop()
        self._inference.stop()
        deadline = time.monotonic() + STOP_DEADLINE
        for thread in self._threads:
            thread.join(max(0, deadline - time.monotonic()))
        inference_ended = not self._threads or not self._threads[0].is_alive()
        if self._model is not None and inference_ended:
            self._model.close()


def guarded(target: Callable[..., None], argument: object) -> Callable[[], None]:
    """Make an exception in a thread the end of the process, which the agent sees; a half-dead worker helps nobody."""

    def run() -> None:
        try:
            target(argument)
        except AgentGone:
            os._exit(0)
        except InvokesFail as error:
            sys.stderr.write(f"{error}\n")
            sys.stderr.flush()
            os._exit(EXIT_CRASHED)
        except BaseException:  # noqa: BLE001  reported on stderr, which the agent keeps for its report of the death
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(EXIT_CRASHED)

    return run


def main() -> None:
    """Run the worker on the two file descriptors named on the command line."""
    die_with_parent()
    volunteer_for_oom_killer()
    # Ctrl-C in a terminal goes to the whole group; the agent decides what becomes of its worker.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    page = ProgressPage(int(sys.argv[2]))
    page.enter(Track.CONTROL, Stage.START)
    channel = Channel(socket.socket(fileno=int(sys.argv[1])))
    configure = channel.receive()
    if not isinstance(configure, Configure):
        os._exit(0)
    with contextlib.suppress(AgentGone):
        Worker(channel, page, configure).run(find_runtime())
    # Not sys.exit: a source hanging in native code must not keep the process.
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
