"""The control socket, asked by the real client and by clients that misbehave."""

import asyncio
import gc
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
import structlog
from hypothesis import example, given
from hypothesis import strategies as st

from edge_agent.service import control_client
from edge_agent.service.control import ControlServer
from edge_agent.service.control_client import (
    CommandFailed,
    NoAnswer,
    NotRunning,
    ask,
)

pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")

NOBODY = 65534
STATUS = b'{"command": "status"}\n'

Handlers = Mapping[str, Callable[[], Awaitable[object]]]


@dataclass(frozen=True)
class Queue:
    waiting: int


class Model(msgspec.Struct):
    version: str


async def status() -> object:
    return {"queue": Queue(3), "model": Model("v1"), "problems": ["señal ✗\n"]}


HANDLERS: Handlers = {"status": status}
ANSWER = {"queue": {"waiting": 3}, "model": {"version": "v1"}, "problems": ["señal ✗\n"]}


@asynccontextmanager
async def serving(
    path: Path, handlers: Handlers = HANDLERS, *, patience: float = 60.0, max_clients: int = 16
) -> AsyncIterator[ControlServer]:
    """A server that has to leave no task behind, and no error to the event loop."""
    unexpected: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unexpected.append(context))
    server = ControlServer(path, handlers, patience=patience, max_clients=max_clients)
    await server.start()
    try:
        yield server
    finally:
        await server.close()
        assert [task.get_name() for task in asyncio.all_tasks() - {asyncio.current_task()}] == []
        gc.collect(1)  # which finds exceptions of tasks that nobody has asked for
        assert unexpected == []


def asked(path: Path, handlers: Handlers = HANDLERS, command: str = "status") -> object:
    async def run() -> object:
        async with serving(path, handlers):
            return await asyncio.to_thread(ask, path, command)

    return asyncio.run(run())


@contextmanager
def connected(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(60)
        client.connect(str(path))
        yield client


def read_all(client: socket.socket) -> bytes:
    received = b""
    with suppress(ConnectionResetError):
        while part := client.recv(1 << 20):
            received += part
    return received


def exchange(path: Path, request: bytes) -> bytes:
    """Send this, and read until the server ends the connection."""
    with connected(path) as client:
        with suppress(BrokenPipeError):
            client.sendall(request)
        with suppress(OSError):
            client.shutdown(socket.SHUT_WR)
        return read_all(client)


async def answers(path: Path) -> bool:
    return await asyncio.to_thread(ask, path, "status") == ANSWER


def error_of(line: bytes) -> str:
    assert line.count(b"\n") == 1
    message = json.loads(line)
    assert message.keys() == {"ok", "error"}
    assert message["ok"] is False
    return str(message["error"])


# Questions and answers


def test_dataclasses_and_structs_come_back_as_json(path: Path) -> None:
    assert asked(path) == ANSWER


def test_a_long_path_works_on_both_sides(tmp_path: Path) -> None:
    path = tmp_path / ("d" * 120) / ("e" * 120) / "control.sock"
    path.parent.mkdir(parents=True)
    assert asked(path) == ANSWER
    assert asked(path) == ANSWER
    assert list(path.parent.iterdir()) == []


def test_a_long_path_is_taken_over_from_a_killed_agent(tmp_path: Path) -> None:
    path = tmp_path / ("d" * 120) / "control.sock"
    path.parent.mkdir(parents=True)
    with control_client.socket_address(path) as address, socket.socket(socket.AF_UNIX) as killed:
        killed.bind(address)
    assert asked(path) == ANSWER


def test_a_last_line_without_its_end_is_a_request(path: Path) -> None:
    async def run() -> bytes:
        async with serving(path):
            return await asyncio.to_thread(exchange, path, STATUS.strip())

    assert json.loads(asyncio.run(run())) == {"ok": True, "answer": ANSWER}


def test_a_huge_answer_arrives_whole(path: Path) -> None:
    async def huge() -> object:
        return "x" * 10_000_000

    assert asked(path, {"status": huge}) == "x" * 10_000_000


@pytest.mark.parametrize("size", range(150_000, 450_000, 10_000))
def test_the_end_of_an_answer_arrives_although_the_client_reads_late(path: Path, size: int) -> None:
    # The kernel takes about 200,000 bytes; the rest waits in the agent, which must not end the connection before.
    async def run() -> bytes:
        called = asyncio.Event()

        async def large() -> object:
            called.set()
            return "x" * size

        async with serving(path, {"status": large}):
            with connected(path) as client:
                client.sendall(STATUS)
                await called.wait()
                return await asyncio.to_thread(read_all, client)

    assert json.loads(asyncio.run(run())) == {"ok": True, "answer": "x" * size}


def test_others_are_served_while_a_reload_takes_its_time(path: Path) -> None:
    async def run() -> bytes:
        started, finish = asyncio.Event(), asyncio.Event()

        async def reload() -> object:
            started.set()
            await finish.wait()
            return "reloaded"

        async with serving(path, {"status": status, "reload": reload}, patience=0.05):
            with connected(path) as reloading, connected(path) as silent:
                reloading.sendall(b'{"command": "reload"}\n')
                await started.wait()
                await asyncio.to_thread(read_all, silent)  # until the time that a client may take is over
                assert await answers_again(path)
                finish.set()
                return await asyncio.to_thread(read_all, reloading)

    assert json.loads(asyncio.run(run())) == {"ok": True, "answer": "reloaded"}


def test_who_asked_is_logged(path: Path) -> None:
    with structlog.testing.capture_logs() as log:
        asked(path)
    assert log == [
        {"event": "control command", "log_level": "debug", "command": "status", "pid": os.getpid(), "uid": os.getuid()}
    ]


# Clients that misbehave


@pytest.mark.parametrize(
    ("request_line", "told"),
    [
        (b'{"command": "restart"}\n', "unknown command 'restart'; known are: status"),
        (b'{"command": "' + b"a" * 3000 + b'"}\n', f"unknown command '{'a' * 40}'; known are: status"),
        (b'{"command": "\\udcff"}\n', 'a request looks like {"command": "status"}, but: '),
        (b'{"command": 1}\n', "Expected `str`, got `int` - at `$.command`"),
        (b"{}\n", "missing required field `command`"),
        (b"GET / HTTP/1.1\r\nHost: edge-agent\r\n\r\n", 'a request looks like {"command": "status"}, but: '),
        (b"", 'a request looks like {"command": "status"}, but: '),
        (b"\n", 'a request looks like {"command": "status"}, but: '),
        (b'{"command": "\xff"}\n', 'a request looks like {"command": "status"}, but: '),
        (b'{"x": ' + b"[" * 4000 + b"\n", 'a request looks like {"command": "status"}, but: '),
        (b"\x00" * 4000 + b"\n", 'a request looks like {"command": "status"}, but: '),
        (b"x" * 4097 + b"\n", "a request is one line of at most 4096 bytes"),
        (b"x" * 1_000_000, "a request is one line of at most 4096 bytes"),
    ],
)
def test_a_bad_request_is_told(path: Path, request_line: bytes, told: str) -> None:
    async def run() -> bytes:
        async with serving(path):
            answer = await asyncio.to_thread(exchange, path, request_line)
            assert await answers(path)
            return answer

    assert told in error_of(asyncio.run(run()))


@given(
    st.binary(min_size=1, max_size=5000) | st.recursive(st.none() | st.text(), st.lists).map(json.dumps).map(str.encode)
)
@example(b'{"command": "status", "since": null}')
def test_any_bytes_get_one_line(request_bytes: bytes) -> None:
    async def run(path: Path) -> bytes:
        async with serving(path):
            return await asyncio.to_thread(exchange, path, request_bytes)

    with tempfile.TemporaryDirectory() as folder:
        line = asyncio.run(run(Path(folder) / "control.sock"))
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert isinstance(json.loads(line)["ok"], bool)


@pytest.mark.parametrize("sent", [b"", STATUS[:5]])
def test_a_client_that_sends_nothing_more_is_left(path: Path, sent: bytes) -> None:
    async def run() -> None:
        async with serving(path, patience=0.05):
            with connected(path) as client:
                client.sendall(sent)
                assert await asyncio.to_thread(read_all, client) == b""
            assert await answers_again(path)

    asyncio.run(run())


def test_a_client_that_does_not_read_is_left(path: Path) -> None:
    answer = "x" * 10_000_000

    async def huge() -> object:
        return answer

    async def run() -> None:
        with structlog.testing.capture_logs() as log, connected_later(path) as connect:
            async with serving(path, {"huge": huge, "status": status}, patience=0.05, max_clients=1):
                client = connect()
                client.sendall(b'{"command": "huge"}\n')
                await until(lambda: any(line["event"].startswith("a control client was slow") for line in log))
                assert await answers_again(path)
                assert len(await asyncio.to_thread(read_all, client)) < len(answer)

    asyncio.run(run())


@contextmanager
def connected_later(path: Path) -> Iterator[Callable[[], socket.socket]]:
    """Connect when called; close at the end."""
    with socket.socket(socket.AF_UNIX) as client:

        def connect() -> socket.socket:
            client.settimeout(60)
            client.connect(str(path))
            return client

        yield connect


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - conditions outside of the loop's reach
            await asyncio.sleep(0.005)


async def answers_again(path: Path) -> bool:
    """Ask until there is a free place, and this thread was quick enough for the server's patience."""
    async with asyncio.timeout(60):
        while True:
            with suppress(CommandFailed, NoAnswer):
                return await answers(path)


@pytest.mark.parametrize("sent", [b"", b'{"comm', STATUS, STATUS * 1000])
def test_a_client_that_leaves_disturbs_nobody(path: Path, sent: bytes) -> None:
    async def run() -> None:
        async with serving(path):
            for _ in range(50):
                with connected(path) as client:
                    client.sendall(sent)
            assert await answers_again(path)

    asyncio.run(run())


def test_a_command_is_finished_although_its_client_has_left(path: Path) -> None:
    async def run() -> None:
        started, finish, finished = asyncio.Event(), asyncio.Event(), asyncio.Event()

        async def reload() -> object:
            started.set()
            await finish.wait()
            finished.set()
            return "reloaded"

        async with serving(path, {"reload": reload, "status": status}, max_clients=1):
            with connected(path) as client:
                client.sendall(b'{"command": "reload"}\n')
                await started.wait()
            finish.set()
            async with asyncio.timeout(60):
                await finished.wait()
            assert await answers_again(path)

    asyncio.run(run())


def test_too_many_clients_are_told_to_come_again(path: Path) -> None:
    async def run() -> None:
        async with serving(path, max_clients=2):
            told = pytest.raises(CommandFailed, match="serves 2 clients already: try again in a moment")
            with connected(path), connected(path), told:
                await asyncio.to_thread(ask, path, "status")
            assert await answers_again(path)

    asyncio.run(run())


# Handlers that fail


def test_a_handler_that_raises_is_told_and_logged(path: Path) -> None:
    async def failing() -> object:
        raise TimeoutError("no worker \udcff")

    with structlog.testing.capture_logs() as log, pytest.raises(CommandFailed) as caught:
        asked(path, {"status": failing})
    assert str(caught.value) == (
        "status failed with TimeoutError: no worker \\udcff (journalctl -u edge-agent tells more)"
    )
    assert {"event": "a control command failed", "log_level": "error", "exc_info": True, "command": "status"} in log


@pytest.mark.parametrize("answer", [object(), {1j: 2}])
def test_an_answer_that_is_not_json_is_told_and_logged(path: Path, answer: object) -> None:
    async def handler() -> object:
        return answer

    with structlog.testing.capture_logs() as log, pytest.raises(CommandFailed, match="status failed with"):
        asked(path, {"status": handler})
    assert log[-1]["event"] == "a control command failed"


def test_text_that_is_no_unicode_gets_through(path: Path) -> None:
    async def handler() -> object:
        return ["/etc/\udcff.toml"]

    assert asked(path, {"status": handler}) == ["/etc/\udcff.toml"]


# The socket


@pytest.mark.parametrize("umask", [0, 0o022, 0o777])
def test_the_socket_is_for_its_owner_and_group(path: Path, umask: int) -> None:
    def check() -> None:
        status = path.stat()
        assert stat.S_IMODE(status.st_mode) == 0o660
        assert status.st_gid == os.getegid()

    async def run() -> None:
        before = os.umask(umask)
        try:
            async with serving(path):
                check()
        finally:
            os.umask(before)

    asyncio.run(run())


def test_at_no_time_is_the_socket_for_others(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_first = []
    chmod = Path.chmod

    def look_and_change(path: Path, mode: int) -> None:
        at_first.append(stat.S_IMODE(path.stat().st_mode))
        chmod(path, mode)

    monkeypatch.setattr(Path, "chmod", look_and_change)
    before = os.umask(0)
    try:
        assert asked(path) == ANSWER
    finally:
        os.umask(before)
    assert at_first == [0o660]


def test_the_socket_of_a_killed_agent_is_replaced(path: Path) -> None:
    code = (
        "import asyncio, sys; from pathlib import Path; from edge_agent.service.control import ControlServer\n"
        "async def run():\n"
        "    await ControlServer(Path(sys.argv[1]), {}).start(); print(flush=True); await asyncio.sleep(600)\n"
        "asyncio.run(run())"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE) as agent:
        assert agent.stdout is not None
        agent.stdout.readline()
        agent.send_signal(signal.SIGKILL)
    assert path.is_socket()
    with pytest.raises(NotRunning, match="nobody listens"):
        ask(path, "status")
    assert asked(path) == ANSWER
    assert not path.exists()


def test_the_socket_of_a_running_agent_is_not_stolen(path: Path) -> None:
    async def run() -> None:
        async with serving(path):
            with structlog.testing.capture_logs() as log:
                second = ControlServer(path, {})
                await second.start()
                await second.close()
            assert second.problem == f"no control socket at {path}: another process listens there"
            assert [(line["log_level"], line["error"]) for line in log] == [
                ("warning", "another process listens there")
            ]
            assert await answers(path)

    asyncio.run(run())


def test_the_socket_of_an_agent_that_hangs_is_not_stolen(path: Path, hanging_server: socket.socket) -> None:
    async def run() -> None:
        server = ControlServer(path, {})
        await server.start()
        assert server.problem is not None
        assert "another process listens there" in server.problem

    asyncio.run(run())
    assert path.is_socket()


def make_file(path: Path) -> None:
    path.write_text("precious")


def make_dangling_link(path: Path) -> None:
    path.symlink_to("nowhere")


@pytest.mark.parametrize("make", [make_file, make_dangling_link])
def test_what_is_not_a_socket_is_left_alone(path: Path, make: Callable[[Path], None]) -> None:
    make(path)
    assert "something else than a socket has this name" in problem_at(path)
    assert path.is_symlink() or path.read_text() == "precious"


def problem_at(path: Path) -> str:
    """Start and close a server that can have no socket."""

    async def run() -> str:
        async with serving(path) as server:
            return server.problem or ""

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing/control.sock", "No such file or directory"),
        ("file/control.sock", "Not a directory"),
        ("c" * 108, "AF_UNIX path too long"),
        ("c" * 300, "File name too long"),
    ],
)
def test_a_socket_that_cannot_be_made_is_a_problem_and_not_an_error(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "file").touch()
    assert problem_at(tmp_path / name) == f"no control socket at {tmp_path / name}: {reason}"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file"]


def test_closing_ends_connections_and_handlers_and_removes_the_socket(path: Path) -> None:
    async def run() -> None:
        started, cancelled = asyncio.Event(), asyncio.Event()

        async def reload() -> object:
            started.set()
            try:
                return await asyncio.Event().wait()
            finally:
                cancelled.set()

        async with serving(path, {"reload": reload}) as server:
            with connected(path) as silent:
                reloading = asyncio.create_task(asyncio.to_thread(ask, path, "reload", 60.0))
                await started.wait()
                await server.close()
                assert cancelled.is_set()
                assert await asyncio.to_thread(read_all, silent) == b""
                with pytest.raises(NoAnswer, match="ended the connection without an answer"):
                    await reloading

    asyncio.run(run())
    assert not path.exists()


def test_closing_leaves_the_socket_of_another(path: Path) -> None:
    remove = path.unlink

    async def run() -> None:
        async with serving(path) as first:
            remove()
            async with serving(path):
                await first.close()
                assert await answers(path)

    asyncio.run(run())
    assert not path.exists()


def test_closing_when_the_socket_has_gone(path: Path) -> None:
    remove = path.unlink

    async def run() -> None:
        async with serving(path):
            remove()

    with structlog.testing.capture_logs() as log:
        asyncio.run(run())
    assert log == []


# Who may ask


CHILD = """
import os, sys
from pathlib import Path
from edge_agent.service.control_client import ControlError, ask
os.setgroups([])
os.setgid(int(sys.argv[2]))
os.setuid(int(sys.argv[3]))
try:
    print(ask(Path(sys.argv[1]), "status", 60.0))
except ControlError as error:
    print(error)
    sys.exit(error.exit_status)
"""


@pytest.fixture
def ask_as(path: Path) -> Callable[[int, int], subprocess.CompletedProcess[str]]:
    """Ask as another user, in a folder that everybody may enter."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    path.parent.chmod(0o755)

    def run(gid: int, uid: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", CHILD, str(path), str(gid), str(uid)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    async def ask(gid: int, uid: int) -> subprocess.CompletedProcess[str]:
        async with serving(path):
            return await asyncio.to_thread(run, gid, uid)

    return lambda gid, uid: asyncio.run(ask(gid, uid))


def test_others_are_told_how_to_be_permitted(
    path: Path, ask_as: Callable[[int, int], subprocess.CompletedProcess[str]]
) -> None:
    done = ask_as(NOBODY, NOBODY)
    assert done.stdout.strip() == (
        f"permission denied at {path}: run it as root, or add your user to the group edge-agent: "
        "adduser nobody edge-agent, and log in again"
    )
    assert done.returncode == 77


def test_a_user_without_a_name_is_told_too(
    ask_as: Callable[[int, int], subprocess.CompletedProcess[str]],
) -> None:
    assert "adduser USER edge-agent" in ask_as(NOBODY, 4_000_000).stdout


def test_members_of_the_group_are_served(ask_as: Callable[[int, int], subprocess.CompletedProcess[str]]) -> None:
    done = ask_as(os.getegid(), NOBODY)
    assert (done.stdout.strip(), done.returncode) == (str(ANSWER), 0)
