"""What the client of the control socket makes of a server that is absent, slow or another one."""

import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from edge_agent.service import control_client
from edge_agent.service.control_client import BadAnswer, CommandFailed, ControlError, NoAnswer, NotRunning, ask

pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")


def test_nobody_is_running(path: Path) -> None:
    with pytest.raises(NotRunning) as caught:
        ask(path, "status")
    assert str(caught.value) == (
        f"edge-agent is not running (no control socket at {path}): systemctl status edge-agent"
    )
    assert caught.value.exit_status == 3


@pytest.mark.parametrize("name", ["missing/control.sock", "d" * 120 + "/control.sock", "file/control.sock"])
def test_nobody_was_ever_running(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotRunning, match="no control socket at"):
        ask(tmp_path / name, "status")


@contextmanager
def scripted(path: Path, script: Callable[[socket.socket], None]) -> Iterator[None]:
    """A server that takes one connection and does this with it."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()

        def serve() -> None:
            connection, _ = listening.accept()
            with connection, suppress(BrokenPipeError, ConnectionResetError):
                script(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        yield
        thread.join()


def read_to_end(connection: socket.socket) -> None:
    while connection.recv(4096):
        pass


def trickle(connection: socket.socket) -> None:
    while True:
        connection.sendall(b" ")


@pytest.mark.parametrize("script", [read_to_end, trickle])
def test_an_agent_that_does_not_answer(path: Path, script: Callable[[socket.socket], None]) -> None:
    with scripted(path, script), pytest.raises(NoAnswer) as caught:
        ask(path, "status", timeout=0.25)
    assert str(caught.value) == (f"edge-agent does not answer within 0.25 s at {path}: journalctl -u edge-agent")
    assert caught.value.exit_status == 75


def test_an_agent_that_hangs_with_a_full_queue_of_connections(path: Path, hanging_server: socket.socket) -> None:
    with pytest.raises(NoAnswer, match=r"does not answer within 0\.2 s"):
        ask(path, "status", timeout=0.2)


def test_room_in_the_queue_of_connections_is_waited_for(path: Path, hanging_server: socket.socket) -> None:
    def serve() -> None:
        hanging_server.accept()[0].close()
        connection, _ = hanging_server.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(b'{"ok": true, "answer": "late"}\n')

    timer = threading.Timer(0.2, serve)
    timer.start()
    assert ask(path, "status", timeout=60) == "late"
    timer.join()


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"HTTP/1.1 400 Bad Request\r\n",
        b"\xff\xfe\n",
        b"[" * 100_000 + b"\n",
        b"[]\n",
        b'{"ok": 1, "answer": 2}\n',
        b'{"ok": false}\n',
        b'{"ok": true, "answer": 1} {"ok": true, "answer": 1}\n',
    ],
)
def test_an_answer_that_is_none(path: Path, line: bytes) -> None:
    def script(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(line)

    with scripted(path, script), pytest.raises(BadAnswer, match="is not edge-agent"):
        ask(path, "status")


def test_an_answer_without_end(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_client, "_MAX_ANSWER", 1_000_000)

    def script(connection: socket.socket) -> None:
        while True:
            connection.sendall(b" " * 65536)

    with scripted(path, script), pytest.raises(BadAnswer, match="longer than 1000000 bytes"):
        ask(path, "status", timeout=60)


@pytest.mark.parametrize("sent", [b"", b'{"ok": true, "answer": 1}'])
def test_an_agent_that_ends_the_connection(path: Path, sent: bytes) -> None:
    def script(connection: socket.socket) -> None:
        connection.sendall(sent)  # and closes without having read: the client's own sending may fail

    with scripted(path, script), pytest.raises(NoAnswer, match="ended the connection without an answer"):
        ask(path, "status")


def test_an_agent_that_answers_before_it_has_read(path: Path) -> None:
    def script(connection: socket.socket) -> None:
        connection.sendall(b'{"ok": false, "error": "too many"}\n')

    with scripted(path, script), pytest.raises(CommandFailed, match=r"^too many$"):
        ask(path, "x" * 1_000_000)  # more than the kernel takes, so that sending fails for certain


def test_a_socket_of_another_kind(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(path))
        with pytest.raises(ControlError) as caught:
            ask(path, "status")
    assert str(caught.value) == f"edge-agent cannot be asked at {path}: Protocol wrong type for socket"
    assert caught.value.exit_status == 1


def test_the_client_is_quick_to_import() -> None:
    code = "import sys, edge_agent.service.control_client; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"asyncio", "structlog", "msgspec", "pydantic"}.isdisjoint(done.stdout.split())
