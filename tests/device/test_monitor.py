"""Looking at the sensors without waiting for them for ever."""

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from edge_agent.device import monitor
from edge_agent.device.monitor import SHARES_EVERY_S, SILENT, DeviceMonitor
from edge_agent.device.sensors import Readings, Sensors
from edge_agent.device.storage import FileSystem
from edge_agent.device.troubles import Change
from edge_agent.testing import Clock
from tests.device.boards import AGENT, WORKER, Board

ALARM = "sys/class/hwmon/hwmon1/in0_lcrit_alarm"


class Watched:
    """A Raspberry Pi 4 with a monitor, whose kernel can be kept from answering."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.board = Board.pi_4(root)
        self.clock = Clock()
        self.told: list[tuple[str, str]] = []
        self.answers = threading.Event()
        self.answers.set()
        self.reads = 0
        self.worker: int | None = WORKER
        self.monitor = DeviceMonitor(
            Sensors(root, root=root, disk=self._disk),
            on_health=lambda component, state, _detail: self.told.append((component, state)),
            worker_pid=lambda: self.worker,
            clock=self.clock,
        )
        self.looks = 0
        self.news = asyncio.Event()
        take = self.monitor._troubles.take

        def count(readings: Readings) -> list[Change]:
            self.looks += 1
            self.news.set()
            return take(readings)

        monkeypatch.setattr(self.monitor._troubles, "take", count)

    def _disk(self, _path: Path) -> FileSystem:
        self.reads += 1
        self.answers.wait()
        return FileSystem(10**9, 10**9, read_only=False, device="179:2")

    async def looked(self, times: int) -> None:
        """Wait until it has looked so often."""
        while self.looks < times:
            self.news.clear()
            await self.news.wait()

    async def survey(self) -> dict[str, Any]:
        told = await self.monitor.survey()
        assert told is not None
        builtins: dict[str, Any] = msgspec.to_builtins(told)
        return builtins


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Watched:
    monkeypatch.setattr("os.getpid", lambda: AGENT)
    return Watched(tmp_path, monkeypatch)


def test_a_change_is_told_of_when_it_is_seen(watched: Watched) -> None:
    async def look() -> None:
        await watched.monitor.look()
        assert watched.told == []
        watched.board.set(ALARM, "1\n")
        await watched.monitor.look()
        await watched.monitor.look()
        assert watched.told == [("power", "undervoltage")]
        assert (await watched.survey())["undervoltages"] == 1
        assert len(watched.monitor.problems) == 1

    asyncio.run(look())


def test_it_looks_again_and_again(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor, "LOOK_EVERY_S", 0.001)

    async def looks() -> None:
        running = asyncio.create_task(watched.monitor.run())
        await watched.looked(5)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(looks())


def test_it_looks_at_once_when_the_driver_tells_of_a_change(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor, "LOOK_EVERY_S", 3600.0)
    told: asyncio.Queue[Callable[[], None]] = asyncio.Queue()
    closed = []

    class Listener:
        """The board's files are ordinary ones: of these the kernel has nothing to tell."""

        @staticmethod
        def open(path: Path, on_change: Callable[[], None]) -> Any:
            assert path == watched.board.root / ALARM
            told.put_nowait(on_change)
            return SimpleNamespace(close=lambda: closed.append(path))

    monkeypatch.setattr(monitor, "ChangeListener", Listener)

    async def looks() -> None:
        running = asyncio.create_task(watched.monitor.run())
        tell = await told.get()
        for dips in range(1, 4):
            for low in (True, False):
                watched.board.set(ALARM, f"{low:d}\n")
                tell()
                await watched.looked(2 * dips + 1 - low)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert (await watched.survey())["undervoltages"] == 3
        assert watched.told == [("power", "undervoltage")]
        assert told.empty()  # it is listened to once
        assert len(closed) == 1

    asyncio.run(looks())


def test_shares_of_the_memory_are_read_now_and_then(watched: Watched) -> None:
    async def ask() -> None:
        shares = {"agent_pss_bytes", "worker_pss_bytes"}
        assert shares <= set(await watched.survey())
        watched.clock.sleep(SHARES_EVERY_S - 1)
        assert not shares & set(await watched.survey())
        watched.clock.sleep(1)
        assert shares <= set(await watched.survey())
        shown = await watched.monitor.show()
        assert shown is not None
        assert shares <= set(msgspec.to_builtins(shown))  # for who asks now

    asyncio.run(ask())


def test_without_a_worker_there_is_no_memory_of_it(watched: Watched) -> None:
    watched.worker = None
    told = asyncio.run(watched.survey())
    assert "agent_rss_bytes" in told
    assert "worker_rss_bytes" not in told


def test_a_kernel_that_does_not_answer_is_not_waited_for(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    async def ask() -> None:
        watched.board.set(ALARM, "1\n")
        await watched.monitor.look()
        watched.answers.clear()
        monkeypatch.setattr(monitor, "PATIENCE_S", 0.01)
        try:
            await watched.monitor.look()
            assert await watched.monitor.survey() is None
            assert await watched.monitor.show() is None
            assert watched.monitor.problems[0] == SILENT
            assert watched.told == [("power", "undervoltage")]
        finally:
            watched.answers.set()
        monkeypatch.undo()
        assert watched.monitor._waiting is not None
        await watched.monitor._waiting
        assert watched.reads == 2  # no thread has joined the one that waited
        assert SILENT not in watched.monitor.problems
        assert (await watched.survey())["undervoltage"] is True

    asyncio.run(ask())
