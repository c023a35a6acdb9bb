"""From a batch of results to events, alarms and the operator's log."""

import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import structlog

from edge_agent.actions.rules import Rule, RuleSet
from edge_agent.inference.supervision.status import ResultBatch
from edge_agent.pipeline import Pipeline
from edge_agent.records import Box, LoadReport, ModelFile, Result, Score, Tensor, TimeSource
from edge_agent.telemetry.events.envelope import Envelope
from edge_agent.telemetry.events.publishing import Everything
from tests.telemetry.event_list import EventList

MODEL = ModelFile("/m.tflite", "vibration", "v1")
RULE = Rule(name="stop", labels=frozenset({"failure"}), min_confidence=0.8, cooldown=10.0, run=("true",))


class Clock:
    def wall_ms(self, captured_ns: int) -> int:
        return captured_ns // 1_000_000

    def time_source(self) -> TimeSource:
        return "unverified"


class Rig:
    def __init__(self, *rules: Rule, clock: Callable[[], float] = time.monotonic) -> None:
        self.queue = EventList()
        self.ran: list[tuple[str, dict[str, Any], int]] = []
        self.envelope = Envelope("edge-001", {}, Clock(), self.queue)
        publisher = Everything(self.envelope)
        self.pipeline = Pipeline(self.envelope, RuleSet(rules or [RULE]), self.run, publisher, clock=clock)

    def run(self, rule: Rule, line: bytes, captured_ns: int) -> None:
        self.ran.append((rule.name, json.loads(line), captured_ns))

    def take(self, *labels: str, **more: Any) -> None:
        self.take_results(*([Score(label, 0.9, 0)] for label in labels), **more)

    def take_results(self, *scores: list[Score], results: Sequence[Result] = (), **more: Any) -> None:
        results = [*results, *(Result(n * 100_000_000, 2_000_000, each, 0.0) for n, each in enumerate(scores))]
        facts: dict[str, Any] = {"dropped": 0, "failed": 0, "failure": ""}
        report = LoadReport(accepted=True, accelerator="edgetpu")
        self.pipeline.take(ResultBatch(list(results), MODEL, report, **(facts | more)))


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
    assert rig.ran == [("stop", alarm, 100_000_000)]
    assert alarm["accelerator"] == "edgetpu"


def test_a_change_of_the_prediction_is_logged_once(rig: Rig) -> None:
    with structlog.testing.capture_logs() as logs:
        rig.take("normal", "normal")
        rig.take("normal")
    assert [(line["event"], line["now"]) for line in logs] == [("prediction", "normal")]


def test_a_rule_for_what_the_model_never_says_is_told_once_for_a_model_and_after_a_reload(rig: Rig) -> None:
    report = LoadReport(accepted=True, labels=("normal", "warning"))
    batch = ResultBatch([Result(0, 1, [Score("normal", 0.9, 0)], 0.0)], MODEL, report, 0, 0, "")
    with structlog.testing.capture_logs() as logs:
        rig.pipeline.take(batch)
        rig.pipeline.take(batch)
        assert [line["reason"] for line in logs if line["log_level"] == "warning"] == [
            'action "stop" waits for "failure", which the model never says; it says "normal", "warning"'
        ]
        rig.pipeline.publish_by(Everything(rig.envelope))
        rig.pipeline.take(batch)
    assert len([line for line in logs if line["log_level"] == "warning"]) == 2


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
    rig = Rig(clock=lambda: now)
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
    shown = [line["now"] for line in logs if line["event"] == "prediction"]
    assert shown == ["failure", "normal", "failure", "normal"]


def found(label: str, score: float) -> Score:
    return Score(label, score, 0, Box(0.1, 0.1, 0.2, 0.2))


def test_an_alarm_on_objects_tells_how_many_there_are_and_not_of_the_best_one() -> None:
    crowd = Rule(name="crowd", labels=frozenset({"person", "child"}), min_confidence=0.5, min_count=2, run=("true",))
    rig = Rig(crowd, Rule(name="empty", max_count=0, run=("true",)))
    with structlog.testing.capture_logs() as logs:
        rig.take_results([found("dog", 0.9), found("person", 0.8), found("child", 0.5), found("child", 0.4)], [])
    alarms = [line for line in logs if line["event"] == "alarm"]
    assert [(line["action"], line["objects"], line.get("of")) for line in alarms] == [
        ("crowd", 2, "child, person"),
        ("empty", 0, None),
    ]
    assert not {"prediction", "confidence"} & alarms[0].keys()
    assert [event["kind"] for event in rig.queue.events] == ["result", "result", "alarm", "alarm"]
    assert len(rig.queue.events[2]["results"]) == 4
    assert not {"prediction", "confidence", "value"} & rig.queue.events[3].keys()


def test_an_alarm_on_a_value_tells_the_value() -> None:
    rig = Rig(Rule(name="hot", above=80.0, run=("true",)))
    with structlog.testing.capture_logs() as logs:
        rig.take_results(results=[Result(7, 2_000_000, [], 0.0, verdict="high", value=80.123456)])
    [alarm] = [line for line in logs if line["event"] == "alarm"]
    assert (alarm["prediction"], alarm["value"]) == ("high", "80.1235")
    assert "confidence" not in alarm
    assert rig.ran[0][1:] == (rig.queue.events[1], 7)


def test_an_alarm_on_one_of_several_values_tells_that_one() -> None:
    rig = Rig(Rule(name="damp", labels=frozenset({"humidity"}), above=60.0, run=("true",)))
    with structlog.testing.capture_logs() as logs:
        scores = [Score("temperature", 20.5, 0), Score("humidity", 63.25, 1)]
        rig.take_results(results=[Result(7, 2_000_000, scores, 0.0, verdict="normal", value=20.5)])
    [alarm] = [line for line in logs if line["event"] == "alarm"]
    assert (alarm["prediction"], alarm["value"], alarm["of"]) == ("normal", "63.25", "humidity")


@pytest.mark.parametrize(
    ("result", "shown"),
    [
        (Result(1, 2_000_000, [found("person", 0.91234), found("dog", 0.5)], 0.0),
         {"now": "person", "confidence": 0.912, "objects": 2}),
        (Result(1, 2_000_000, [], 0.0), {"now": "nothing"}),
        (Result(1, 2_000_000, [], 0.0, verdict="low", value=-3.14159265), {"now": "low", "value": -3.14159}),
        (Result(1, 2_000_000, [], 0.0, value=123456.7), {"now": 123457.0, "value": 123457.0}),
        (Result(1, 2_000_000, [], 0.0, outputs=[Tensor("scores", [1], [0.5])]), {"now": "raw outputs"}),
    ],
)  # fmt: skip
def test_what_is_shown_of_a_result(result: Result, shown: dict[str, Any]) -> None:
    rig = Rig()
    with structlog.testing.capture_logs() as logs:
        rig.take_results(results=[result])
    assert logs == [{"event": "prediction", "log_level": "info", "inference_ms": 2.0, **shown}]
