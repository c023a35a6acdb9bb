"""One process per Edge TPU: opening a device on USB resets its port first, which kills whoever had it open.

The lock is a listening socket in the abstract namespace (unix(7)), named after the device. It needs no folder that can
be written to, ends with its process however that ends, and tells everybody who asks for its pid. Processes in another
network namespace, such as a container, do not see it.
"""

import contextlib
import errno
import hashlib
import socket
import struct
import threading
from dataclasses import dataclass
from pathlib import Path

_PREFIX = "\0edge-agent/edgetpu/"
_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid
# Who asks for the holder stays in the queue until the holder opens another model.
_BACKLOG = 128


class DeviceLocked(Exception):
    """Another process has the device. `pid` is 0 where it cannot be seen from here."""

    def __init__(self, name: str, pid: int) -> None:
        super().__init__(f"{name} is in use by process {pid}" if pid else f"{name} is in use by another program")
        self.pid = pid


@dataclass
class _Held:
    socket: socket.socket
    count: int = 1


_held: dict[str, _Held] = {}
_guard = threading.Lock()


class DeviceLock:
    """One share of this process in a device. `release` may be called more than once."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._released = False

    def release(self) -> None:
        """Give the share back; the last one frees the device."""
        with _guard:
            if self._released:
                return
            self._released = True
            held = _held[self._address]
            held.count -= 1
            if held.count == 0:
                del _held[self._address]
                held.socket.close()


def lock_device(name: str, root: Path = Path("/"), *, share: bool = True) -> DeviceLock:
    """Take the device with this stable name for this process. Raises DeviceLocked.

    With `share`, a process that has it may take it again, and has it until each share is released.
    """
    address = _address(name, root)
    with _guard:
        held = _held.get(address)
        if held is not None and not share:
            raise DeviceLocked(name, _pid_of_peer_of(address))
        if held is not None:
            held.count += 1
            _send_visitors_away(held.socket)
        else:
            _held[address] = _Held(_bind(name, address))
    return DeviceLock(address)


def lock_holder(name: str, root: Path = Path("/")) -> int | None:
    """Return the pid of the process that holds the device, 0 where it cannot be seen from here, None when nobody does.

    Only processes that use this lock are told.
    """
    try:
        return _pid_of_peer_of(_address(name, root))
    except OSError:  # nobody listens; or this process may not ask, as where a sandbox keeps sockets apart
        return None


def holds_lock(name: str, root: Path = Path("/")) -> bool:
    """Tell whether this process holds the device."""
    return _address(name, root) in _held


def _address(name: str, root: Path) -> str:
    # What stands in another tree than the kernel's is another device, whatever its name.
    tree = "" if root == Path("/") else "@" + hashlib.sha256(str(root).encode()).hexdigest()[:16]
    return f"{_PREFIX}{name}{tree}"


def _bind(name: str, address: str) -> socket.socket:
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        bound.bind(address)
        bound.listen(_BACKLOG)
    except OSError as error:
        bound.close()
        if error.errno != errno.EADDRINUSE:
            raise
        raise DeviceLocked(name, _pid_or_unseen(address)) from error
    return bound


def _pid_or_unseen(address: str) -> int:
    try:
        return _pid_of_peer_of(address)
    except OSError:  # it has let go meanwhile, or does not listen yet
        return 0


def _pid_of_peer_of(address: str) -> int:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as visitor:
        try:
            visitor.connect(address)
        except BlockingIOError:  # so many have asked that its queue is full
            return 0
        raw = visitor.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid: int = _CREDENTIALS.unpack(raw)[0]
    return pid


def _send_visitors_away(listening: socket.socket) -> None:
    with contextlib.suppress(BlockingIOError):
        while True:
            listening.accept()[0].close()
