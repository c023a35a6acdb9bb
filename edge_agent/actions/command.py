"""Runs one program of the operator's so that whatever it does stays its own affair.

- Its input is a file in memory: a program that does not read it, or stops half-way, disturbs nobody.
- Of its output only the end is kept.
- It leads a process group of its own, so that the time limit reaches what it has started too. A process that it
  leaves behind when it ends in time, or that has moved to a session of its own, stays.
- Starting and waiting happen in threads, for either may take as long as a worn SD card likes.
"""

import asyncio
import concurrent.futures
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import structlog

from edge_agent.programs import how_it_ended, why_not_started

# As the worker has: when memory runs out, the larger of them goes first, and the agent last.
_OOM_SCORE_ADJ = "500"
_OUTPUT_LINES = 20
_OUTPUT_BYTES = 4096
_READ_BYTES = 65536
# A pipe holds 64 KiB unless somebody has made it larger; more after the end comes from a process left behind.
_READS_AFTER_END = 4

T = TypeVar("T")
log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run went.

    `problem` and `advice` are for a person, and empty when all went well. `output` is the end of what the program
    printed. `seconds` is how long it ran. `started_ns` is the CLOCK_MONOTONIC of its start, None if it never ran.
    """

    problem: str
    advice: str
    output: str = ""
    seconds: float = 0.0
    started_ns: int | None = None


class Command:
    """One run of a program. Await `run` once; `signal` may be called at any time."""

    def __init__(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes,
        environ: Mapping[str, str],
        timeout: float,
        grace: float,
        on_start: Callable[[int], None],
    ) -> None:
        """`timeout` and `grace` are in seconds: from the start to SIGTERM, and from there to SIGKILL.

        `on_start` is called with the CLOCK_MONOTONIC in nanoseconds at which the program had been started.
        """
        self._argv = argv
        self._stdin = stdin
        self._environ = environ
        self._timeout = timeout
        self._grace = grace
        self._on_start = on_start
        # Both belong to whoever has the lock: a start that is not waited for any more must hear of its signal, too.
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._early_signal: signal.Signals | None = None

    async def run(self) -> Outcome:
        """Start the program and wait until it has ended, or was ended for running too long."""
        try:
            process, started_ns = await _in_thread(self._start)
        except (OSError, ValueError) as error:
            failure = error
            reason = await _in_thread(lambda: why_not_started(failure, self._argv[0], self._environ))
            return Outcome(*reason)
        assert process.stdout is not None  # noqa: S101 - for mypy: _start asks for a pipe
        with process.stdout as pipe:
            tail = _Tail(pipe.fileno())
            try:
                self._on_start(started_ns)
                late = await self._wait(process.pid)
            finally:
                if process.poll() is None:  # cancelled, or no thread to be had
                    self.signal(signal.SIGKILL)
                tail.close()
        verdict = _too_late(self._timeout) if late else _verdict(process.returncode)
        return Outcome(*verdict, tail.text(), (time.monotonic_ns() - started_ns) / 1e9, started_ns)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the program and all it has started; one that comes before the start is kept for it."""
        with self._lock:
            process = self._process
            if process is None:
                self._early_signal = number
        if process is not None and process.returncode is None:  # not reaped yet, so the number is still this group's
            try:
                os.killpg(process.pid, number)
            except PermissionError:
                log.warning(
                    "an action runs as another user and cannot be ended",
                    program=self._argv[0],
                    pid=process.pid,
                    advice="give it a time limit of its own, for instance with timeout(1)",
                )

    def _start(self) -> tuple[subprocess.Popen[bytes], int]:
        with os.fdopen(os.memfd_create("event"), "w+b") as stdin:
            stdin.write(self._stdin)
            stdin.seek(0)
            process = subprocess.Popen(
                self._argv,
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=self._environ,
                start_new_session=True,
            )
            started_ns = time.monotonic_ns()  # Popen returns when the program has taken the place of this one
        with self._lock:
            self._process = process
            early_signal = self._early_signal
        if early_signal is not None:
            self.signal(early_signal)
        # It may have ended already, or run as another user.
        with suppress(OSError):
            Path(f"/proc/{process.pid}/oom_score_adj").write_text(_OOM_SCORE_ADJ, encoding="ascii")
        return process, started_ns

    async def _wait(self, pid: int) -> bool:
        """Whether the program had to be ended for running too long."""
        ended = _in_thread(lambda: _wait_without_reaping(pid))
        if await _within(self._timeout, ended):
            return False
        self.signal(signal.SIGTERM)
        await _within(self._grace, ended)
        # Also when the program itself has ended: what it had started may have ignored the first signal.
        self.signal(signal.SIGKILL)
        await ended
        return True


class _Tail:
    """Reads a pipe as it fills and keeps the end."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._kept = b""
        os.set_blocking(fd, False)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(fd, self._read)

    def close(self) -> None:
        for _ in range(_READS_AFTER_END):
            if not self._read():
                break
        self._loop.remove_reader(self._fd)

    def text(self) -> str:
        lines = self._kept.decode(errors="backslashreplace").splitlines()
        return "\n".join(lines[-_OUTPUT_LINES:])

    def _read(self) -> bool:
        try:
            data = os.read(self._fd, _READ_BYTES)
        except BlockingIOError:
            return False
        if not data:
            self._loop.remove_reader(self._fd)
        self._kept = (self._kept + data)[-_OUTPUT_BYTES:]
        return bool(data)


def _in_thread(work: Callable[[], T]) -> asyncio.Future[T]:
    # Daemon threads, not an executor's: a program that even SIGKILL cannot end must not hold up the agent's end.
    outcome: concurrent.futures.Future[T] = concurrent.futures.Future()
    outcome.set_running_or_notify_cancel()

    def body() -> None:
        try:
            outcome.set_result(work())
        except Exception as error:  # noqa: BLE001 - it is raised where the future is awaited
            outcome.set_exception(error)

    threading.Thread(target=body, name="action", daemon=True).start()
    return asyncio.wrap_future(outcome)


def _wait_without_reaping(pid: int) -> None:
    # Until the event loop reaps it the number cannot pass to another process, which a signal would then hit.
    with suppress(ChildProcessError):
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


async def _within(seconds: float, future: asyncio.Future[None]) -> bool:
    done, _ = await asyncio.wait({future}, timeout=seconds)
    return bool(done)


def _too_late(timeout: float) -> tuple[str, str]:
    return (
        f"it did not end within {timeout:g} s and was ended",
        "make it faster, raise its timeout, or have it do long work in the background with its output elsewhere",
    )


def _verdict(status: int) -> tuple[str, str]:
    """Problem and advice for the return code of a `Popen`."""
    if status == 0:
        return "", ""
    return how_it_ended(status), "see its output; try it by hand with an event as its input"
