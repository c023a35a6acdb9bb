"""What never became an event, or a picture, is counted in the queue's ledger, once."""

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import structlog

from edge_agent.housekeeping import Housekeeping
from edge_agent.inference.protocol import Figures
from edge_agent.inference.supervision.status import WorkerStatus
from edge_agent.telemetry.queue.queue import Loss, Queue
from tests.agentprocess import AgentProcess

MODEL = Path(__file__).parents[1] / "edge_agent/demo/vibration_classifier.tflite"
SETTINGS = f"""\
[source]
plugin = "recording"
path = "samples.csv"
[model]
url = "{MODEL}"
[inference]
accelerator = "cpu"
[telemetry]
sink = "events.jsonl"
"""


def test_pictures_that_the_worker_could_not_keep_are_lost_and_told_of() -> None:
    losses: list[tuple[str, int, int, int]] = []
    status = WorkerStatus()
    parts: dict[str, Any] = {
        "supervisor": SimpleNamespace(status=status),
        "queue": SimpleNamespace(count_loss=lambda *loss: losses.append(loss)),
        "clock": SimpleNamespace(wall_ms=lambda _: 1000),
    }
    others: dict[str, Any] = dict.fromkeys(
        ("envelope", "service", "status", "counters", "take_latencies", "survey", "model")
    )
    housekeeping = Housekeeping(**parts, **others, health_interval=300.0)
    status.add(Figures({}, clipped=1, over_budget=5, unkept=2, unkept_reason="the disk is full"))
    status.add(Figures({}, clipped=1, over_budget=5, unkept=1))
    with structlog.testing.capture_logs() as lines:
        housekeeping.count_lost_samples()
        housekeeping.count_lost_samples()
    assert losses == [("raw_data_dropped", 3, 1000, 1000)]
    assert [(line["event"], line["count"], line["reason"]) for line in lines] == [
        ("pictures could not be kept", 3, "the disk is full")
    ]
    assert (status.clipped, status.over_budget) == (2, 10)


def test_what_was_lost_just_before_the_end_is_in_the_books(tmp_path: Path) -> None:
    """Housekeeping looks every five seconds, and the agent is stopped before, unless the machine is slow."""
    good = ",".join(["0.1"] * 128)
    (tmp_path / "samples.csv").write_text("\n".join([good, "no numbers", good, good, ""]))
    with AgentProcess(tmp_path, SETTINGS) as agent:
        agent.wait_for_report(lambda report: report.results and report.results.samples == 3, "three results")
        assert agent.stop() == 0

    async def losses() -> list[Loss]:
        folder = tmp_path / "state" / "queue"
        async with Queue(folder, max_size=1_000_000, commit_interval=1.0, boot_id="another") as queue:
            return queue.losses()

    counted = {loss.cause: loss.count for loss in asyncio.run(losses())}
    events = map(json.loads, (tmp_path / "events.jsonl").read_text().splitlines())
    told = {event["cause"]: event["count"] for event in events if event["kind"] == "loss"}
    assert counted | told == {"source_skipped": 1}
