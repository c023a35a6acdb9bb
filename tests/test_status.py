"""The line that an operator reads first."""

from typing import Any

from edge_agent.inference.supervisor import WorkerStatus
from edge_agent.models.rollout import RolloutStatus
from edge_agent.records import ResultEvent, Score
from edge_agent.status import Snapshot, status_line
from edge_agent.telemetry.sender import SenderState


def event(**more: Any) -> ResultEvent:
    return ResultEvent(
        event_id="edge-001/1/1",
        device_id="edge-001",
        timestamp=1,
        time_source="synchronized",
        results=[Score("normal", 0.99, 0)],
        prediction="normal",
        confidence=0.99,
        inference_time_ms=2.0,
        model_name="vibration",
        model_version="v1.3",
        accelerator="cpu",
        clipped=0.0,
        **more,
    )


def model(**more: Any) -> RolloutStatus:
    fine: dict[str, Any] = {
        "version": "v1.3",
        "state": "running",
        "waiting": None,
        "refusal": "",
        "last_poll": "v1.3 is the newest",
        "failures": 0,
        "next_poll": 60.0,
        "rejected": None,
    }
    return RolloutStatus(**(fine | more))


def snapshot(**more: Any) -> Snapshot:
    fine: dict[str, Any] = {
        "worker": WorkerStatus(state="running", source="open"),
        "model": model(),
        "sender": SenderState("sending", "", 0.0, 100, 1, 0),
        "model_name": "vibration",
        "latest": event(),
        "rate": 10.04,
        "waiting": 3,
        "oldest": 0.2,
        "queue_trouble": None,
        "reload_problem": None,
    }
    return Snapshot(**(fine | more))


def test_all_is_well() -> None:
    assert status_line(snapshot()) == "vibration v1.3 on cpu, 10.0/s, normal; events are sent"


def test_what_is_wrong_comes_first() -> None:
    now = snapshot(
        worker=WorkerStatus(state="restarting", source="trouble: unplugged", last_death="killed by SIGABRT"),
        sender=SenderState("offline", "pubsub://p/t cannot be reached", 0.0, 0, 0, 9),
        latest=event(degraded="no Edge TPU is plugged in"),
        waiting=4711,
        oldest=7200.4,
        queue_trouble="the disk is full",
        reload_problem="edge-agent.toml:3: [source].rate: expected a number",
    )
    assert status_line(now) == (
        "the worker died and is started again (killed by SIGABRT); source trouble: unplugged; "
        "degraded: no Edge TPU is plugged in; events are not sent: pubsub://p/t cannot be reached; "
        "queue: the disk is full; reload refused: edge-agent.toml:3: [source].rate: expected a number; "
        "vibration v1.3 on cpu, 10.0/s, normal; 4711 events wait, the oldest for 2h"
    )


def test_without_a_model_it_says_why() -> None:
    absent = model(version=None, state="no model", last_poll="gs://b/o: not found", failures=3)
    assert status_line(snapshot(model=absent, latest=None, waiting=0)) == (
        "no model yet (gs://b/o: not found); waiting; events are sent"
    )
    refused = model(version=None, refusal="v1.2 waits: it needs an Edge TPU, and no Edge TPU is plugged in")
    assert status_line(snapshot(model=refused, latest=None)).startswith(
        "no model yet (v1.2 waits: it needs an Edge TPU, and no Edge TPU is plugged in); "
    )
    assert "vibration v1.3, no result yet" in status_line(snapshot(latest=None))


def test_a_new_model_that_does_not_arrive_is_told_of() -> None:
    assert status_line(snapshot(model=model(refusal="v2 waits: the device is gone"))).startswith("model v2 waits: ")
    rejected = model(last_poll="v2 was rejected: is no model")
    assert status_line(snapshot(model=rejected)).startswith("model: v2 was rejected: is no model; vibration v1.3 ")
    offline = model(last_poll="the bucket does not answer", failures=1)
    assert status_line(snapshot(model=offline)).startswith("model: the bucket does not answer; ")


def test_samples_that_all_fail_are_told_of() -> None:
    worker = WorkerStatus(state="running", source="open", failure="the model takes 128 values, the source gives 64")
    assert status_line(snapshot(worker=worker, latest=None)).startswith(
        "no sample can be worked on: the model takes 128 values, the source gives 64; "
    )


def test_events_that_are_offline_wait_however_young_they_are() -> None:
    now = snapshot(sender=SenderState("needs_person", "no permission", 0.0, 0, 0, 1), waiting=3, oldest=0.2)
    assert status_line(now).endswith("3 events wait, the oldest for 0s")
