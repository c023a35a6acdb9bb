"""Runs a program and hands out the lines that it prints.

The program and all it starts are a process group of their own, led by a guard: a shell that waits for the end of a pipe
which only this process holds. When this process dies, however suddenly, the guard kills the group. The kernel's parent
death signal would reach the program alone and not what it has started, so a pipeline that waits for a silent sensor
would go on holding it; and a program with set-uid bits would not get it at all. A guard takes some 100 kB of memory.

Nothing is read ahead of who takes the lines, beyond one chunk and what the kernel's pipe holds: a program that prints
faster than that waits.
"""

import math
import os
import select
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from edge_agent.programs import how_it_ended
from edge_agent.sources.formats import MAX_LINE

# It ignores what is meant for the program.
_GUARD = ("/bin/sh", "-c", 'trap "" HUP INT QUIT TERM; read -r _; kill -KILL 0')
_CHUNK = 65536
# A pipe holds at most so many chunks, unless root has made it larger; more comes from a process that was left behind.
_CHUNKS_AFTER_END = 16
_STDERR_BYTES = 4096
_STDERR_LINES = 3
_LINE_CHARACTERS = 300
# Between a closed output and the end of the program; from SIGTERM to SIGKILL, within worker.STOP_DEADLINE; and from
# there to its end, as it may keep its sensor from the next one: within hangs.SHUT_DEADLINE.
_LINGER = 2.0
_GRACE = 0.5
_PATIENCE = 10.0


class Ended(Exception):
    """The program has ended, and all its lines were handed out. `status` as in `subprocess.Popen.returncode`."""

    def __init__(self, status: int, last_lines: str) -> None:
        self.status = status
        super().__init__(f"{how_it_ended(status)}{last_lines}")


class Printer:
    """One run of a program. `close` always ends it, with all it has started in its process group."""

    def __init__(
        self, run: Sequence[str], environ: Mapping[str, str], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Start the program. Raises OSError or ValueError."""
        self.arrived_ns = 0
        self._clock = clock
        self._lines: deque[bytes] = deque()
        self._partial = bytearray()
        self._errors = b""
        self._silent_since: float | None = None
        self._exited = False
        pipe, null = subprocess.PIPE, subprocess.DEVNULL
        self._guard = subprocess.Popen(_GUARD, stdin=pipe, stdout=null, stderr=null, process_group=0)
        try:
            self._process = subprocess.Popen(
                run, stdin=null, stdout=pipe, stderr=pipe, env=environ, process_group=self._guard.pid
            )
        except BaseException:
            self._end_guard()
            raise
        self._pidfd = os.pidfd_open(self._process.pid)
        self._stdout, self._stderr = (_unblocked(stream) for stream in (self._process.stdout, self._process.stderr))
        self._poll = select.poll()
        for descriptor in (self._stdout, self._stderr, self._pidfd):
            self._poll.register(descriptor, select.POLLIN)

    def next_line(self, timeout: float) -> bytes | None:
        """Return the next line without its newline, None when there was none within `timeout` seconds.

        Raises Ended, or ValueError when what it prints can be no samples. `arrived_ns` is then when the line came.
        """
        give_up = self._clock() + timeout
        while not self._lines:
            if self._exited:
                raise Ended(self._process.wait(), self.last_lines())
            if not self._gather(max(0.0, give_up - self._clock())):
                return None
        return self._lines.popleft()

    def last_lines(self) -> str:
        """Return the end of what it wrote to its standard error, to be put behind a reason."""
        text = self._errors.decode(errors="backslashreplace")
        lines = [line.strip()[:_LINE_CHARACTERS] for line in text.splitlines() if line.strip()]
        return f"; its last lines: {' | '.join(lines[-_STDERR_LINES:])}" if lines else ""

    def close(self) -> None:
        """End it: SIGTERM, a moment of grace, SIGKILL for the whole group."""
        if not self._exited:
            os.killpg(self._guard.pid, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_GRACE)
        self._end_guard()
        with suppress(subprocess.TimeoutExpired):  # it hangs in the kernel, and goes when it can
            self._process.wait(_PATIENCE)
        for stream in (self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()
        os.close(self._pidfd)

    def _end_guard(self) -> None:
        # Not reaped yet, so the number is still the group's, even if nobody else is left in it.
        os.killpg(self._guard.pid, signal.SIGKILL)
        self._guard.wait()
        if self._guard.stdin is not None:
            self._guard.stdin.close()

    def _gather(self, timeout: float) -> bool:
        """Wait for something to happen, and take it. Returns False if nothing did."""
        happened = {descriptor for descriptor, _ in self._poll.poll(math.ceil(timeout * 1000))}
        if self._stderr in happened:
            self._take_errors()
        if self._stdout in happened:
            self._take_output()
        if self._pidfd in happened:
            self._take_rest()
        elif self._silent_since is not None and self._clock() >= self._silent_since + _LINGER:
            raise ValueError("it has closed its standard output, but goes on running")
        return bool(happened)

    def _take_output(self) -> bool:
        try:
            chunk = os.read(self._stdout, _CHUNK)
        except BlockingIOError:
            return False
        if not chunk:
            if self._silent_since is None:
                self._poll.unregister(self._stdout)
                self._silent_since = self._clock()
            return False
        self.arrived_ns = time.monotonic_ns()
        first, *others = chunk.split(b"\n")
        self._partial += first
        if others:
            self._lines.append(bytes(self._partial))
            self._partial = bytearray(others.pop())
            self._lines.extend(others)
        if len(self._partial) > MAX_LINE:
            raise ValueError(f"it prints a line that is longer than {MAX_LINE >> 20} MiB")
        return True

    def _take_errors(self) -> bool:
        try:
            chunk = os.read(self._stderr, _CHUNK)
        except BlockingIOError:
            return False
        if not chunk:
            with suppress(KeyError):  # it had told of its end before
                self._poll.unregister(self._stderr)
        self._errors = (self._errors + chunk)[-_STDERR_BYTES:]
        return bool(chunk)

    def _take_rest(self) -> None:
        for take in (self._take_errors, self._take_output):
            for _ in range(_CHUNKS_AFTER_END):
                if not take():
                    break
        if self._partial:
            self._lines.append(bytes(self._partial))
        self._exited = True


def _unblocked(stream: object) -> int:
    assert hasattr(stream, "fileno")  # noqa: S101  a pipe was asked for
    descriptor: int = stream.fileno()
    os.set_blocking(descriptor, False)
    return descriptor
