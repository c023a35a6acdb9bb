"""A network namespace of its own, with nothing in it but a loopback device.

It exists as long as its file descriptor is open, over reboots of the machine that uses it.
"""

import ctypes
import fcntl
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_CLONE_NEWNET = 0x40000000
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 0x1
_OWN = Path("/proc/thread-self/ns/net")


class Network:
    """`path` names the namespace to other programs."""

    def __init__(self) -> None:
        own = os.open(_OWN, os.O_RDONLY)
        try:
            _call("unshare", _CLONE_NEWNET)
            self._descriptor = os.open(_OWN, os.O_RDONLY)
            _bring_up("lo")
        finally:
            _call("setns", own, _CLONE_NEWNET)
            os.close(own)

    @property
    def path(self) -> str:
        """A path that leads to the namespace while this process lives."""
        return f"/proc/{os.getpid()}/fd/{self._descriptor}"

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Sockets that this thread makes inside the context belong to the namespace, and stay there.

        So do threads, for as long as they live. Do not use gRPC in it: its threads are those of the whole process.
        """
        own = os.open(_OWN, os.O_RDONLY)
        _call("setns", self._descriptor, _CLONE_NEWNET)
        try:
            yield
        finally:
            _call("setns", own, _CLONE_NEWNET)
            os.close(own)

    def close(self) -> None:
        """Let go of the namespace."""
        os.close(self._descriptor)


def _call(name: str, *arguments: int) -> None:
    """Call a function of libc; os.unshare and os.setns came with Python 3.12."""
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def _bring_up(interface: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sh14x", interface.encode(), _IFF_UP))
