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


class Connection:
    """A running worker. Made by `open`; `close` always ends the process."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        page: ProgressPage,
    ) -> None:
        self.page = page
        self._process = process
        self._reader = reader
        self._writer = writer
        self._output: deque[str] = deque(maxlen=_KEPT_LINES)
        self._listener = asyncio.create_task(self._listen(), name="worker output")

    @classmethod
    async def open(cls) -> "Connection":
        """Start a worker."""
        ours, theirs = socket.socketpair()
        page = ProgressPage.create()
        page.enter(Track.CONTROL, Stage.START)
        try:
            process = await asyncio.create_subprocess_exec(
                *python_command("edge_agent.inference.worker", str(theirs.fileno()), str(page.descriptor)),
                pass_fds=(theirs.fileno(), page.descriptor),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                env=child_environment(),
            )
        except OSError:
            ours.close()
            page.close()
            raise
        finally:
            theirs.close()
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        return cls(process, reader, writer, page)

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
        """Wait for a message; None when the worker has closed its end. Raises ValueError for rubbish."""
        try:
            length = decode_length(await self._reader.readexactly(HEAD))
            return to_agent.decode(await self._reader.readexactly(length))
        except (asyncio.IncompleteReadError, ConnectionResetError):
            return None

    def hang_up(self) -> None:
        """Close our end: the worker ends by itself, and `receive` returns None."""
        self._writer.close()

    async def wait_for_exit(self, seconds: float) -> str:
        """Say how the process ended; a process that does not end in time is killed."""
        try:
            async with asyncio.timeout(seconds):
                return describe_exit(await self._process.wait())
        except TimeoutError:
            return "closed its connection but did not end"

    def last_output(self) -> str:
        """The last lines the process wrote."""
        return " | ".join(self._output)

    async def _listen(self) -> None:
        assert self._process.stdout is not None  # noqa: S101  a pipe was asked for
        while True:
            try:
                line = await self._process.stdout.readline()
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
        await self._process.wait()
        # A grandchild may hold the pipe open; what it says is of no interest.
        await asyncio.wait([self._listener], timeout=1.0)
        self._listener.cancel()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()
        self.page.close()
