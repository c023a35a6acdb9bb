"""One worker process with its socket, its progress page and its output."""

import asyncio
import contextlib
import os
import signal
import socket
from collections import deque

import structlog

from edge_agent.inference.child import child_environment, describe_exit, python_command
from edge_agent.inference.progress import ProgressPage, Stage, Track
from edge_agent.inference.protocol import HEAD, ToAgent, ToWorker, decode_length, frame, to_agent

log = structlog.get_logger()

_KEPT_LINES = 5
_LINE_LIMIT = 500
# What a worker has said before it ended is in the pipe; this is for a loop that has much else to do.
_LISTEN_ON = 1.0
# A process that waits for a device inside the kernel heeds SIGKILL when it comes back from there, if ever.
_KILL_DEADLINE = 5.0


class Rubbish(Exception):
    """What came is no message."""


class Connection:
    """A running worker. Made by `open`; `close` always ends the process, unless the kernel itself holds it."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        page: ProgressPage,
        *,
        said: asyncio.StreamReader,
        pipe: asyncio.ReadTransport,
    ) -> None:
        self.page = page
        self._process = process
        self._reader = reader
        self._writer = writer
        self._said = said
        self._pipe = pipe
        self._output: deque[str] = deque(maxlen=_KEPT_LINES)
        self._listener = asyncio.create_task(self._listen(), name="worker output")

    @classmethod
    async def open(cls) -> "Connection":
        """Start a worker."""
        with contextlib.ExitStack() as undo, contextlib.ExitStack() as childs:
            ours, theirs = socket.socketpair()
            undo.callback(ours.close)
            childs.callback(theirs.close)
            page = ProgressPage.create()
            undo.callback(page.close)
            page.enter(Track.CONTROL, Stage.START)
            # Not a pipe of asyncio's own: with that, waiting for the process means to wait for all who have the pipe.
            hear, say = os.pipe()
            childs.callback(os.close, say)
            said = asyncio.StreamReader()
            pipe, _ = await asyncio.get_running_loop().connect_read_pipe(
                lambda: asyncio.StreamReaderProtocol(said), os.fdopen(hear, "rb", buffering=0)
            )
            undo.callback(pipe.close)
            process = await asyncio.create_subprocess_exec(
                *python_command("edge_agent.inference.worker", str(theirs.fileno()), str(page.descriptor)),
                pass_fds=(theirs.fileno(), page.descriptor),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=say,
                stderr=asyncio.subprocess.STDOUT,
                env=child_environment(),
            )
            undo.pop_all()
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        return cls(process, reader, writer, page, said=said, pipe=pipe)

    @property
    def pid(self) -> int:
        """The number of the process."""
        return self._process.pid

    def send(self, message: ToWorker) -> bool:
        """Send a message; false when the worker is gone."""
        if self._writer.is_closing():
            return False
        self._writer.write(frame(message))
        return True

    async def receive(self) -> ToAgent | None:
        """Wait for a message; None when the worker has closed its end. Raises Rubbish."""
        try:
            length = decode_length(await self._reader.readexactly(HEAD))
            return to_agent.decode(await self._reader.readexactly(length))
        except ValueError as error:
            raise Rubbish(f"it sent rubbish: {error}") from error
        except (asyncio.IncompleteReadError, ConnectionResetError):
            return None

    async def wait_for_exit(self, seconds: float) -> str:
        """Say how the process ended, or that it did not end in time."""
        try:
            async with asyncio.timeout(seconds):
                return describe_exit(await self._process.wait())
        except TimeoutError:
            return "closed its connection but did not end"

    async def last_output(self) -> str:
        """The last lines that the process wrote, once it has ended."""
        await asyncio.wait([self._listener], timeout=_LISTEN_ON)
        return " | ".join(self._output)

    async def _listen(self) -> None:
        while True:
            try:
                line = await self._said.readline()
            except ValueError:
                continue  # a line longer than the stream's limit; the stream has dropped it
            if not line:
                return
            text = line.decode(errors="replace").strip()[:_LINE_LIMIT]
            if not text.startswith("INFO:"):  # the runtime's small talk is no hint at what it died of
                self._output.append(text)
            log.debug("worker says", text=text)

    async def close(self) -> None:
        """End the process if it still lives, and give everything back."""
        self._writer.close()
        if self._process.returncode is None:
            # Not Process.kill(): it reaps a process that has just ended, and asyncio then warns of an unknown child.
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGKILL)
        try:
            async with asyncio.timeout(_KILL_DEADLINE):
                await self._process.wait()
        except TimeoutError:
            log.error("worker cannot be killed: it waits inside the kernel, most likely for a device", pid=self.pid)
        # What it has started may hold the pipe open; what that says is of no interest.
        self._listener.cancel()
        self._pipe.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()
        self.page.close()
