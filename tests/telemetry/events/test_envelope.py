"""Events as consumers see them."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from msgspec import UNSET

from edge_agent.records import Chosen, Quantiles, Result, Score, TimeSource
from edge_agent.telemetry.events.envelope import Envelope, ModelFacts
from edge_agent.telemetry.events.priority import Priority
from edge_agent.telemetry.events.schema import event_schema, schema_text
from tests.telemetry.event_list import EventList

SCHEMA = Path(__file__).parents[3] / "docs/event.schema.json"
FACTS = ModelFacts("vibration-classifier", "v1.3", "cpu", None)


class Clock:
    """A board whose clock says 2026-01-01 at the 100th second after boot."""

    is_set = True

    def wall_ms(self, captured_ns: int) -> int:
        return 1_767_225_600_000 + (captured_ns - 100_000_000_000) // 1_000_000

    def time_source(self) -> TimeSource:
        return "synchronized" if self.is_set else "unverified"


@pytest.fixture
def queue() -> EventList:
    return EventList(epoch=3, next_number=41)


@pytest.fixture
def envelope(queue: EventList) -> Envelope:
    return Envelope("edge-001", {"site": "lyon"}, Clock(), queue)


def result(captured_s: float, label: str = "normal", **more: Any) -> Result:
    scores = [Score(label, 0.9375, 0), Score("other", 0.0625, 1)]
    return Result(int(captured_s * 1e9), 3_600_000, scores, 0.03125, **more)


def test_a_result_keeps_the_keys_that_consumers_know(queue: EventList, envelope: Envelope) -> None:
    envelope.put_results([result(100, raw_data=[0.5, 0.25])], FACTS)
    assert queue.events == [
        {
            "kind": "result",
            "event_id": "edge-001/0000000000003/000000000041",
            "device_id": "edge-001",
            "timestamp": 1_767_225_600_000,
            "time_source": "synchronized",
            "device_labels": {"site": "lyon"},
            "results": [
                {"label": "normal", "score": 0.9375, "index": 0},
                {"label": "other", "score": 0.0625, "index": 1},
            ],
            "prediction": "normal",
            "confidence": 0.9375,
            "inference_time_ms": 3.6,
            "model_name": "vibration-classifier",
            "model_version": "v1.3",
            "accelerator": "cpu",
            "clipped": 0.0312,
            "raw_data": [0.5, 0.25],
        }
    ]


def test_a_chosen_sample_says_by_which_rule_and_where_its_picture_will_be(queue: EventList, envelope: Envelope) -> None:
    url = "gs://bucket/retraining/edge-001/2026-05-01/100000.000-ff.jpg"
    chosen = [result(100, chosen=Chosen("one_in", url)), result(101, chosen=Chosen("max_margin"), raw_data=[1.0])]
    [event, _] = envelope.put_results(chosen, FACTS)
    envelope.put_alarm(event, "stop-the-line")
    kept = [{name: value for name, value in event.items() if name.startswith("raw_data")} for event in queue.events]
    assert kept == [
        {"raw_data_url": url, "raw_data_rule": "one_in"},
        {"raw_data_rule": "max_margin", "raw_data": [1.0]},
        {"raw_data_url": url, "raw_data_rule": "one_in"},
    ]


def test_a_batch_is_numbered_in_order_and_stamped_with_its_captures(queue: EventList, envelope: Envelope) -> None:
    envelope.put_results([result(99), result(99.5), result(101)], FACTS)
    envelope.put_health(102_000_000_000, component="worker", state="died", detail="SIGABRT")
    ids = [event["event_id"] for event in queue.events]
    assert ids == sorted(ids)
    assert [int(each.rpartition("/")[2]) for each in ids] == [41, 42, 43, 44]
    base = 1_767_225_600_000
    assert [event["timestamp"] - base for event in queue.events] == [-1000, -500, 1000, 2000]
    assert queue.ranges == [(base - 1000, base + 1000), (base + 2000, base + 2000)]


def test_a_result_tells_of_those_that_were_left_out_before_it(queue: EventList, envelope: Envelope) -> None:
    envelope.put_results([result(1), result(2)], FACTS, [(7, 3), (UNSET, UNSET)])
    assert [(event.get("unpublished"), event.get("changes")) for event in queue.events] == [(7, 3), (None, None)]


def test_the_event_of_a_result_that_is_not_published_has_no_number(queue: EventList, envelope: Envelope) -> None:
    event = envelope.describe(result(100), FACTS)
    assert (event.prediction, event.timestamp) == ("normal", 1_767_225_600_000)
    assert event.event_id.endswith("/000000000000")
    assert queue.lines == []


def test_what_is_made_before_the_clock_is_set_can_be_dated_later(queue: EventList) -> None:
    clock = Clock()
    clock.is_set = False
    envelope = Envelope("edge-001", {}, clock, queue, boot_id="3f0c")
    [event, _] = envelope.put_results([result(99.5), result(100)], FACTS)
    envelope.put_health(101_000_000_000, component="worker", state="died")
    queue.lines.append(envelope.encode_loss(99, 102_000_000_000, cause="queue_full", count=3))
    clock.is_set = True
    envelope.put_alarm(event, "stop-the-line")
    envelope.put_results([result(103)], FACTS)
    *undated, dated = queue.events
    assert [each["monotonic_ms"] for each in undated] == [99_500, 100_000, 101_000, 102_000, 99_500]
    assert {each["boot_id"] for each in undated} == {"3f0c"}
    assert {each["time_source"] for each in undated} == {"unverified"}
    assert undated[-1]["kind"] == "alarm"
    assert dated["time_source"] == "synchronized"
    assert not {"boot_id", "monotonic_ms"} & dated.keys()
    validator = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text()))
    for each in queue.events:
        validator.validate(each)


def test_every_kind_of_event_fits_the_committed_schema(queue: EventList, envelope: Envelope) -> None:
    [event] = envelope.put_results([result(100)], ModelFacts("m", "v1", "edgetpu", "the device is gone"))
    envelope.put_alarm(event, "stop-the-line")
    envelope.put_model(1, model_name="m", model_version="v1", state="committed", accelerator="cpu", accuracy=0.94)
    envelope.put_model(1, model_name="m", model_version="v2", state="rejected", reason="no model", accuracy=None)
    envelope.put_health(1, component="source", state="trouble", detail="unplugged")
    envelope.put_summary(
        1, FACTS, window_ms=60_000, count=7, inference_time=Quantiles(1.0, 2.0, 3.0, 4.0), clipped=0.25
    )
    envelope.describe_device("edge-002", {})
    queue.lines.append(envelope.encode_loss(99, 1, cause="queue_full", count=3, first_timestamp=1, last_timestamp=2))

    validator = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text()))
    for each in queue.events:
        validator.validate(each)
    assert [each["kind"] for each in queue.events] == ["result", "alarm", "model", "model", "health", "summary", "loss"]
    assert queue.priorities == [
        Priority.RESULT, Priority.ALARM, Priority.NOTICE, Priority.NOTICE, Priority.HEALTH, Priority.RESULT
    ]  # fmt: skip
    assert queue.events[1]["action"] == "stop-the-line"
    assert "device_labels" not in queue.events[-1]
    assert queue.events[-1]["event_id"] == "edge-002/0000000000003/000000000099"
    with pytest.raises(jsonschema.ValidationError):
        validator.validate(queue.events[0] | {"confidence": "high"})


def test_the_committed_schema_is_the_one_of_the_code() -> None:
    assert SCHEMA.read_text() == schema_text(), (
        "the events have changed: run `python -m edge_agent.telemetry.events.schema > docs/event.schema.json`, "
        "and think of the tables that consumers have made"
    )


def test_every_event_fits_into_one_table_of_bigquery() -> None:
    """A column has one type, a repeated one has neither null nor lists in it, and only device_labels is a JSON."""
    definitions = event_schema()["$defs"]

    def column(schema: dict[str, Any]) -> object:
        if "$ref" in schema:
            return column(definitions[schema["$ref"].rpartition("/")[2]])
        if schema.get("type") == "object":
            assert "additionalProperties" not in schema, schema
            return {name: column(each) for name, each in schema["properties"].items()}
        if schema.get("type") == "array":
            item = column(schema["items"])
            assert not isinstance(item, list), schema
            return [item]
        # One type each: what "anyOf" offers, as with null, has none.
        return schema["type"] if "type" in schema else {str: "string"}[type(schema["enum"][0])]

    columns: dict[str, object] = {}
    for kind in event_schema()["anyOf"]:
        for name, schema in definitions[kind["$ref"].rpartition("/")[2]]["properties"].items():
            if name != "device_labels":
                found = column(schema)
                assert columns.setdefault(name, found) == found, name
    tensor = {"name": "string", "shape": ["integer"], "values": ["number"], "missing": ["integer"]}
    assert columns["outputs"] == [tensor]
