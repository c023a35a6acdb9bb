"""Devices whose events are made as the agent makes them: by its pipeline and envelope, over its disk queue."""

import asyncio
import json
from pathlib import Path
from typing import Any

from edge_agent.actions.rules import Rule, RuleSet
from edge_agent.inference.supervision.status import ResultBatch
from edge_agent.pipeline import Pipeline
from edge_agent.records import (
    Accelerator,
    Box,
    Counters,
    Latency,
    LoadReport,
    ModelFile,
    PixelBox,
    Result,
    Score,
    Tensor,
    TimeSource,
)
from edge_agent.settings.location import Destination
from edge_agent.settings.publish import Publish
from edge_agent.settings.schema import TelemetrySettings
from edge_agent.telemetry.events.envelope import Envelope
from edge_agent.telemetry.events.priority import Priority
from edge_agent.telemetry.events.publishing import Everything, make_publisher
from edge_agent.telemetry.queue.queue import Queue

EPOCH = 1_700_000_000_000
RULE = Rule(name="stop", labels=frozenset({"failure"}), min_confidence=0.8, cooldown=0.001, run=("true",))


class Clock:
    """Wall time is CLOCK_MONOTONIC in milliseconds: an event is captured when the test says."""

    source: TimeSource = "synchronized"

    def wall_ms(self, captured_ns: int) -> int:
        return captured_ns // 1_000_000

    def time_source(self) -> TimeSource:
        return self.source


class Device:
    """One agent, from the results of its worker to the queue. Times are milliseconds since 1970."""

    def __init__(self, queue: Queue, name: str, labels: dict[str, str] | None = None) -> None:
        self.clock = Clock()
        self.queue = queue
        self.envelope = Envelope(name, labels or {}, self.clock, queue)
        self.pipeline = Pipeline(self.envelope, RuleSet([RULE]), lambda *_: None, Everything(self.envelope))

    def see(
        self,
        at_ms: int,
        *scores: Score,
        version: str = "v1",
        accelerator: Accelerator = "edgetpu",
        degraded: str | None = None,
        inference_ms: float = 2.0,
        **more: Any,
    ) -> None:
        """One result of the worker."""
        result = Result(at_ms * 1_000_000, int(inference_ms * 1_000_000), list(scores), 0.25, **more)
        report = LoadReport(accepted=True, accelerator=accelerator, degraded=degraded)
        model = ModelFile("/m.tflite", "vibration", version)
        self.pipeline.take(ResultBatch([result], model, report, dropped=0, failed=0, failure=""))

    def publish_by(self, publish: Publish) -> None:
        """Publish results in another way from now on; an open window is summed up."""
        settings = TelemetrySettings(sink=Destination("file", path="/events.jsonl"), publish=publish)
        self.pipeline.publish_by(make_publisher(settings, self.envelope))

    def lose(self, at_ms: int, cause: str, count: int) -> None:
        """Something was given up, and is reported."""
        number = self.queue.next_number
        facts = {"cause": cause, "count": count, "first_timestamp": at_ms - 1000, "last_timestamp": at_ms}
        event = self.envelope.encode_loss(number, at_ms * 1_000_000, **facts)
        self.queue.put(number, [event], at_ms, at_ms, Priority.NOTICE)

    def feel(self, at_ms: int, *latencies: Latency) -> None:
        """The regular health event."""
        self.envelope.put_health(
            at_ms * 1_000_000,
            component="inference",
            state="running",
            latencies=list(latencies),
            counters=Counters(samples=7),
        )


class Fleet:
    """Devices with a queue each, and all that these hand out."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._queues: list[Queue] = []

    async def device(self, name: str, labels: dict[str, str] | None = None) -> Device:
        queue = Queue(
            self._folder / name,
            max_size=1 << 28,
            commit_interval=1.0,
            boot_id="boot",
            clock=lambda: EPOCH / 1000,
        )
        await queue.open()
        self._queues.append(queue)
        return Device(queue, name, labels)

    async def events(self) -> dict[str, bytes]:
        """Return what waits in the queues, by event id, and close them."""
        found: dict[str, bytes] = {}
        for queue in self._queues:
            while queue.depth:
                batch = await queue.take(1000, 1 << 20)
                if batch is None:
                    break
                found |= {json.loads(event)["event_id"]: event for event in batch.events}
                queue.ack(batch)
            await queue.close()
        return found


def events_of_all_kinds(folder: Path) -> list[bytes]:
    """Return at least one event of every kind, with every member that there is."""

    async def make() -> dict[str, bytes]:
        fleet = Fleet(folder)
        device = await fleet.device("edge-001", {"site": "lyon"})
        at = EPOCH
        box, pixels = Box(0.1, 0.2, 0.3, 0.4), PixelBox(10, 20, 30, 40)
        device.see(at, Score("failure", 0.9375, 1, box, pixels), Score("normal", 0.0625, 0), raw_data=[0.5, 1.0])
        device.see(at + 1, accelerator="cpu", degraded="no Edge TPU is plugged in")
        device.see(at + 2, Score("speed", 3.5, 0), value=3.5, verdict="high")
        device.see(at + 3, outputs=[Tensor("out", [1, 2], [0.0, 1.5], [0])])
        device.publish_by(Publish("one_in", one_in=2))
        for _ in range(3):
            device.see(at + 4, Score("normal", 0.9375, 0))
        device.publish_by(Publish("summary", window=60.0))
        device.see(at + 4, Score("failure", 0.9375, 1, box, pixels), degraded="no Edge TPU is plugged in")
        device.see(at + 4, Score("speed", 3.5, 0), value=3.5, verdict="high", degraded="no Edge TPU is plugged in")
        device.publish_by(Publish("all"))
        now = (at + 4) * 1_000_000
        device.envelope.put_device_alarm(now, action="accelerator", detail="plug the stick out and in")
        model: dict[str, Any] = {"model_name": "vibration", "accuracy": 0.94}
        device.envelope.put_model(
            now, model_version="v1", state="committed", accelerator="cpu", previous_version="v0", **model
        )
        device.envelope.put_model(now, model_version="v2", state="rejected", reason="no model", **model)
        device.envelope.put_health(
            now,
            component="worker",
            state="died",
            detail="d",
            exit_status="killed by SIGABRT",
            stage="running the model",
        )
        device.feel(at + 5, Latency("invoke", 3, 1.0, 2.0, 3.0, 4.0))
        device.lose(at + 6, "queue_full", 3)
        return await fleet.events()

    return list(asyncio.run(make()).values())
