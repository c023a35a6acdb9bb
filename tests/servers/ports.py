"""Ports that stay a server's own while it is away."""

import socket


class ReservedPort:
    """A port of 127.0.0.1, its `number`, that the kernel gives to nobody else until it is closed; 0 takes a free one.

    Who connects to it is refused until a server listens there, which needs SO_REUSEADDR, as servers usually have it.
    """

    def __init__(self, number: int = 0) -> None:
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("127.0.0.1", number))
        self.number: int = self._socket.getsockname()[1]

    def close(self) -> None:
        """Let others have it."""
        self._socket.close()
