"""A TCP line that can be cut: forwards one port to another until it is stopped.

Google's emulator forgets its topics when it stops; with this in front of it, it stays up while the network is gone.
"""

import contextlib
import selectors
import socket
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Self

from tests.servers.ports import ReservedPort

_CHUNK = 65536


class Proxy:
    """Listens on 127.0.0.1 and forwards to `target` ("HOST:PORT"). Keeps its port over `stop` and `start`.

    `port` 0 takes a free one. `inside` is where it listens, such as another network namespace; it forwards to where it
    is used. `carried` counts the bytes, in both directions.
    """

    def __init__(
        self, target: str, port: int = 0, inside: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext
    ) -> None:
        host, _, number = target.rpartition(":")
        self._target = (host, int(number))
        self._inside = inside
        with inside():
            self._reserved = ReservedPort(port)
        self._port = self._reserved.number
        self.carried = 0
        self._thread: threading.Thread | None = None
        self._wake: socket.socket | None = None

    @property
    def address(self) -> str:
        """Where to connect to."""
        return f"127.0.0.1:{self._port}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self._reserved.close()

    def start(self) -> None:
        """Let connections through."""
        with self._inside():
            listener = socket.socket()
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", self._port))
            listener.listen()
        self._wake, woken = socket.socketpair()
        self._thread = threading.Thread(target=self._run, args=(listener, woken))
        self._thread.start()

    def stop(self) -> None:
        """Cut every connection and refuse new ones."""
        if self._thread is None or self._wake is None:
            return
        self._wake.close()
        self._thread.join()
        self._thread = None

    def _run(self, listener: socket.socket, woken: socket.socket) -> None:
        pairs: dict[socket.socket, socket.socket] = {}
        with selectors.DefaultSelector() as selector, listener, woken:
            selector.register(listener, selectors.EVENT_READ)
            selector.register(woken, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    ready = key.fileobj
                    if ready is woken:
                        for end in pairs:
                            end.close()
                        return
                    if ready is listener:
                        self._connect(listener, selector, pairs)
                    elif isinstance(ready, socket.socket) and ready in pairs:
                        self.carried += _forward(ready, selector, pairs)

    def _connect(
        self, listener: socket.socket, selector: selectors.BaseSelector, pairs: dict[socket.socket, socket.socket]
    ) -> None:
        ours, _ = listener.accept()
        try:
            theirs = socket.create_connection(self._target)
        except OSError:
            ours.close()
            return
        for one, other in ((ours, theirs), (theirs, ours)):
            pairs[one] = other
            selector.register(one, selectors.EVENT_READ)


def _forward(ready: socket.socket, selector: selectors.BaseSelector, pairs: dict[socket.socket, socket.socket]) -> int:
    other = pairs[ready]
    data = b""
    with contextlib.suppress(OSError):
        data = ready.recv(_CHUNK)
        other.sendall(data)
    if not data:
        for end in (ready, other):
            selector.unregister(end)
            del pairs[end]
            end.close()
    return len(data)
