"""Which results become events; what a consumer can tell of the others, and that rules see them all."""

from collections.abc import Callable

import hypothesis.strategies as st
import pytest
from hypothesis import given

from edge_agent.actions.rules import Rule
from edge_agent.records import Chosen, LoadReport, ModelFile, Result, Score, Tensor
from edge_agent.settings.location import Destination
from edge_agent.settings.publish import Publish
from edge_agent.settings.schema import TelemetrySettings
from edge_agent.telemetry.events.envelope import Envelope
from edge_agent.telemetry.events.priority import Priority
from edge_agent.telemetry.events.publishing import (
    BURST,
    PAUSE,
    Changes,
    Everything,
    OneIn,
    Publisher,
    Selection,
    make_publisher,
)
from edge_agent.telemetry.events.summaries import Summaries
from tests.telemetry.events.publish_kit import MS, Rig, S, found, no_timer

INTERVAL = 300.0
FAILURE = Rule(name="stop", labels=frozenset({"failure"}), min_confidence=0.8, cooldown=1000.0, run=("true",))


def on_change(envelope: Envelope) -> Publisher:
    return Selection(envelope, Changes(INTERVAL))


def one_in(count: int) -> Callable[[Envelope], Publisher]:
    return lambda envelope: Selection(envelope, OneIn(count))


def summaries(envelope: Envelope) -> Publisher:
    return Summaries(envelope, 60.0, call_later=no_timer)


@pytest.fixture
def rig() -> Rig:
    return Rig(on_change)


# ------------------------------------------------------------------------------------------ on change


def test_on_change_the_first_result_and_each_change_are_published(rig: Rig) -> None:
    rig.take("normal", "normal", "normal", "failure")
    rig.take("failure")
    rig.take("failure", "normal")
    assert rig.published == [("normal", 0, 0), ("failure", 2, 0), ("normal", 2, 0)]


def test_nothing_found_is_a_change_too(rig: Rig) -> None:
    rig.take("person", [], [], "person")
    assert [shown for shown, *_ in rig.published] == ["person", None, "person"]


def test_on_change_each_model_version_and_accelerator_shows_its_first_result(rig: Rig) -> None:
    rig.take("normal", "normal")
    rig.take("normal", report=LoadReport(accepted=True, accelerator="edgetpu"))  # the worker was started again
    assert len(rig.published) == 1
    rig.take("normal", report=LoadReport(accepted=True, accelerator="cpu", degraded="no Edge TPU is plugged in"))
    rig.take("normal", "normal", model=ModelFile("/n.tflite", "vibration", "v2"))
    assert [(event["model_version"], event["accelerator"]) for event in rig.of("result")] == [
        ("v1", "edgetpu"),
        ("v1", "cpu"),
        ("v2", "edgetpu"),
    ]


def test_on_change_what_does_not_change_is_told_at_intervals() -> None:
    rig = Rig(on_change, step_ns=10 * S)
    rig.take(*["normal"] * 95)
    assert rig.published == [("normal", 0, 0)] + [("normal", 29, 0)] * 3
    # The interval counts from whatever was published last.
    rig.take("failure", *["failure"] * 29)
    assert rig.published[4:] == [("failure", 4, 0)]
    rig.take("failure")
    assert rig.published[5:] == [("failure", 29, 0)]


def test_a_detection_changes_with_what_is_found_and_how_many_and_not_with_which_is_best(rig: Rig) -> None:
    rig.take([found("person", 0.9), found("dog", 0.8)], [found("dog", 0.9), found("person", 0.8)])
    assert len(rig.published) == 1
    rig.take([found("dog", 0.9), found("person", 0.8), found("person", 0.7)])
    rig.take([found("dog", 0.9)], [])
    assert [len(event["results"]) for event in rig.of("result")] == [2, 3, 1, 0]


def test_a_regression_changes_with_what_its_limits_say(rig: Rig) -> None:
    for value, verdict in ((20.0, "normal"), (21.0, "normal"), (95.0, "high"), (96.0, "high")):
        rig.take([Score("temperature", value, 0)], value=value, verdict=verdict)
    assert [(event["prediction"], event["value"]) for event in rig.of("result")] == [("normal", 20.0), ("high", 95.0)]


def test_a_burst_of_changes_is_published_and_then_one_in_a_pause(rig: Rig) -> None:
    rig.step_ns = 0
    rig.take(*["a", "b"] * BURST)
    assert len(rig.published) == BURST
    rig.now_ns += round(PAUSE * S) - 1
    rig.take("a", "b")
    assert len(rig.published) == BURST
    rig.now_ns += 1
    rig.take("a", "b")
    assert len(rig.published) == BURST + 1


def test_what_flickers_is_bounded_and_counted(rig: Rig) -> None:
    rig.step_ns = 33 * MS
    seconds = 60
    count = seconds * 30
    for _ in range(count // 2):
        rig.take("normal", "warning")
    assert BURST < len(rig.published) <= BURST + seconds / PAUSE + 1
    assert rig.published[BURST - 1][1:] == (0, 0)
    told = sum(1 + unpublished for _, unpublished, _ in rig.published)
    assert count - 31 <= told <= count
    # Every change is counted, and the first result is one.
    assert sum(max(1, changes) for *_, changes in rig.published) == told
    # What stays in the end is what the last event shows.
    other = {"normal": "warning", "warning": "normal"}[rig.published[-1][0] or ""]
    rig.take(*[other] * 31)
    assert rig.published[-1][0] == other
    published = len(rig.published)
    rig.take(*[other] * 300)
    assert len(rig.published) == published
    # After some rest each change is published at once again.
    for label in "abc":
        rig.take(label)
    assert [shown for shown, *_ in rig.published[published:]] == ["a", "b", "c"]


@given(
    shown=st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3 * S)), min_size=1, max_size=60),
    size=st.integers(1, 5),
)
def test_on_change_a_consumer_knows_the_state_and_how_many_results_there_were(
    shown: list[tuple[str, int]], size: int
) -> None:
    rig = Rig(on_change)
    results: list[Result] = []
    for label, gap in shown:
        rig.step_ns = gap
        results.append(rig.result(label))
    seen = 0
    for start in range(0, len(results), size):
        batch = results[start : start + size]
        rig.take(*batch)
        seen += len(batch)
        told = sum(1 + unpublished for _, unpublished, _ in rig.published)
        # No result is told of twice, and none before the last published one is missing.
        assert rig.published[-1][0] == results[told - 1].prediction
        assert told <= seen
        # What has been shown for a pause is known.
        last = batch[-1]
        since = [each for each in results[:seen] if each.captured_ns >= last.captured_ns - PAUSE * S]
        if len({each.prediction for each in since}) == 1 and since[0].captured_ns <= last.captured_ns - PAUSE * S:
            assert rig.published[-1][0] == last.prediction
    times = [event["timestamp"] for event in rig.of("result")]
    assert times == sorted(times)
    for start, first in enumerate(times):
        for end, last_time in enumerate(times[start:], start):
            assert end - start + 1 <= BURST + (last_time - first + 1) / 1000 / PAUSE + 1


# ------------------------------------------------------------------------------------------ one in so many


def test_one_in_three_is_every_third_whatever_the_batches() -> None:
    rig = Rig(one_in(3))
    for batch in ("ab", "cdef", "g", "hij"):
        rig.take(*batch)
    assert rig.published == [("a", 0, 0), ("d", 2, 0), ("g", 2, 0), ("j", 2, 0)]


def test_one_in_so_many_begins_anew_with_another_model() -> None:
    rig = Rig(one_in(100))
    rig.take("a", "b")
    rig.take("c", "d", model=ModelFile("/n.tflite", "vibration", "v2"))
    assert rig.published == [("a", 0, 0), ("c", 1, 0)]


# ------------------------------------------------------------------------------------------ for every way


@pytest.mark.parametrize("make", [Everything, on_change, one_in(1000), summaries])
def test_rules_see_every_result_and_an_alarm_has_the_whole_of_its(make: Callable[[Envelope], Publisher]) -> None:
    held = Rule(name="held", labels=frozenset({"bad"}), hold=0.2, run=("true",))
    rig = Rig(make, FAILURE, held, step_ns=S // 10)
    rig.take("normal", "failure", "failure", "bad")
    rig.take("bad", "bad")
    rig.take("normal")
    alarms = rig.of("alarm")
    assert [(event["action"], event["timestamp"]) for event in alarms] == [("stop", 1_000_100), ("held", 1_000_500)]
    assert alarms[0]["results"] == [
        {"label": "failure", "score": 0.9, "index": 0},
        {"label": "other", "score": 0.1, "index": 1},
    ]
    assert (alarms[0]["prediction"], alarms[0]["model_version"], alarms[0]["inference_time_ms"]) == ("failure", "v1", 2)
    assert [(name, alarm, captured) for name, alarm, captured in rig.ran] == [
        ("stop", alarms[0], 1000 * S + S // 10),
        ("held", alarms[1], 1000 * S + S // 2),
    ]
    wanted = {"alarm": Priority.ALARM, "result": Priority.RESULT}
    assert rig.queue.priorities == [wanted[event["kind"]] for event in rig.queue.events]


@pytest.mark.parametrize("make", [Everything, on_change, one_in(1000), summaries])
def test_the_latest_result_is_known_whether_or_not_it_is_published(make: Callable[[Envelope], Publisher]) -> None:
    rig = Rig(make, step_ns=S // 10)
    assert rig.pipeline.prediction is None
    rig.take("a", "b", "c", "c")
    latest = rig.pipeline.prediction
    assert latest is not None
    assert (latest.prediction, latest.timestamp, latest.accelerator) == ("c", 1_000_300, "edgetpu")


def test_a_rule_on_values_sees_what_is_not_published() -> None:
    rig = Rig(one_in(1000), Rule(name="hot", above=80.0, run=("true",)))
    for value in (20.0, 79.0, 81.0):
        rig.take([Score("temperature", value, 0)], value=value)
    assert [event["value"] for event in rig.of("alarm")] == [81.0]
    assert len(rig.of("result")) == 1


@pytest.mark.parametrize("kind", [Changes, OneIn])
def test_a_result_with_a_chosen_sample_is_published_for_its_sake(kind: type[Changes] | type[OneIn]) -> None:
    rig = Rig(lambda envelope: Selection(envelope, kind(1000)))
    rig.take("a", "a", rig.result("a", raw_data=[0.5], chosen=Chosen("max_confidence")), "a")
    rig.take("a", rig.result("a", raw_data=[0.25], chosen=Chosen("one_in")))
    assert [(event.get("raw_data"), event.get("unpublished")) for event in rig.of("result")] == [
        (None, None),
        ([0.5], 1),
        ([0.25], 2),
    ]


def test_a_sample_that_every_result_has_is_no_reason_to_publish() -> None:
    rig = Rig(on_change)
    rig.take(rig.result("a", raw_data=[0.5]), rig.result("a", raw_data=[0.25]))
    assert [event["raw_data"] for event in rig.of("result")] == [[0.5]]


def test_results_of_the_task_raw_are_published_whole() -> None:
    rig = Rig(one_in(2))
    for value in (0.25, 0.5, 0.75):
        rig.take([], outputs=[Tensor("scores", [1], [value])])
    assert [event["outputs"][0]["values"] for event in rig.of("result")] == [[0.25], [0.75]]


def test_another_way_takes_over_at_a_reload() -> None:
    rig = Rig(on_change)
    rig.take("a", "a")
    rig.pipeline.publish_by(one_in(2)(rig.envelope))
    rig.take("a", "a", "a")
    rig.pipeline.publish_by(Everything(rig.envelope))
    rig.take("a", "a")
    rig.pipeline.close()
    assert rig.published == [("a", 0, 0), ("a", 0, 0), ("a", 1, 0), ("a", 0, 0), ("a", 0, 0)]


@pytest.mark.parametrize(
    ("publish", "kind"),
    [
        (Publish(), Everything),
        (Publish("change"), Selection),
        (Publish("one_in", one_in=30), Selection),
        (Publish("summary", window=60.0), Summaries),
    ],
)
def test_the_settings_say_which_way(publish: Publish, kind: type) -> None:
    settings = TelemetrySettings(sink=Destination("file", path="/events.jsonl"), publish=publish, health_interval=10.0)
    rig = Rig(lambda envelope: make_publisher(settings, envelope), step_ns=S)
    assert isinstance(rig.publisher, kind)
    if kind is Selection:
        rig.take(*["a"] * 61)
        assert len(rig.published) == {"change": 7, "one_in": 3}[publish.mode]
