"""Runs a source in the real worker process, with a real model."""

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import edge_agent
from edge_agent.inference.child import child_environment, describe_exit, python_command
from edge_agent.inference.progress import ProgressPage
from edge_agent.inference.protocol import (
    HEAD,
    Configure,
    Load,
    Loaded,
    ModelOptions,
    Ready,
    Results,
    SourceState,
    Stop,
    ToAgent,
    ToWorker,
    decode_length,
    frame,
    to_agent,
)
from edge_agent.records import ModelFile, Result
from edge_agent.sources.base import Source
from edge_agent.testing.reading import checked

DEMO_MODEL = Path(edge_agent.__file__).parent / "demo" / "vibration_classifier.tflite"
DEMO_LABELS = ["normal", "warning", "failure"]
TIMEOUT = 60.0
_STDERR_BYTES = 4096


class WorkerDied(AssertionError):
    """The worker process has ended before it was told to. The message says how, and what it said last."""


@dataclass
class WorkerRun:
    """What the worker has told.

    `failed` samples could not be worked on, `failure` is the last reason: a source whose samples do not fit the model,
    for instance. `dropped` are those of a live source that the model had no time for. `states` are "open", "ended: …",
    "trouble: …" and "skipped: …", in their order.
    """

    results: list[Result] = field(default_factory=list)
    failed: int = 0
    failure: str = ""
    dropped: int = 0
    states: list[str] = field(default_factory=list)
    ended: bool = False


def run_in_worker(
    source: type[Source],
    options: Mapping[str, Any] | None = None,
    *,
    count: int = 10,
    model: Path | None = None,
    resume: str | None = None,
    timeout: float = TIMEOUT,
) -> WorkerRun:
    """Run a source in a worker until `count` of its samples were worked on, or it is at its end.

    The class must stand in a module, for the worker imports it. Without a `model` it is that of the demo, which takes
    128 values. Raises WorkerDied, or AssertionError when the model is refused or `timeout` seconds pass without news.
    """
    reference = f"{source.__module__}:{source.__qualname__}"
    configure = Configure(reference, checked(source, options or {}), ModelOptions(accelerator="cpu"), resume=resume)
    chosen = model or DEMO_MODEL
    labels = DEMO_LABELS if model is None else None
    with ExitStack() as stack:
        worker = _Worker(stack, timeout)
        worker.send(configure)
        worker.send(Load(1, ModelFile(str(chosen), chosen.stem, "test", labels)))
        run = WorkerRun()
        while len(run.results) + run.failed < count and not run.ended:
            _note(run, worker.receive(run))
        worker.stop()
    return run


def _note(run: WorkerRun, message: ToAgent) -> None:
    match message:
        case Ready():
            return
        case Loaded():
            assert message.report.accepted, f"the model is refused: {message.report.reason}"  # noqa: S101
        case Results():
            run.results += message.results
            run.failed += message.failed
            run.failure = message.failure or run.failure
            run.dropped += message.dropped
        case SourceState():
            run.states.append(f"{message.state}: {message.detail}" if message.detail else message.state)
            run.ended = run.ended or message.state == "ended"


class _Worker:
    """One worker process, for the length of the stack."""

    def __init__(self, stack: ExitStack, timeout: float) -> None:
        self._timeout = timeout
        self._socket, theirs = socket.socketpair()
        stack.callback(self._socket.close)
        self._stream = stack.enter_context(self._socket.makefile("rb"))
        self._socket.settimeout(timeout)
        self._page = ProgressPage.create()
        stack.callback(self._page.close)
        self._said: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  the stack closes it
        stack.callback(self._said.close)
        inherited = (theirs.fileno(), self._page.descriptor)
        with theirs:
            self._process = subprocess.Popen(
                python_command("edge_agent.inference.worker", *map(str, inherited)),
                pass_fds=inherited,
                stdin=subprocess.DEVNULL,
                stdout=self._said,
                stderr=subprocess.STDOUT,
                # The modules of the test are found where this process finds them.
                env=child_environment() | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            )
        stack.callback(self._end)

    def send(self, message: ToWorker) -> None:
        try:
            self._socket.sendall(frame(message))
        except BrokenPipeError:
            raise self._death() from None

    def receive(self, run: WorkerRun) -> ToAgent:
        try:
            head = self._stream.read(HEAD)
            body = self._stream.read(decode_length(head)) if len(head) == HEAD else b""
        except TimeoutError:
            doing = self._page.last_words()
            told = f"{len(run.results)} results, {run.failed} failed; the source: {run.states}; it is {doing}"
            raise AssertionError(f"no news from the worker for {self._timeout:g} s: {told}") from None
        except ConnectionResetError:
            body = b""
        if not body:
            raise self._death()
        return to_agent.decode(body)

    def stop(self) -> None:
        """End it in order. A source that is closed may still bring it down."""
        self.send(Stop())
        with suppress(ConnectionResetError):
            while self._stream.read(HEAD * 1024):
                pass
        if self._process.wait(self._timeout):
            raise self._death()

    def _death(self) -> WorkerDied:
        how = describe_exit(self._process.wait(self._timeout))
        size = self._said.seek(0, os.SEEK_END)
        self._said.seek(max(0, size - _STDERR_BYTES))
        said = self._said.read().decode(errors="replace").strip()
        return WorkerDied(f"{how} while {self._page.last_words()}" + (f"; it said:\n{said}" if said else ""))

    def _end(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
