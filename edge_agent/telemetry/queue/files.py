"""The two plain files beside the queue: the lock, and the events that were refused for good."""

import contextlib
import fcntl
import os
from pathlib import Path

import msgspec
import structlog

_REJECTED_SIZE = 512 * 1024  # of the file in use and of the one before it
_EVENT_SIZE = 64 * 1024

log = structlog.get_logger()


class QueueLocked(Exception):  # it is a state of the folder, and the name is part of the interface
    """Another agent uses the directory."""


class Lock:
    """Held while the queue is open. The kernel gives it back when the process dies."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd: int | None = None

    def take(self) -> None:
        """Raises `QueueLocked`, naming the process. A file system that can have no locks is no reason not to start."""
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(self._path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        if self._fd is None:
            return
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._fd, 20, 0).decode(errors="replace").strip() or "unknown"
            self.release()
            raise QueueLocked(
                f"{self._path.parent} is used by another edge-agent (process {holder}): "
                "stop it, or give this one a --state-dir of its own"
            ) from None
        except OSError as error:
            log.warning("the queue's directory cannot be locked", path=str(self._path), error=error.strerror)
        with contextlib.suppress(OSError):  # the number is only for people
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


class RejectedFile:
    """`rejected.jsonl`: `{"reason": ..., "event": ...}`, at most 1 MB together with `rejected.old.jsonl`.

    The events are counted elsewhere; this is for whoever wants to know what was wrong with them.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / "rejected.jsonl"
        self._lines: list[bytes] = []

    @property
    def waiting(self) -> bool:
        return bool(self._lines)

    def add(self, event: bytes, reason: str) -> None:
        """Keep the newest ones for `write`, up to the size of the file."""
        text = event[:_EVENT_SIZE].decode(errors="replace")
        self._lines.append(msgspec.json.encode({"reason": reason, "event": text}) + b"\n")
        while sum(map(len, self._lines)) > _REJECTED_SIZE:
            self._lines.pop(0)

    def write(self) -> None:
        """Append what is waiting. Raises OSError; it is not tried again."""
        lines, self._lines = self._lines, []
        if not lines:
            return
        data = b"".join(lines)
        with contextlib.suppress(FileNotFoundError):
            if self._path.stat().st_size + len(data) > _REJECTED_SIZE:
                self._path.replace(self._path.with_name("rejected.old.jsonl"))
        with self._path.open("ab") as file:
            file.write(data)
