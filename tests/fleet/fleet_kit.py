"""A thousand devices and one bucket: real roll-outs, real disks, a real server, and hours that pass in no time."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from edge_agent.models.open import open_model, open_twins
from edge_agent.models.release.audience import Device
from edge_agent.models.rollout.rollout import Rollout
from edge_agent.models.rollout.slots import Slots
from edge_agent.models.stores.calls import Calls
from edge_agent.settings.location import Location
from tests.models.rollout.rollout_kit import HOUR, Worker
from tests.servers import gcs
from tests.servers.gcs import GcsServer, Request
from tests.telemetry.virtual_time import VirtualTimeLoop

AT_A_TIME = 4
"""Requests; no time passes while they wait for each other."""


@dataclass
class Traffic:
    """What the server was asked for, and when (seconds); `bodies` are the bytes of its answers, without headers."""

    requests: list[tuple[float, Request]] = field(default_factory=list)
    bodies: int = 0

    def busiest_minute(self, start: float, end: float) -> int:
        minutes = Counter(int(when // 60) for when, _ in self.requests if start <= when < end)
        return max(minutes.values())

    def of(self, name: str) -> tuple[int, int]:
        """How often the metadata and how often the contents of the objects with this in their name were asked for."""
        media = [request.query.get("alt") == "media" for _, request in self.requests if name in request.path]
        return media.count(False), media.count(True)


class Member:
    """One device of the fleet."""

    def __init__(self, number: int, folder: Path, url: Location, keys: list[str]) -> None:
        self.device = Device(f"edge-{number:04}", {"site": f"s{number % 10}", "line": str(number % 3)})
        self.worker = Worker()
        self.slots = Slots(folder / self.device.id, str(url), reserve=0)
        self._url, self._keys = url, keys

    def rollout(self, loop: asyncio.AbstractEventLoop) -> Rollout:
        store = open_model(self._url, self._keys, device=self.device, committed=lambda: self.slots.committed)
        return Rollout(
            self.slots,
            store,
            self.worker,
            twins=open_twins(self.slots, self._url, None, store),
            model_name="vibration",
            poll_interval=HOUR,
            on_change=lambda _: None,
            clock=loop.time,
            jitter=random.Random(self.device.id).random,
        )

    @property
    def version(self) -> str:
        return self.slots.committed.version if self.slots.committed is not None else ""


class Fleet:
    """`count` devices that look at `url`."""

    def __init__(self, count: int, folder: Path, server: GcsServer, url: Location, keys: list[str]) -> None:
        self.members = [Member(number, folder, url, keys) for number in range(count)]
        self.traffic = Traffic()
        self._server = server

    def on(self, version: str) -> set[str]:
        """The devices that start with this version."""
        return {one.device.id for one in self.members if one.version == version}

    def live(self, story: Callable[[], Awaitable[None]], monkeypatch: pytest.MonkeyPatch) -> None:
        """Let all devices run from now, all at once, until the story ends; it sleeps by the virtual clock."""
        with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
            runner.run(self._live(story, monkeypatch))

    async def _live(self, story: Callable[[], Awaitable[None]], monkeypatch: pytest.MonkeyPatch) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualTimeLoop)
        _hold_the_clock(loop, monkeypatch)
        self._watch(loop, monkeypatch)
        async with _running([one.rollout(loop) for one in self.members]):
            await story()

    def _watch(self, loop: VirtualTimeLoop, monkeypatch: pytest.MonkeyPatch) -> None:
        send, record = gcs._Handler._send, self._server.record

        def counted(handler: Any, status: int, body: bytes, headers: dict[str, str], **more: Any) -> None:
            self.traffic.bodies += len(body)
            send(handler, status, body, headers, **more)

        def timed(request: Request) -> None:
            self.traffic.requests.append((loop.time(), request))
            record(request)

        monkeypatch.setattr(gcs._Handler, "_send", counted)
        monkeypatch.setattr(self._server, "record", timed)


@asynccontextmanager
async def _running(rollouts: list[Rollout]) -> AsyncIterator[None]:
    await asyncio.gather(*(each.start() for each in rollouts))
    tasks = [asyncio.create_task(each.run()) for each in rollouts]
    try:
        yield
    finally:
        await asyncio.gather(*(each.stop() for each in rollouts))
        await asyncio.gather(*tasks)


def _hold_the_clock(loop: VirtualTimeLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a thread takes no time, and a few do it after one another."""
    run, few = Calls.run, asyncio.Semaphore(AT_A_TIME)

    async def held(calls: Calls, call: Any, **more: Any) -> Any:
        loop._virtual.working += 1
        try:
            async with few:
                return await run(calls, call, **more)
        finally:
            loop._virtual.working -= 1

    monkeypatch.setattr(Calls, "run", held)
