"""A worker without an agent: the test is the agent's end of the socket."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from edge_agent.inference.progress import ProgressPage
from edge_agent.inference.protocol import HEAD, Configure, ToAgent, ToWorker, decode_length, frame, to_agent
from tests.inference.conftest import ROOT

Process = subprocess.Popen[str]


class Agent:
    """The agent's end of the socket, blocking."""

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(60)
        self._socket = sock
        self._stream = sock.makefile("rb")

    def receive(self) -> ToAgent | None:
        head = self._stream.read(HEAD)
        return to_agent.decode(self._stream.read(decode_length(head))) if head else None

    def send(self, message: ToWorker) -> None:
        self._socket.sendall(frame(message))

    def hang_up(self) -> None:
        self._stream.close()
        self._socket.close()


@contextmanager
def worker(configure: Configure, environ: dict[str, str] | None = None) -> Iterator[tuple[Agent, Process]]:
    """A real worker process, configured."""
    ours, theirs = socket.socketpair()
    page = ProgressPage.create()
    command = [sys.executable, "-m", "edge_agent.inference.worker", str(theirs.fileno()), str(page.descriptor)]
    with subprocess.Popen(
        command,
        pass_fds=(theirs.fileno(), page.descriptor),
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environ or dict(os.environ),
    ) as process:
        theirs.close()
        agent = Agent(ours)
        try:
            agent.send(configure)
            yield agent, process
        finally:
            agent.hang_up()
            process.kill()
            page.close()
