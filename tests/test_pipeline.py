"""From a batch of results to events, alarms and the operator's log."""

import json
from collections.abc import Sequence
from typing import Any

import pytest
import structlog

from edge_agent.actions.rules import Rule, RuleSet
from edge_agent.inference.worker_status import ResultBatch
from edge_agent.pipeline import Pipeline
from edge_agent.records import LoadReport, ModelFile, Result, Score, TimeSource
from edge_agent.telemetry.envelope import Envelope

MODEL = ModelFile("/m.tflite", "vibration", "v1")
RULE = Rule("stop", "failure", min_confidence=0.8, hold=0.0, cooldown=10.0, run=("true",), timeout=1.0)


class Clock:
    def wall_ms(self, captured_ns: int) -> int:
        return captured_ns // 1_000_000

    def time_source(self) -> TimeSource:
        return "unverified"


class Queue:
    epoch = 1
    next_number = 1

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def put(self, first_number: int, events: Sequence[bytes], first_ms: int, last_ms: int) -> None:
        self.next_number += len(events)
        self.events += map(json.loads, events)


class Rig:
    def __init__(self) -> None:
        self.queue = Queue()
        self.ran: list[tuple[str, dict[str, Any]]] = []
        envelope = Envelope("edge-001", {}, Clock(), self.queue)
        self.pipeline = Pipeline(
            envelope, RuleSet([RULE]), lambda rule, line: self.ran.append((rule.name, json.loads(line)))
        )

    def take(self, *labels: str, **more: Any) -> None:
        results = [Result(n * 100_000_000, 2_000_000, [Score(label, 0.9, 0)], 0.0) for n, label in enumerate(labels)]
        facts: dict[str, Any] = {"dropped": 0, "failed": 0, "failure": ""}
        report = LoadReport(accepted=True, accelerator="edgetpu")
        self.pipeline.take(ResultBatch(results, MODEL, report, **(facts | more)))


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_an_alarm_follows_the_results_of_its_batch(rig: Rig) -> None:
    rig.take("normal", "failure", "failure")
    assert [(event["kind"], event["prediction"]) for event in rig.queue.events] == [
        ("result", "normal"),
        ("result", "failure"),
        ("result", "failure"),
        ("alarm", "failure"),
    ]
    alarm = rig.queue.events[-1]
    assert alarm["action"] == "stop"
    assert alarm["timestamp"] == rig.queue.events[1]["timestamp"]
    assert alarm["event_id"] != rig.queue.events[1]["event_id"]
    assert rig.ran == [("stop", alarm)]
    assert alarm["accelerator"] == "edgetpu"


def test_a_change_of_the_prediction_is_logged_once(rig: Rig) -> None:
    with structlog.testing.capture_logs() as logs:
        rig.take("normal", "normal")
        rig.take("normal")
    assert [(line["event"], line["now"]) for line in logs] == [("prediction", "normal")]


def test_a_flickering_prediction_does_not_flood_the_log(rig: Rig) -> None:
    with structlog.testing.capture_logs() as logs:
        for _ in range(50):
            rig.take("normal", "warning")
    assert len(logs) == 1
    assert (logs[0]["now"], logs[0]["changes"]) == ("warning", 2)


def test_samples_that_failed_are_told_of(rig: Rig) -> None:
    with structlog.testing.capture_logs() as logs:
        rig.take(failed=3, failure="the model takes 128 values, the source gives 64")
    assert rig.queue.events == []
    assert logs[0]["log_level"] == "warning"
    assert (logs[0]["count"], logs[0]["reason"]) == (3, "the model takes 128 values, the source gives 64")


def test_a_prediction_that_goes_on_flickering_is_told_ever_more_rarely() -> None:
    now = 0.0
    pipeline = Pipeline(Envelope("edge-001", {}, Clock(), Queue()), RuleSet([]), lambda *_: None, clock=lambda: now)
    rig = Rig()
    rig.pipeline = pipeline
    with structlog.testing.capture_logs() as logs:
        for _ in range(600):
            rig.take("normal", "warning")
            now += 1.0

    assert len(logs) < 20
    with structlog.testing.capture_logs() as logs:
        for seconds, label in ((60, "failure"), (60, "normal"), (1, "failure"), (1, "normal")):
            now += seconds
            rig.take(label)
    # Once it has held still for a while, each change is told at once again.
    assert [line["now"] for line in logs] == ["failure", "normal", "failure", "normal"]
