"""The regular health event."""

import asyncio
import json
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import jsonschema
import pytest

from edge_agent import __version__
from edge_agent.health import DeviceHealth
from edge_agent.housekeeping import Housekeeping
from edge_agent.inference.supervision.status import WorkerStatus
from edge_agent.records import Counters, LoadReport
from edge_agent.telemetry.events.envelope import Envelope
from edge_agent.telemetry.events.priority import Priority
from edge_agent.telemetry.events.schema import event_schema
from edge_agent.testing import Clock

INTERVAL_S = 300.0


class Queue:
    """A queue in which something waits; it keeps what is put into it."""

    epoch = next_number = 1
    size = 18_000
    depths = {Priority.ALARM: 1, Priority.RESULT: 5120}  # noqa: RUF012  a test's stand-in
    dropped_by_cause = {"queue_full": 300, "expired": 2}  # noqa: RUF012
    waited: float | None = None

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def oldest_age(self, _now_ms: int) -> float | None:
        return self.waited

    def put(self, _number: int, events: Sequence[bytes], *_: object, **__: object) -> None:
        self.events += map(json.loads, events)


class WallClock:
    """2026-01-01, and it stands still."""

    NOW_MS = 1_767_225_600_000

    def wall_ms(self, _captured_ns: int) -> int:
        return self.NOW_MS

    def time_source(self) -> str:
        return "synchronized"


class Agent:
    """What housekeeping needs of the rest."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.queue = Queue()
        self.worker = WorkerStatus(state="running")
        self.device: DeviceHealth | None = DeviceHealth(board="Raspberry Pi 5 Model B Rev 1.0")
        self.version: str | None = "v1.3"
        wall: Any = WallClock()
        supervisor: Any = SimpleNamespace(status=self.worker)
        queue: Any = self.queue
        service: Any = None
        self.housekeeping = Housekeeping(
            supervisor=supervisor,
            queue=queue,
            envelope=Envelope("edge-001", {}, wall, queue),
            clock=wall,
            service=service,
            status=str,
            counters=Counters,
            take_latencies=list,
            survey=self.survey,
            model=lambda: ("vibration", self.version),
            health_interval=INTERVAL_S,
            monotonic=self.clock,
        )

    async def survey(self) -> DeviceHealth | None:
        return self.device

    def tell(self) -> dict[str, Any]:
        """Let the interval go by; returns the event."""
        self.clock.sleep(INTERVAL_S)
        asyncio.run(self.housekeeping._tell_health())
        event = self.queue.events[-1]
        jsonschema.Draft202012Validator(event_schema()).validate(event)
        return event


@pytest.fixture
def agent() -> Agent:
    return Agent()


def test_it_has_what_is_known(agent: Agent) -> None:
    agent.worker.report = LoadReport(accepted=True, accelerator="edgetpu", device="usb:2-1.3")
    agent.queue.waited = 102.4
    event = agent.tell()
    assert event["device"] == {"board": "Raspberry Pi 5 Model B Rev 1.0"}
    assert event["queue"] == {
        "alarms": 1,
        "notices": 0,
        "health": 0,
        "results": 5120,
        "size_bytes": 18_000,
        "oldest_s": 102.4,
        "dropped": [{"cause": "expired", "count": 2}, {"cause": "queue_full", "count": 300}],
    }
    told = {name: event.get(name) for name in ("agent_version", "model_name", "model_version", "degraded")}
    assert told == {
        "agent_version": __version__,
        "model_name": "vibration",
        "model_version": "v1.3",
        "degraded": None,
    }
    assert (event["accelerator"], event["accelerator_device"]) == ("edgetpu", "usb:2-1.3")


def test_what_is_not_known_is_absent(agent: Agent) -> None:
    agent.device = agent.version = None
    agent.queue.dropped_by_cause = {}
    event = agent.tell()
    absent = {"device", "model_version", "accelerator", "accelerator_device", "degraded"}
    assert not absent & set(event)
    assert not {"oldest_s", "dropped"} & set(event["queue"])


def test_it_comes_once_in_an_interval(agent: Agent) -> None:
    agent.tell()
    agent.clock.sleep(INTERVAL_S - 1)
    asyncio.run(agent.housekeeping._tell_health())
    assert len(agent.queue.events) == 1
