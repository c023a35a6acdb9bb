"""What never became an event, or a picture, is counted in the queue's ledger, once."""

from types import SimpleNamespace
from typing import Any

import structlog

from edge_agent.housekeeping import Housekeeping
from edge_agent.inference.protocol import Figures
from edge_agent.inference.supervision.status import WorkerStatus


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
        housekeeping._count_lost_samples()
        housekeeping._count_lost_samples()
    assert losses == [("raw_data_dropped", 3, 1000, 1000)]
    assert [(line["event"], line["count"], line["reason"]) for line in lines] == [
        ("pictures could not be kept", 3, "the disk is full")
    ]
    assert (status.clipped, status.over_budget) == (2, 10)
