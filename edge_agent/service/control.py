"""The control socket: answers `edge-agent status` and `edge-agent reload` while the agent runs.

The protocol stands in `control_client`: one request line and one answer line per connection. Whatever a client does,
it costs at most one of a bounded number of connections for a bounded time. Only a handler sets its own pace, and it
runs to its end although its client has left: a reload must not stop halfway because somebody pressed Ctrl-C.
"""

import asyncio
import json
import os
import socket
import stat
import struct
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path

import msgspec
import structlog

from edge_agent.service.control_client import socket_address

_MODE = 0o660
_MAX_REQUEST = 4096
_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid

log = structlog.get_logger()

_Identity = tuple[int, int]  # device and inode number


class _Request(msgspec.Struct):
    command: str


_decoder = msgspec.json.Decoder(_Request)


class ControlServer:
    """Serves commands at a Unix socket, for its owner and group. `problem` says why there is none, if so.

    A handler's answer is anything that msgspec encodes as JSON; what it raises is logged and told to the client.
    `patience` is how many seconds a client may take to send its request, and again to read the answer.
    """

    def __init__(
        self,
        path: Path,
        handlers: Mapping[str, Callable[[], Awaitable[object]]],
        *,
        patience: float = 10.0,
        max_clients: int = 16,
    ) -> None:
        self.problem: str | None = None
        self._path = path
        self._handlers = handlers
        self._patience = patience
        self._max_clients = max_clients
        self._clients: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._identity = (0, 0)

    async def start(self) -> None:
        """Listen. If that is impossible the agent goes on without, and `problem` and a log line say why."""
        try:
            listening, self._identity = _listen(self._path)
        except OSError as error:
            reason = error.strerror or str(error)
            self.problem = f"no control socket at {self._path}: {reason}"
            log.warning("no control socket, so no status and no reload by command", path=str(self._path), error=reason)
            return
        # Not start_unix_server: from Python 3.13 on that one looks at, and removes, the path that was given to bind.
        self._server = await asyncio.start_server(self._accept, sock=listening, limit=_MAX_REQUEST)

    async def close(self) -> None:
        """End all connections, cancel the handlers that still run, and remove the socket."""
        if self._server is None:
            return
        self._unlink()
        self._server.close()
        self._server = None
        for client in self._clients:
            client.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)

    def _unlink(self) -> None:
        # While the socket is open its inode number cannot be given to another's.
        try:
            if _identity(self._path) == self._identity:
                self._path.unlink()
        except FileNotFoundError:
            return
        except OSError as error:
            log.warning("the control socket cannot be removed", path=str(self._path), error=error.strerror)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._clients) >= self._max_clients:
            writer.write(_failure(f"edge-agent serves {self._max_clients} clients already: try again in a moment"))
            writer.close()
            return
        client = asyncio.create_task(self._serve(reader, writer), name="control client")
        self._clients.add(client)
        client.add_done_callback(self._clients.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # So that drain waits until the last byte has gone, and nothing is left to send after it.
        writer.transport.set_write_buffer_limits(high=0)
        try:
            async with asyncio.timeout(self._patience):
                line = await _read_line(reader)
            answer = await self._answer(line, writer)
            async with asyncio.timeout(self._patience):
                writer.write(answer)
                await writer.drain()
        except OSError as error:
            log.debug("a control client was slow or has left", reason=repr(error))
        finally:
            writer.transport.abort()
            with suppress(OSError):  # It repeats what ended the connection.
                await writer.wait_closed()

    async def _answer(self, line: bytes | None, writer: asyncio.StreamWriter) -> bytes:
        if line is None:
            return _failure(f"a request is one line of at most {_MAX_REQUEST} bytes")
        try:
            command = _decoder.decode(line).command
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            return _failure(f'a request looks like {{"command": "status"}}, but: {error}')
        handler = self._handlers.get(command)
        if handler is None:
            return _failure(f"unknown command {command[:40]!r}; known are: {', '.join(sorted(self._handlers))}")
        log.debug("control command", command=command, **_peer(writer))
        return await _run(command, handler)


async def _read_line(reader: asyncio.StreamReader) -> bytes | None:
    """Return a line, or what there is of one, or None when it is too long."""
    try:
        return await reader.readline()
    except ValueError:
        return None


async def _run(command: str, handler: Callable[[], Awaitable[object]]) -> bytes:
    try:
        return _line({"ok": True, "answer": await handler()})
    except Exception as error:
        log.exception("a control command failed", command=command)
        return _failure(f"{command} failed with {type(error).__name__}: {error} (journalctl -u edge-agent tells more)")


def _failure(error: str) -> bytes:
    return _line({"ok": False, "error": error.encode(errors="backslashreplace").decode()})


def _line(message: dict[str, object]) -> bytes:
    try:
        return msgspec.json.encode(message) + b"\n"
    except UnicodeEncodeError:
        # Text of the outside world, such as the name of a file, may hold halves of surrogate pairs.
        return json.dumps(msgspec.to_builtins(message)).encode() + b"\n"


def _peer(writer: asyncio.StreamWriter) -> dict[str, int]:
    connection = writer.get_extra_info("socket")
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(raw)
    return {"pid": pid, "uid": uid}


def _listen(path: Path) -> tuple[socket.socket, _Identity]:
    """Make the socket, in place of one that a killed agent has left. Raises OSError, also when it is another's."""
    _remove_stale(path)
    listening = socket.socket(socket.AF_UNIX)
    try:
        # Linux gives the file the mode of the socket, less the umask: at no time may others connect.
        os.fchmod(listening.fileno(), _MODE)
        with socket_address(path) as address:
            listening.bind(address)
        path.chmod(_MODE)
        listening.listen()
        return listening, _identity(path)
    except OSError:
        listening.close()
        raise


def _remove_stale(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise OSError("something else than a socket has this name: remove or rename it")
    if _somebody_listens(path):
        raise OSError("another process listens there")
    path.unlink()


def _somebody_listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe, socket_address(path) as address:
        probe.settimeout(0)
        try:
            probe.connect(address)
        except ConnectionRefusedError:
            return False
        except BlockingIOError:  # Its queue of connections is full.
            pass
    return True


def _identity(path: Path) -> _Identity:
    status = path.lstat()
    return status.st_dev, status.st_ino
