"""Asks the running agent over its control socket. Standard library only: scripts start `edge-agent status` often.

A request is one line, `{"command": "status"}`. The answer is one line too, after which the agent ends the connection:
`{"ok": true, "answer": …}` or `{"ok": false, "error": "…"}`.
"""

import json
import os
import pwd
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

CONTROL_SOCKET = "control.sock"
_SUN_PATH = 107  # bytes, unix(7), without the final NUL
_MAX_ANSWER = 16 << 20
_BACKLOG_INTERVAL = 0.05


class ControlError(Exception):
    """No answer, and why, as a sentence for the operator. `exit_status` is what a command should end with."""

    exit_status: ClassVar[int] = 1


class NotRunning(ControlError):
    """Nobody listens. The exit status is that of `systemctl status` for a service that does not run."""

    exit_status = 3


class NotPermitted(ControlError):
    """The socket is for root and the agent's group only."""

    exit_status = os.EX_NOPERM


class NoAnswer(ControlError):
    """The agent took too long, or ended the connection."""

    exit_status = os.EX_TEMPFAIL


class BadAnswer(ControlError):
    """What came back is not from an agent."""

    exit_status = os.EX_PROTOCOL


class CommandFailed(ControlError):
    """The agent's own error answer, in its words."""


def ask(path: Path, command: str, timeout: float = 10.0) -> object:
    """Return the agent's answer to a command, as JSON knows it. `timeout` in seconds, for all of it.

    Raises ControlError.
    """
    deadline = time.monotonic() + timeout
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            _connect(connection, path, deadline)
            _send(connection, command, deadline)
            line = _receive(connection, path, deadline)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotRunning(_not_running(f"no control socket at {path}")) from error
    except ConnectionRefusedError as error:
        raise NotRunning(_not_running(f"nobody listens at {path}")) from error
    except PermissionError as error:
        raise NotPermitted(_not_permitted(path)) from error
    except TimeoutError as error:
        raise NoAnswer(f"edge-agent does not answer within {timeout:g} s at {path}: {_SEE_LOG}") from error
    except OSError as error:
        raise ControlError(f"edge-agent cannot be asked at {path}: {error.strerror or error}") from error
    return _answer(line, path)


@contextmanager
def socket_address(path: Path) -> Iterator[str]:
    """The path as bind(2) and connect(2) take it: a long one is reached through a descriptor of its directory.

    Raises OSError when that directory cannot be opened.
    """
    if len(os.fsencode(path)) <= _SUN_PATH:
        yield str(path)
        return
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


_SEE_LOG = "journalctl -u edge-agent"


def _connect(connection: socket.socket, path: Path, deadline: float) -> None:
    with socket_address(path) as address:
        while True:
            connection.settimeout(_left(deadline))
            try:
                connection.connect(address)
            except BlockingIOError:  # The queue of connections is full. No call waits for room in it with a time limit.
                time.sleep(min(_BACKLOG_INTERVAL, _left(deadline)))
            else:
                return


def _send(connection: socket.socket, command: str, deadline: float) -> None:
    connection.settimeout(_left(deadline))
    try:
        connection.sendall(json.dumps({"command": command}).encode() + b"\n")
    except (BrokenPipeError, ConnectionResetError):
        return  # An agent with too many clients answers, and closes, before it has read.


def _receive(connection: socket.socket, path: Path, deadline: float) -> bytes:
    received = bytearray()
    while not received.endswith(b"\n"):
        if len(received) > _MAX_ANSWER:
            raise BadAnswer(f"the answer at {path} is longer than {_MAX_ANSWER} bytes: is it edge-agent's socket?")
        connection.settimeout(_left(deadline))
        try:
            part = connection.recv(1 << 16)
        except ConnectionResetError:
            part = b""
        if not part:
            raise NoAnswer(f"edge-agent ended the connection without an answer at {path}: {_SEE_LOG}")
        received += part
    return bytes(received)


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _answer(line: bytes, path: Path) -> object:
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        message = None
    match message:
        case {"ok": True, "answer": answer}:
            return answer
        case {"ok": False, "error": str(error)}:
            raise CommandFailed(error)
    raise BadAnswer(f"what answers at {path} is not edge-agent, or another version of it: systemctl restart edge-agent")


def _not_running(why: str) -> str:
    return f"edge-agent is not running ({why}): systemctl status edge-agent"


def _not_permitted(path: Path) -> str:
    return (
        f"permission denied at {path}: run it as root, or add your user to the group edge-agent: "
        f"adduser {_user()} edge-agent, and log in again"
    )


def _user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:  # a uid without a name, as in containers
        return "USER"
