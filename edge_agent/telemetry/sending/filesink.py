"""Events appended to a file of JSON lines, for devices without a cloud and for trying things out.

The file is opened anew for each batch, so logrotate needs no signal. A batch is on the disk (fdatasync) before it
counts as sent, since the queue forgets it then. A line torn by a crash or a full disk is ended before the next
batch: a reader finds one line that is no JSON, and no event glued to it.
"""

import errno
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from edge_agent.telemetry.sending.sinks import DaemonThread, SinkError, SinkNeedsPerson, SinkUnavailable

_CLOSE_WITHIN = 0.8
_FULL = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the disk quota is used up"}
_ADVICE = {
    **dict.fromkeys(_FULL, "free some space, or name another file in [telemetry] sink"),
    errno.EACCES: "let the service's user write there, or name another file in [telemetry] sink",
    errno.EPERM: "let the service's user write there, or name another file in [telemetry] sink",
    errno.EROFS: "name a file in [telemetry] sink that the service can write, for instance below its state folder",
    errno.EISDIR: "name a file in [telemetry] sink, not a folder",
    errno.ENOTDIR: "correct the path in [telemetry] sink",
    errno.EEXIST: "correct the path in [telemetry] sink",
    errno.ELOOP: "correct the path in [telemetry] sink",
    errno.ENAMETOOLONG: "correct the path in [telemetry] sink",
    errno.EFBIG: "rotate the file, for instance with logrotate",
}


class FileSink:
    """Appends events to the file `path`, whose parent folders are made where they are missing."""

    def __init__(self, path: Path) -> None:
        self.description = f"file://{path}"
        self._path = path
        self._thread = DaemonThread("events-file")

    async def send(self, events: Sequence[bytes]) -> None:
        """Append the events as lines. Raises SinkUnavailable or SinkNeedsPerson."""
        await self._thread.run(self._append, b"\n".join(events) + b"\n")

    async def close(self) -> None:
        """Wait for the batch that is being written, but not for a disk that hangs."""
        await self._thread.close(_CLOSE_WITHIN)

    def _append(self, lines: bytes) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o644)
            try:
                self._write(file, lines)
            finally:
                os.close(file)
        except OSError as error:
            raise self._explain(error) from error

    def _write(self, file: int, lines: bytes) -> None:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            raise SinkNeedsPerson(f"{self._path} is not a regular file", "name another file in [telemetry] sink")
        if status.st_size and os.pread(file, 1, status.st_size - 1) != b"\n":
            lines = b"\n" + lines
        if os.write(file, lines) < len(lines):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fdatasync(file)

    def _explain(self, error: OSError) -> SinkError:
        code = error.errno or 0
        reason = f"cannot write {self._path}: {_FULL.get(code) or error.strerror}"
        if code in _ADVICE:
            return SinkNeedsPerson(reason, _ADVICE[code])
        return SinkUnavailable(reason)
