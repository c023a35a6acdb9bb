"""Asks a module one question in a child process, which may crash, hang or talk without end.

The child is `python -P -m MODULE ARGUMENTS`. It reads the question from its standard input, writes the answer as JSON
to its standard output and exits with 0. A child that is not wanted any more is killed with its group; one that starts
groups of its own is told before with SIGTERM.
"""

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import Mapping
from typing import TypeVar

import msgspec

from edge_agent.inference.child import child_environment, python_command
from edge_agent.settings.units import format_duration

KILL_DEADLINE = 5.0
MAX_ANSWER = 16 * 1024 * 1024
MAX_STDERR = 4096
MAX_LINE = 500
STDERR_LINES = 3
_CHUNK = 65536

AnswerT = TypeVar("AnswerT")


_CRASHES = {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL}


class NoAnswerError(Exception):
    """There is no answer. The message goes on behind a subject: "was killed by SIGABRT; its last lines: …".

    `killed_by` is the signal that the child died of, if it was one. `late`: it did not end in time. `errors` is the end
    of its standard error.
    """

    def __init__(
        self, message: str, *, killed_by: signal.Signals | None = None, late: bool = False, errors: str = ""
    ) -> None:
        super().__init__(message)
        self.killed_by = killed_by
        self.late = late
        self.errors = errors

    @property
    def crashed(self) -> bool:
        """Tells a child that its own code brought down from one that was killed from outside or took too long."""
        return self.killed_by in _CRASHES


async def ask(
    kind: type[AnswerT],
    module: str,
    *arguments: str,
    question: bytes = b"",
    environment: Mapping[str, str] | None = None,
    timeout: float,  # noqa: ASYNC109  the message names it, and the child is ended in order
    grace: float = 0.0,
) -> AnswerT:
    """Return the child's answer as `kind`. Raises NoAnswerError.

    `environment` is `child_environment()` when not given. `grace` is how many seconds lie between SIGTERM and SIGKILL.
    """
    answer, errors = bytearray(), bytearray()
    try:
        child = await _start((module, *arguments), environment)
        try:
            await _talk(child, question, answer, errors, timeout)
        finally:
            await _end(child, grace)
        return msgspec.convert(json.loads(answer), kind)
    except NoAnswerError as error:
        text = errors.decode(errors="replace")
        message = f"{error}{_last_lines(errors)}"
        raise NoAnswerError(message, killed_by=error.killed_by, late=error.late, errors=text) from None
    except ValueError as error:
        raise NoAnswerError(f"gave an answer that is not understood{_last_lines(errors)}") from error


async def _start(arguments: tuple[str, ...], environment: Mapping[str, str] | None) -> asyncio.subprocess.Process:
    try:
        return await asyncio.create_subprocess_exec(
            *python_command(*arguments),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=child_environment() if environment is None else environment,
            start_new_session=True,  # so that whatever the child starts can be ended with it
        )
    except OSError as error:
        raise NoAnswerError(f"could not be started: {error.strerror}") from error


async def _talk(
    child: asyncio.subprocess.Process, question: bytes, answer: bytearray, errors: bytearray, seconds: float
) -> None:
    if child.stdin is None or child.stdout is None or child.stderr is None:
        raise RuntimeError("the child was started without pipes")
    reading = [_read(child.stdout, answer, MAX_ANSWER), _read(child.stderr, errors, MAX_STDERR)]
    try:
        async with asyncio.timeout(seconds):
            await asyncio.gather(_write(child.stdin, question), *reading)
            status = await child.wait()
    except TimeoutError:
        raise NoAnswerError(f"did not finish within {format_duration(seconds)}", late=True) from None
    if status != 0:
        raise _ending(status)


async def _write(stream: asyncio.StreamWriter, question: bytes) -> None:
    try:
        stream.write(question)
        await stream.drain()
        stream.close()
        await stream.wait_closed()
    except (BrokenPipeError, ConnectionResetError):
        return  # it ended before it read the question; its exit status tells more


async def _read(stream: asyncio.StreamReader, kept: bytearray, limit: int) -> None:
    """Read to the end, and keep the last `limit` bytes."""
    while chunk := await stream.read(_CHUNK):
        kept += chunk
        del kept[:-limit]


async def _end(child: asyncio.subprocess.Process, grace: float) -> None:
    try:
        if grace and child.returncode is None:
            _signal_group(child.pid, signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace):
                    await child.wait()
    finally:
        _signal_group(child.pid, signal.SIGKILL)
        await _bury(child)


async def _bury(child: asyncio.subprocess.Process) -> None:
    """Wait until it has ended, which one that waits inside the kernel does when it comes back from there, if ever."""
    try:
        async with asyncio.timeout(KILL_DEADLINE):
            await child.wait()
    except TimeoutError:
        import structlog  # noqa: PLC0415  the children import this module too

        what = "a check cannot be killed: it waits inside the kernel, most likely for a device"
        structlog.get_logger().error(what, pid=child.pid)


def _signal_group(leader: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):  # when it has ended, and so has all that it started
        os.killpg(leader, number)


def _ending(status: int) -> NoAnswerError:
    if status >= 0:
        return NoAnswerError(f"ended with exit status {status}")
    killed_by = signal.Signals(-status)
    return NoAnswerError(f"was killed by {killed_by.name}", killed_by=killed_by)


def _last_lines(errors: bytearray) -> str:
    lines = [line.strip()[:MAX_LINE] for line in errors.decode(errors="replace").splitlines() if line.strip()]
    return f"; its last lines: {' | '.join(lines[-STDERR_LINES:])}" if lines else ""
