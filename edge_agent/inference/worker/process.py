"""The worker process: owns the source and the Edge TPU, and may die without harm.

Three threads: the main one obeys the agent and builds models, one captures (`capture`), one runs the model (`runner`).
A new model is built and tried while the old one goes on; the thread that runs it then takes it between two invokes.
Started as `python -m edge_agent.inference.worker SOCKET PAGE` with two inherited file descriptors.
"""

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
from functools import partial
from pathlib import Path

from edge_agent.inference.child import die_with_parent, volunteer_for_oom_killer
from edge_agent.inference.interpreter.model import LoadedModel
from edge_agent.inference.progress import ProgressPage, Reporter, Stage, Track
from edge_agent.inference.protocol import (
    AgentGone,
    Channel,
    Configure,
    EndShadow,
    Keep,
    Load,
    Loaded,
    Ready,
    Revert,
    Stop,
)
from edge_agent.inference.runtime.runtimes import Runtime, RuntimeUnavailable, find_runtime
from edge_agent.inference.worker.buffer import SampleBuffer
from edge_agent.inference.worker.capture import Capture
from edge_agent.inference.worker.loading import load_model
from edge_agent.inference.worker.runner import Inference, InvokesFail
from edge_agent.inference.worker.selection import Selection
from edge_agent.records import LoadReport
from edge_agent.sources.base import Source
from edge_agent.sources.base import build as build_source

# Below the agent's own deadline for the worker (supervisor.STOP_DEADLINE).
STOP_DEADLINE = 1.0
EXIT_CRASHED = 70
# A source that is busy in Python lets the thread with the model go on after so many seconds. With Python's 5 ms, each
# invoke would wait that long to be taken note of: a flood of lines from a program then leaves a fifth of the results.
SWITCH_INTERVAL = 0.001


class Worker:
    """The main thread: obeys the agent, builds models, ends the process."""

    def __init__(self, channel: Channel, page: ProgressPage, configure: Configure) -> None:
        self._channel = channel
        self._progress = Reporter(page, Track.CONTROL)
        self._options = configure.model
        self._root = Path(configure.root)
        self._source: Source = build_source(pkgutil.resolve_name(configure.plugin), configure.options)
        self._buffer = SampleBuffer(live=self._source.live)
        self._capture = Capture(self._source, self._buffer, channel, Reporter(page, Track.CAPTURE), configure)
        selection = None
        if configure.raw_data is not None:
            selection = Selection(configure.raw_data, configure.model.task)
        self._inference = Inference(self._buffer, channel, Reporter(page, Track.INFERENCE), self._source.key, selection)
        self._threads: list[threading.Thread] = []

    def run(self, runtime: Runtime) -> None:
        """Obey until told to stop, or until the agent is gone."""
        self._channel.send(Ready(str(runtime)))
        while True:
            self._progress.begin(Stage.IDLE)
            match self._channel.receive():
                case Load() as load:
                    self._load(runtime, load)
                case Revert(request) if self._threads:
                    self._order(partial(self._inference.revert, request))
                case Keep(request) if self._threads:
                    self._order(partial(self._inference.keep, request))
                    self._prefer_size(self._inference.model)
                case EndShadow() if self._threads:
                    self._order(self._inference.end_shadow)
                case None | Stop():
                    break
        self._stop()

    def _load(self, runtime: Runtime, load: Load) -> None:
        takes_over = load.role in {"use", "again"}
        if not (takes_over or self._threads):
            report = LoadReport(accepted=False, reason="there is no model in use that it could be kept beside")
            self._channel.send(Loaded(load.request, report))
            return
        model, report = load_model(
            runtime, load, self._options, self._inference.last, progress=self._progress, root=self._root
        )
        if model is None:
            self._channel.send(Loaded(load.request, report))
            return
        gc.collect()
        if not self._threads:
            # What was made while starting stays: keep the collector from walking it again and again. What later models
            # leave behind, such as ctypes' classes for each delegate, must not stay.
            gc.freeze()
        if takes_over:
            self._prefer_size(model)
        self._order(partial(self._inference.offer, model, load, report))

    def _order(self, give: Callable[[], None]) -> None:
        """Have something done between two invokes, and close what is no longer needed then."""
        # From here on the thread that runs the model has its say: what it does is no fault of a new model.
        self._progress.begin(Stage.WAIT)
        give()
        if not self._threads:
            self._start_threads()
        left = self._inference.wait_until_obeyed()
        self._progress.begin(Stage.CLOSE)
        while left:
            left.pop().close()

    def _prefer_size(self, model: LoadedModel | None) -> None:
        if model is not None and model.input.takes_images and self._options.fit == "stretch":
            _, height, width, _ = model.input.shape
            self._source.prefer_size(width, height, self._options.resize)

    def _start_threads(self) -> None:
        self._threads = [
            threading.Thread(target=guarded(self._inference.run, self._capture), name="inference", daemon=True),
            threading.Thread(target=guarded(self._capture.run), name="capture", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def _stop(self) -> None:
        self._capture.stop()
        self._inference.stop()
        self._buffer.close()
        deadline = time.monotonic() + STOP_DEADLINE
        for thread in self._threads:
            thread.join(max(0, deadline - time.monotonic()))
        inference_ended = not self._threads or not self._threads[0].is_alive()
        if inference_ended:
            self._progress.begin(Stage.CLOSE)
            self._inference.close()


def guarded(target: Callable[..., None], *arguments: object) -> Callable[[], None]:
    """Make an exception in a thread the end of the process, which the agent sees; a half-dead worker helps nobody.

    It ends at once: what Python does at its exit would close the device and let go of native code in any order.
    """

    def run() -> None:
        try:
            target(*arguments)
        except AgentGone:
            os._exit(0)
        except (InvokesFail, RuntimeUnavailable) as error:
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
    sys.setswitchinterval(SWITCH_INTERVAL)
    volunteer_for_oom_killer()
    # Ctrl-C in a terminal goes to the whole group; the agent decides what becomes of its worker.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    theirs, memory = int(sys.argv[1]), int(sys.argv[2])
    for descriptor in (theirs, memory):
        # A program that native code starts must not keep the agent from seeing that this process has ended.
        os.set_inheritable(descriptor, False)  # noqa: FBT003  it takes no names
    page = ProgressPage(memory)
    page.enter(Track.CONTROL, Stage.START)
    channel = Channel(socket.socket(fileno=theirs))
    configure = channel.receive()
    if not isinstance(configure, Configure):
        os._exit(0)
    Worker(channel, page, configure).run(find_runtime(configure.runtime))
    # Not sys.exit: a source hanging in native code must not keep the process.
    sys.stderr.flush()
    os._exit(0)
