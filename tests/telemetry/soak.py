"""Hours of a device's life in seconds: what the queue has accepted against what the cloud has received.

The queue and the sender are the real ones, on a real disk, and run by the clock of `virtual_time`. The network, the
ends and the starts are drawn by lot from a seed, so that a failure can be repeated.
"""

import asyncio
import contextlib
import random
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import msgspec

from edge_agent.telemetry.events.priority import Priority
from edge_agent.telemetry.queue.queue import Batch, Loss, Queue
from edge_agent.telemetry.sending.sender import Sender
from edge_agent.telemetry.sending.sinks import SinkNeedsPerson, SinkRejected, SinkUnavailable
from tests.telemetry.loopdisk import LoopDisk
from tests.telemetry.queue.queue_kit import end
from tests.telemetry.virtual_time import VirtualTimeLoop

HOUR = 3600.0
COMMIT_INTERVAL = 4.0
REPORT_INTERVAL = 5.0
PATIENCE = 8.0
POISON = "poison"
KINDS = {"alarm": Priority.ALARM, "health": Priority.HEALTH, "result": Priority.RESULT}
WEATHER = ["clear", "clear", "away", "away", "mixed", "hung", "slow", "forbidden"]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a soak does.

    `size` bytes is the queue's limit; `cuts`: the power fails, too; `card` may fill up; `offline`: until the end.
    """

    seed: int
    hours: float
    size: int = 1 << 30
    cuts: bool = False
    card: LoopDisk | None = None
    offline: bool = False


class Event(msgspec.Struct, omit_defaults=True):
    """An event as it goes through the queue."""

    event_id: str
    kind: str = "result"
    note: str = ""
    loss: Loss | None = None


@dataclass
class Cloud:
    """The sink. `weather` is what a request meets."""

    dice: random.Random
    weather: str = "clear"
    received: Counter[str] = field(default_factory=Counter)
    bodies: dict[str, bytes] = field(default_factory=dict)
    description: str = "the cloud of the soak"

    async def send(self, events: Sequence[bytes]) -> None:
        weather = (
            self.dice.choice(["clear", "away", "hung", "answer lost"]) if self.weather == "mixed" else self.weather
        )
        if weather == "away":
            raise SinkUnavailable("refused")
        if weather == "forbidden":
            raise SinkNeedsPerson("permission denied", "grant it")
        if weather == "hung":
            await asyncio.sleep(PATIENCE)
            raise SinkUnavailable("no answer in time")
        await asyncio.sleep(sum(map(len, events)) / 8_000 if weather == "slow" else 0.05)
        if any(POISON.encode() in event for event in events):
            raise SinkRejected("bad content")
        for event, name in zip(events, names_of(events), strict=True):
            assert self.bodies.setdefault(name, event) == event, f"two events are called {name}"
            self.received[name] += 1
        if weather == "answer lost":
            raise SinkUnavailable("the connection broke")

    async def close(self) -> None:
        pass

    def reported(self, names: Iterable[str]) -> Counter[str]:
        """What the loss events among these say, by cause."""
        losses = [msgspec.json.decode(self.bodies[name], type=Event).loss for name in names]
        counts: Counter[str] = Counter()
        for loss in losses:
            if loss is not None:
                counts[loss.cause] += loss.count
        return counts


def names_of(events: Sequence[bytes]) -> list[str]:
    return [msgspec.json.decode(event, type=Event).event_id for event in events]


class _Queue(Queue):
    """Tells which events were acknowledged."""

    confirmed: set[str]

    def ack(self, batch: Batch) -> None:
        self.confirmed.update(names_of(batch.events))
        super().ack(batch)


class Soak:
    """One device. `accepted` maps the id of each event that was put to when that was."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.plan = plan
        self.accepted: dict[str, float] = {}
        self.alarms: set[str] = set()
        self.poison: set[str] = set()
        self.acked: set[str] = set()
        self.excused: set[str] = set()  # younger than a commit interval when the power failed
        self.happened: Counter[str] = Counter()
        self._dice = random.Random(plan.seed)
        self.cloud = Cloud(self._dice)
        self._folder = folder
        self._state = (plan.card.path if plan.card else folder) / "state"
        self._runtime = folder / "run"
        self._runtime.mkdir()
        self._boot = 0
        self._wall = 1_700_000_000.0

    # -- the device

    async def live(self) -> None:
        """Let the time pass, end well, and leave nothing in the queue."""
        loop = asyncio.get_running_loop()
        while loop.time() < self.plan.hours * HOUR:
            how = self._dice.choice(["terminated", "killed", *(["cut"] if self.plan.cuts else [])])
            async with self._agent(how):
                await self._some_time()
            self.happened[how] += 1
        self.cloud.weather = "clear"
        async with self._agent("terminated") as queue:
            while queue.depth or queue.losses():  # noqa: ASYNC110  # the queue does not tell when it is empty
                await asyncio.sleep(REPORT_INTERVAL)

    @contextlib.asynccontextmanager
    async def _agent(self, how: str) -> AsyncIterator[Queue]:
        """Run an agent for the length of the block; `how` it ends."""
        loop = asyncio.get_running_loop()
        self._wall += self._dice.choice([0.0, 60.0, -86_400.0, 86_400.0])  # a clock that jumps
        queue = _Queue(
            self._state,
            runtime_directory=self._runtime,
            max_size=self.plan.size,
            commit_interval=COMMIT_INTERVAL,
            boot_id=f"boot-{self._boot}",
            clock=lambda: self._wall + loop.time(),
        )
        queue.confirmed = self.acked
        await queue.open()
        sender = Sender(queue, self.cloud, linger=0.25, clock=loop.time, sleep=asyncio.sleep, chance=self._dice.random)
        tasks = [
            asyncio.create_task(work) for work in (queue.run(), sender.run(), self._work(queue), self._tell(queue))
        ]
        yield queue
        if how == "terminated":
            for task in tasks[2:]:
                task.cancel()
            await sender.stop(1.0)
            await queue.close()
        else:
            await self._crash(queue, power=how == "cut")
        for task in tasks:
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, Exception):
                raise result

    async def _crash(self, queue: Queue, *, power: bool) -> None:
        """Keep what is on the disk at this moment, and throw away the agent with all that it would still do."""
        loop = cast("VirtualTimeLoop", asyncio.get_running_loop())
        while loop.working:  # noqa: ASYNC110  # half a copy of a file that is being written is no crash
            await asyncio.sleep(0)
        if power and queue.trouble is None:
            young = loop.time() - COMMIT_INTERVAL
            self.excused |= {name for name, when in self.accepted.items() if when >= young}
        elif power:  # while the disk is full only the journal has what is new
            power = False
        kept = [(folder, self._folder / f"kept-{folder.name}") for folder in (self._state, self._runtime)]
        for folder, copy in kept:
            shutil.copytree(folder, copy)
        end(queue)
        for folder, copy in kept:
            shutil.rmtree(folder)
            shutil.copytree(copy, folder)
            shutil.rmtree(copy)
        if power:
            self._boot += 1
            for path in self._runtime.iterdir():
                path.unlink()

    async def _work(self, queue: Queue) -> None:
        """Put events, as the inference does."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._dice.expovariate(1.0))
            first = queue.next_number
            [kind] = self._dice.choices(list(KINDS), weights=(1, 1, 48))
            count = self._dice.randint(1, 5) if kind == "result" else 1
            events = [self._event(f"{queue.epoch}/{first + i}", kind) for i in range(count)]
            now = int((self._wall + loop.time()) * 1000)
            queue.put(first, [msgspec.json.encode(event) for event in events], now, now, KINDS[kind])
            for event in events:
                self.accepted[event.event_id] = loop.time()

    def _event(self, name: str, kind: str) -> Event:
        if kind == "alarm":
            self.alarms.add(name)
        elif self._dice.random() < 0.001:
            self.poison.add(name)
            return Event(name, kind, POISON)
        return Event(name, kind, self._dice.randbytes(50).hex())

    async def _tell(self, queue: Queue) -> None:
        """Report losses every few seconds, as the housekeeping does."""
        loop = asyncio.get_running_loop()

        def build(number: int, losses: Sequence[Loss]) -> list[bytes]:
            events = [Event(f"{queue.epoch}/{number + i}", "loss", loss=loss) for i, loss in enumerate(losses)]
            for event in events:
                self.accepted[event.event_id] = loop.time()
            return [msgspec.json.encode(event) for event in events]

        while True:
            await asyncio.sleep(REPORT_INTERVAL)
            queue.report_losses(build, int((self._wall + loop.time()) * 1000))

    # -- what happens to it

    async def _some_time(self) -> None:
        """Let weather change a few times."""
        for _ in range(self._dice.randint(1, 4)):
            self.cloud.weather = "away" if self.plan.offline else self._dice.choice(WEATHER)
            self.happened[self.cloud.weather] += 1
            full = self.plan.card is not None and self._dice.random() < 0.3
            if full:
                cast("LoopDisk", self.plan.card).fill()
                self.happened["disk full"] += 1
            await asyncio.sleep(self._dice.uniform(30, 900))
            if full:
                cast("LoopDisk", self.plan.card).free()

    # -- what came of it

    def check(self) -> None:
        """Fail where an event is missing that no loss event names, or one arrived that nobody has put."""
        received = set(self.cloud.bodies)
        assert received <= set(self.accepted), "events that nobody has put"
        missing = set(self.accepted) - received - self.excused
        reported = self.cloud.reported(received)
        assert not missing & self.alarms, "alarms were lost"
        assert set(reported) <= {"rejected", "queue_full"}, reported
        # The queue may give up an event that has arrived, as long as nobody has confirmed that: it counts it, and what
        # it told of is told again. A power cut makes the queue forget what was confirmed.
        unsure = received - self.acked
        most = len(missing | unsure) + self.cloud.reported(unsure).total()
        most = len(self.accepted) if self.plan.cuts else most
        assert len(missing) <= reported.total() <= most, (
            f"{len(missing)} events are missing, the loss events say {dict(reported)}"
        )
        assert self.plan.cuts or reported["rejected"] <= len(missing & self.poison), "good events were rejected"
        assert self.plan.offline or len(received) > len(self.accepted) / 2, "hardly anything got through"


def soak(folder: Path, plan: Plan) -> Counter[str]:
    """Live a life and check it; returns what happened, and how often."""
    device = Soak(folder, plan)
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(device.live())
    device.check()
    return device.happened
