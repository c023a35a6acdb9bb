import os
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import structlog

from edge_agent.service.notify import ServiceManager


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["path", "abstract"])
def systemd(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The socket at which systemd would listen."""
    address = str(tmp_path / "notify") if request.param == "path" else f"@edge-agent-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as listening:
        listening.bind(address.replace("@", "\0"))
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        yield listening


@pytest.fixture(autouse=True)
def no_systemd(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def manager(no_systemd: None, systemd: socket.socket, clock: Clock) -> Iterator[ServiceManager]:
    manager = ServiceManager(clock)
    yield manager
    manager.close()


def received(listening: socket.socket) -> list[str]:
    messages = []
    while True:
        try:
            messages.append(listening.recv(4096).decode())
        except BlockingIOError:
            return messages


def test_the_life_of_a_service(systemd: socket.socket, manager: ServiceManager) -> None:
    manager.ready("running hand v1")
    manager.watchdog()
    manager.extend_timeout(2.5)
    manager.stopping()
    assert received(systemd) == [
        "STATUS=running hand v1\nREADY=1",
        "WATCHDOG=1",
        "EXTEND_TIMEOUT_USEC=2500000",
        "STOPPING=1",
    ]


def test_a_reload_carries_the_monotonic_time(systemd: socket.socket, manager: ServiceManager) -> None:
    before = time.monotonic_ns() // 1000
    manager.reloading()
    manager.ready("running")
    reloading, ready = received(systemd)
    word, usec = reloading.split("\nMONOTONIC_USEC=")
    assert word == "RELOADING=1"
    assert before <= int(usec) <= time.monotonic_ns() // 1000
    assert ready == "STATUS=running\nREADY=1"


def test_a_status_is_sent_when_it_differs_and_once_a_second(
    systemd: socket.socket, manager: ServiceManager, clock: Clock
) -> None:
    manager.status("one")
    manager.status("two")
    manager.status("three")
    assert received(systemd) == ["STATUS=one"]
    clock.now += 1
    manager.status("three")
    assert received(systemd) == ["STATUS=three"]
    clock.now += 1
    manager.status("three")
    assert received(systemd) == []


def test_a_status_that_waits_goes_out_with_the_next_notification(
    systemd: socket.socket, manager: ServiceManager
) -> None:
    manager.status("one")
    manager.status("two")
    manager.watchdog()
    assert received(systemd) == ["STATUS=one", "STATUS=two\nWATCHDOG=1"]


def test_a_status_is_one_line_of_utf_8(systemd: socket.socket, manager: ServiceManager) -> None:
    manager.status("modèle 手\nREADY=1\x1b[2J" + "x" * 5000)
    (message,) = received(systemd)
    assert message.startswith("STATUS=modèle 手 READY=1 [2Jxx")
    assert len(message) < 1100


def test_what_systemd_does_not_take_is_sent_later(systemd: socket.socket, manager: ServiceManager) -> None:
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as other,
        suppress(BlockingIOError),
    ):
        while True:
            other.sendto(b"X=1", systemd.getsockname())
    with structlog.testing.capture_logs() as log:
        manager.ready("up")
    assert log == []
    assert set(received(systemd)) == {"X=1"}
    manager.watchdog()
    assert received(systemd) == ["STATUS=up\nREADY=1\nWATCHDOG=1"]


def test_a_socket_that_nobody_listens_to_any_more_is_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(path)
        manager = ServiceManager()
    with structlog.testing.capture_logs() as log:
        manager.ready("up")
    assert [line["event"] for line in log] == ["systemd cannot be notified"]
    manager.close()
    manager.ready("closed")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # sdnotify drops its socket unclosed
def test_a_socket_that_does_not_exist_is_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nothing"))
    with structlog.testing.capture_logs() as log:
        manager = ServiceManager()
        manager.ready("up")
    assert [line["event"] for line in log] == ["systemd cannot be notified"]


def test_without_systemd_nothing_happens() -> None:
    manager = ServiceManager()
    assert manager.watchdog_interval is None
    manager.ready("up")
    manager.status("busy")
    manager.watchdog()
    manager.close()


@pytest.mark.parametrize(
    ("usec", "pid", "interval"),
    [
        ("30000000", None, 15.0),
        ("30000000", "own", 15.0),
        ("30000000", "1", None),
        ("0", None, None),
        ("soon", None, None),
        ("", None, None),
    ],
)
def test_the_watchdog_interval(
    usec: str, pid: str | None, interval: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", usec)
    if pid:
        monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()) if pid == "own" else pid)
    assert ServiceManager().watchdog_interval == interval
