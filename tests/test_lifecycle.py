"""Stop, reload and status: who asks, who answers, and in which order."""

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, MutableMapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog

from edge_agent.lifecycle import Lifecycle
from edge_agent.report import Reloaded, StatusReport
from edge_agent.service.control_client import CONTROL_SOCKET, NoAnswer, ask
from tests.agentprocess import PATIENCE


class Rig:
    """A lifecycle whose reloads wait for permission, and answer with their number and what the file said."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / CONTROL_SOCKET
        self.lifecycle = Lifecycle(self.path)
        self.file = "first"
        self.reloads = 0
        self.go = asyncio.Event()

    async def reload(self) -> Reloaded:
        """Read the "file", and wait."""
        self.reloads += 1
        read = f"{self.reloads}: {self.file}"
        await self.go.wait()
        return Reloaded([], read)

    def status(self) -> str:
        """The line after a reload."""
        return f"after {self.reloads}"

    def serve(self) -> asyncio.Task[None]:
        """Let whoever is at work serve the reloads."""
        return asyncio.create_task(self.lifecycle.serve_reloads(self.reload, self.status))

    def ask(self, command: str = "reload") -> asyncio.Task[object]:
        """Ask at the control socket."""
        return asyncio.create_task(asyncio.to_thread(ask, self.path, command, PATIENCE))

    async def waiting(self, count: int) -> None:
        """Wait until so many have asked for a reload that has not begun."""
        await until(lambda: len(self.lifecycle._askers) == count)


def outcome(text: str) -> dict[str, object]:
    """The answer to a reload without faults."""
    return {"faults": [], "outcome": text}


async def until(condition: Callable[[], object]) -> None:
    """Wait until the event loop has made the condition true."""
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110  nobody sets an event when a request has been read
            await asyncio.sleep(0)


@asynccontextmanager
async def started(folder: Path) -> AsyncIterator[Rig]:
    rig = Rig(folder)
    await rig.lifecycle.start()
    try:
        yield rig
    finally:
        rig.lifecycle.service.close()
        await rig.lifecycle.close()


async def ended(*tasks: asyncio.Task[None]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


# ------------------------------------------------------------------------------------------ reload


def test_who_asks_during_a_reload_gets_the_next(tmp_path: Path) -> None:
    async def run() -> None:
        async with started(tmp_path) as rig:
            serving = rig.serve()
            first = rig.ask()
            await until(lambda: rig.reloads)
            # The first reload has read the file already.
            rig.file = "second"
            others = [rig.ask(), rig.ask()]
            await rig.waiting(2)
            rig.go.set()
            assert await first == outcome("1: first")
            assert await asyncio.gather(*others) == [outcome("2: second")] * 2
            assert rig.reloads == 2
            await ended(serving)

    asyncio.run(run())


def test_who_has_gone_away_keeps_nobody_waiting(tmp_path: Path) -> None:
    async def run() -> None:
        async with started(tmp_path) as rig:
            serving = rig.serve()
            with socket.socket(socket.AF_UNIX) as impatient:
                impatient.connect(str(rig.path))
                impatient.sendall(b'{"command": "reload"}\n')
                await until(lambda: rig.reloads)
            second = rig.ask()
            await rig.waiting(1)
            rig.go.set()
            assert await second == outcome("2: first")
            await ended(serving)

    asyncio.run(run())


def test_a_reload_that_is_cut_off_is_done_by_whoever_is_at_work_next(tmp_path: Path) -> None:
    async def run() -> None:
        async with started(tmp_path) as rig:
            idle = rig.serve()
            first = rig.ask()
            await until(lambda: rig.reloads)
            second = rig.ask()
            await rig.waiting(1)
            await ended(idle)
            rig.go.set()
            agent = rig.serve()
            assert [await first, await second] == [outcome("2: first")] * 2
            await ended(agent)

    asyncio.run(run())


def test_who_asks_before_anybody_is_at_work_is_answered_then(tmp_path: Path) -> None:
    async def run() -> None:
        async with started(tmp_path) as rig:
            first = rig.ask()
            await rig.waiting(1)
            rig.go.set()
            serving = rig.serve()
            assert await first == outcome("1: first")
            await ended(serving)

    asyncio.run(run())


def test_a_hangup_signal_asks_for_a_reload(tmp_path: Path) -> None:
    async def run() -> None:
        async with started(tmp_path) as rig:
            serving = rig.serve()
            os.kill(os.getpid(), signal.SIGHUP)
            await until(lambda: rig.reloads)
            await ended(serving)

    asyncio.run(run())


def test_systemd_hears_of_a_reload_before_and_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[str] = []

    async def run() -> None:
        async with started(tmp_path) as rig:
            serving = rig.serve()
            rig.go.set()
            await rig.ask()
            # Whoever has the answer may look at systemd's state, which has to be the new one.
            heard.extend(listening.recv(4096).decode() for _ in range(2))
            await ended(serving)

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(0)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        asyncio.run(run())
    assert heard[0].startswith("RELOADING=1\nMONOTONIC_USEC=")
    assert heard[1] == "STATUS=after 1\nREADY=1"


def test_who_waits_when_it_ends_gets_no_answer(tmp_path: Path) -> None:
    async def run() -> None:
        async with started(tmp_path) as rig:
            serving = rig.serve()
            first = rig.ask()
            await until(lambda: rig.reloads)
            second = rig.ask()
            await rig.waiting(1)
            await ended(serving)
            await rig.lifecycle.close()
            answers = await asyncio.gather(first, second, return_exceptions=True)
            assert [type(answer) for answer in answers] == [NoAnswer, NoAnswer]
            assert not rig.path.exists()

    asyncio.run(run())


# ------------------------------------------------------------------------------------------ status


def test_who_asks_for_the_status_too_early_waits_for_it(tmp_path: Path) -> None:
    async def report() -> StatusReport:
        return StatusReport(state="idle", version="1", config="x", summary="now", problems=[])

    async def later() -> StatusReport:
        return StatusReport(state="running", version="1", config="x", summary="later", problems=[])

    async def run() -> None:
        with structlog.testing.capture_logs() as log:
            async with started(tmp_path) as rig:
                await ask_early_and_late(rig, log)

    async def ask_early_and_late(rig: Rig, log: list[MutableMapping[str, Any]]) -> None:
        early = rig.ask("status")
        await until(lambda: any(line["event"] == "control command" for line in log))
        rig.lifecycle.answer_status(report)
        answer = await early
        assert isinstance(answer, dict)
        assert (answer["state"], answer["summary"]) == ("idle", "now")
        rig.lifecycle.answer_status(later)
        answer = await rig.ask("status")
        assert isinstance(answer, dict)
        assert (answer["state"], answer["summary"]) == ("running", "later")

    asyncio.run(run())


# ------------------------------------------------------------------------------------------ stop


def test_what_is_at_work_is_cancelled_when_the_program_is_told_to_stop(tmp_path: Path) -> None:
    async def run() -> None:
        async with started(tmp_path) as rig:
            begun, cancelled = asyncio.Event(), asyncio.Event()

            async def work() -> None:
                begun.set()
                try:
                    await asyncio.Event().wait()
                finally:
                    cancelled.set()

            working = asyncio.create_task(rig.lifecycle.until_stopped(work()))
            await begun.wait()
            os.kill(os.getpid(), signal.SIGTERM)
            async with asyncio.timeout(PATIENCE):
                await working
            assert cancelled.is_set()
            assert rig.lifecycle.stopping.is_set()

    asyncio.run(run())


def test_work_that_ends_by_itself_stops_nothing(tmp_path: Path) -> None:
    async def run() -> None:
        async with started(tmp_path) as rig:
            async with asyncio.timeout(PATIENCE):
                await rig.lifecycle.until_stopped(asyncio.sleep(0))
            assert not rig.lifecycle.stopping.is_set()

    asyncio.run(run())


def test_a_bug_at_work_is_not_swallowed(tmp_path: Path) -> None:
    async def work() -> None:
        await asyncio.sleep(0)
        raise KeyError("bug")

    async def run() -> None:
        async with started(tmp_path) as rig, asyncio.timeout(PATIENCE):
            await rig.lifecycle.until_stopped(work())

    with pytest.raises(BaseExceptionGroup) as caught:
        asyncio.run(run())
    assert caught.value.subgroup(KeyError) is not None
