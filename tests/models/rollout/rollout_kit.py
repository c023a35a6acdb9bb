"""A device with its disk for roll-outs from a real server; only the worker and the clock stand in."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from edge_agent.models.open import golden_of, open_model, open_twins
from edge_agent.models.release.audience import Device as Facts
from edge_agent.models.rollout.news import RolloutChange
from edge_agent.models.rollout.rollout import Rollout
from edge_agent.models.rollout.slots import Slots
from edge_agent.models.stores.base import Store
from edge_agent.models.stores.limits import DownloadLimits
from edge_agent.records import LoadReport, ModelFile, Result, Score, Terms
from edge_agent.settings.location import Location
from edge_agent.settings.trial import TrialSettings
from tests.servers.gcs import GcsServer

HOUR = 3600.0
GOOD = LoadReport(accepted=True, accelerator="edgetpu")
NO_MODEL = LoadReport(accepted=False, reason="it is no model", permanent=True)
NO_WORKER = LoadReport(accepted=False, reason="no worker")


class Shadowed(msgspec.Struct, frozen=True):
    """What a shadow has done."""

    samples: int
    agreed: int
    failed: int = 0
    clipped: int = 0
    latency_ms: float = 1.5


class TrialWorker:
    """Keeps the model before the one on trial, and notes what it is told to do about both, and about shadows."""

    def __init__(self) -> None:
        self.on_revert: Callable[[str], None] = lambda _: None
        self.on_shadow_end: Callable[[str], None] = lambda _: None
        self.current: ModelFile | None = None
        self.before: ModelFile | None = None
        self.told: list[str] = []
        self.terms: list[Terms] = []
        self.shadows: list[tuple[str, float]] = []
        self.shadow_answer = GOOD
        self.shadowed: Shadowed | None = None

    def switched(self, model: ModelFile, terms: Terms) -> None:
        self.terms.append(terms)
        self.before = self.current if terms.trial else None
        self.current = model

    async def revert(self, reason: str) -> None:
        assert self.before is not None
        self.told.append(f"revert: {reason}")
        self.current, self.before = self.before, None

    def keep(self) -> None:
        assert self.before is not None
        self.told.append("keep")
        self.before = None

    def go_back(self, reason: str) -> None:
        """The model on trial has failed where the one before it does not."""
        assert self.before is not None
        self.current, self.before = self.before, None
        self.on_revert(reason)

    async def shadow(self, model: ModelFile | None, share: float, terms: Terms) -> LoadReport:
        self.shadows.append((model.version if model is not None else "", share))
        if model is not None:
            assert not terms.trial
            assert (await asyncio.to_thread(Path(model.path).read_bytes)).startswith(b"model")
        return self.shadow_answer

    def take_shadow(self) -> Shadowed | None:
        taken, self.shadowed = self.shadowed, None
        return taken


class Worker(TrialWorker):
    """Answers to `load` as it was told: by version, the last answer for ever; otherwise it accepts.

    `answers_with_twin` go first where there is a twin; `twins` are the bytes of those, one for each load.
    """

    def __init__(self) -> None:
        super().__init__()
        self.answers: dict[str, list[LoadReport]] = {}
        self.loaded: list[str] = []
        self.files: list[ModelFile] = []
        self.answers_with_twin: dict[str, list[LoadReport]] = {}
        self.twins: list[bytes | None] = []
        self.hangs = False
        self.asked = asyncio.Event()

    async def load(self, model: ModelFile, terms: Terms) -> LoadReport:
        self.loaded.append(model.version)
        self.files.append(model)
        self.asked.set()
        assert (await asyncio.to_thread(Path(model.path).read_bytes)).startswith(b"model")
        self.twins.append(await asyncio.to_thread(Path(model.cpu_path).read_bytes) if model.cpu_path else None)
        if self.hangs:
            await asyncio.Event().wait()
        answers = self.answers.get(model.version, [GOOD])
        if model.cpu_path:
            answers = self.answers_with_twin.get(model.version, answers)
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if answer.accepted:
            self.switched(model, terms)
        return answer


def result(label: str = "normal", ms: float = 1.0, clipped: float = 0.0) -> Result:
    """What a model says of a sample."""
    return Result(captured_ns=1, inference_ns=round(ms * 1e6), scores=[Score(label, 0.9, 0)], clipped=clipped)


class Clock:
    """Time that passes only in `tick`. `pauses` gets the length of each pause as it begins."""

    def __init__(self) -> None:
        self.now = 0.0
        self.pauses: asyncio.Queue[float] = asyncio.Queue()
        self._end = asyncio.Event()
        self._length = 0.0

    async def sleep(self, delay: float) -> None:
        self._length = delay
        self._end = asyncio.Event()
        self.pauses.put_nowait(delay)
        await self._end.wait()

    async def pause(self) -> float:
        return await asyncio.wait_for(self.pauses.get(), 30)

    async def tick(self) -> float:
        """End the pause and return the length of the next one."""
        self.now += self._length
        self._end.set()
        return await self.pause()


class Device:
    """A device with its disk, from one start of the process to the next; `name` is that of the model's object."""

    def __init__(self, directory: Path, server: GcsServer, name: str = "m") -> None:
        self.directory = directory
        self.server = server
        self.url = Location("gs", "bucket", name)
        self.cpu_url: Location | None = None
        self.keys: list[str] = []
        self.facts = Facts("edge-001")
        self.name = ""
        self.pin = ""
        self.reserve = 0
        self.limits = DownloadLimits()
        self.trial = TrialSettings(time=0)
        self.hold = False
        self.chance = 0.5
        self.worker = Worker()
        self.changes: list[RolloutChange] = []

    def upload(self, version: str | None, data: bytes = b"") -> None:
        metadata = None if version is None else {"version": version, "labels": "a,b"}
        self.server.upload("bucket", self.url.path, data or f"model {version}".encode() * 500, metadata)

    def live(self, story: Callable[[Rollout, Clock], Awaitable[None]], *, interval: float = HOUR) -> None:
        asyncio.run(self._live(story, interval))

    def open_store(self) -> Store:
        """What is behind the URL."""
        return open_model(
            self.url,
            self.keys,
            device=self.facts,
            name=self.name,
            pin=self.pin,
            committed=lambda: self.slots.committed,
            limits=self.limits,
        )

    def ask(self, rollout: Rollout) -> None:
        """Have the roll-out ask what is behind the URL on the terms of now, as a reload does."""
        store = self.open_store()
        twins = open_twins(self.slots, self.url, self.cpu_url, store, self.limits)
        rollout.ask(store, twins=twins, golden=golden_of(store), pin=self.pin)

    async def _live(self, story: Callable[[Rollout, Clock], Awaitable[None]], interval: float) -> None:
        clock = Clock()
        self.slots = Slots(self.directory, str(self.url), reserve=self.reserve)
        store = self.open_store()
        rollout = Rollout(
            self.slots,
            store,
            self.worker,
            twins=open_twins(self.slots, self.url, self.cpu_url, store, self.limits),
            limits=self.limits,
            model_name="vibration",
            poll_interval=interval,
            on_change=self.changes.append,
            golden=golden_of(store),
            pin=self.pin,
            hold=self.hold,
            trial=self.trial,
            sleep=clock.sleep,
            clock=lambda: clock.now,
            jitter=lambda: self.chance,
        )
        await rollout.start()
        task = asyncio.create_task(rollout.run())
        try:
            await story(rollout, clock)
        finally:
            await rollout.stop()
            await task

    def changed(self) -> list[tuple[str, str, str | None]]:
        return [
            (one.state, one.release.version, one.previous.version if one.previous else None) for one in self.changes
        ]

    def downloads(self, name: str = "") -> int:
        """How many bodies were asked for, of the object `name` alone if given."""
        with_body = [one for one in self.server.requests if one.query.get("alt") == "media"]
        return sum(one.path.endswith(name) for one in with_body)


async def first_pause(_: Rollout, clock: Clock) -> None:
    assert await clock.pause() == HOUR


async def until(condition: Callable[[], object]) -> None:
    """Let the tasks and the threads of the disk go on until something has come of them."""
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110  what has come of them is all over the place
            await asyncio.sleep(0.001)


def committed(device: Device, *versions: str) -> None:
    """Have the versions rolled out one after the other."""

    async def story(_: Rollout, clock: Clock) -> None:
        await clock.pause()
        for version in versions[1:]:
            device.upload(version)
            await clock.tick()

    device.upload(versions[0])
    device.live(story)
    assert [one.release.version for one in device.changes] == list(versions)
    device.changes.clear()
    device.worker.loaded.clear()


def outcome(device: Device, polls: int = 1) -> str:
    """What the last of so many polls after a start found."""
    found = []

    async def story(rollout: Rollout, clock: Clock) -> None:
        await clock.pause()
        for _ in range(polls - 1):
            await clock.tick()
        found.append(rollout.status.last_poll)

    device.live(story)
    return found[0]
