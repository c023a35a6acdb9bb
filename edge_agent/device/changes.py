"""Hears when a file of sysfs says something else, for those files whose driver tells (sysfs_notify)."""

import asyncio
import contextlib
import os
import select
from collections.abc import Callable
from pathlib import Path

_LONGEST = 64


def _read_again(descriptor: int) -> None:
    os.pread(descriptor, _LONGEST, 0)


class ChangeListener:
    """Calls `on_change` on the running event loop, until it is closed.

    A change is an urgent event (EPOLLPRI), which is over when the file has been read from its beginning: see
    kernfs_fop_poll in fs/kernfs/file.c of Linux. The event loop itself knows no urgent events, but an epoll that has
    one can be waited for like a file that can be read.
    """

    def __init__(
        self, descriptor: int, on_change: Callable[[], None], *, read_again: Callable[[int], None] = _read_again
    ) -> None:
        """Take over an open file. Raises OSError, and closes it, where the kernel tells of no changes to it."""
        self._descriptor = descriptor
        self._on_change = on_change
        self._read_again = read_again
        self._epoll = select.epoll()
        try:
            read_again(descriptor)
            # Only the change itself: what a device that is gone has to say would never be over.
            self._epoll.register(descriptor, select.EPOLLPRI | select.EPOLLET)
        except OSError:
            self._close_files()
            raise
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._epoll.fileno(), self._changed)

    @classmethod
    def open(cls, path: Path, on_change: Callable[[], None]) -> "ChangeListener":
        """Listen to a file. Raises OSError."""
        return cls(os.open(path, os.O_RDONLY | os.O_CLOEXEC), on_change)

    def close(self) -> None:
        """Stop listening."""
        self._loop.remove_reader(self._epoll.fileno())
        self._close_files()

    def _close_files(self) -> None:
        self._epoll.close()
        os.close(self._descriptor)

    def _changed(self) -> None:
        self._epoll.poll(0)
        with contextlib.suppress(OSError):  # the device is gone, as whoever looks now finds out
            self._read_again(self._descriptor)
        self._on_change()
