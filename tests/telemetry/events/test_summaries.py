"""One event for all results of a window: what it counts, when it comes, and that each result counts once."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import hypothesis.strategies as st
import jsonschema
import pytest
from hypothesis import given

from edge_agent.records import Chosen, LoadReport, ModelFile, Result, Score, Tensor
from edge_agent.telemetry.events import summaries
from edge_agent.telemetry.events.envelope import Envelope
from edge_agent.telemetry.events.publishing import Publisher
from edge_agent.telemetry.events.summaries import GRACE, Summaries
from tests.telemetry.events.publish_kit import MS, Rig, S, found, no_timer

SCHEMA = Path(__file__).parents[3] / "docs/event.schema.json"
V2 = ModelFile("/n.tflite", "vibration", "v2")


class Timers:
    """The event loop's timers, with a clock that stands still until `go_to`."""

    def __init__(self) -> None:
        self.now_ns = 0
        self.due: dict[Timers.Timer, int] = {}

    class Timer:
        def __init__(self, timers: "Timers", callback: Callable[[], None]) -> None:
            self.timers = timers
            self.callback = callback

        def cancel(self) -> None:
            self.timers.due.pop(self, None)

    def monotonic_ns(self) -> int:
        return self.now_ns

    def call_later(self, delay: float, callback: Callable[[], None]) -> "Timers.Timer":
        timer = self.Timer(self, callback)
        self.due[timer] = self.now_ns + round(delay * S)
        return timer

    def go_to(self, now_ns: int) -> None:
        self.now_ns = max(self.now_ns, now_ns)
        for timer, due in list(self.due.items()):
            if due <= self.now_ns:
                del self.due[timer]
                timer.callback()


class SummaryRig(Rig):
    """Windows of a minute. The clock stands at the capture of the latest result."""

    def __init__(self, window: float = 60.0) -> None:
        self.timers = timers = Timers()

        def make(envelope: Envelope) -> Publisher:
            return Summaries(
                envelope,
                window,
                monotonic_ns=timers.monotonic_ns,
                call_later=timers.call_later,
            )

        super().__init__(make, step_ns=S)

    def result(self, shown: str | list[Score] = "normal", **more: object) -> Result:
        self.timers.go_to(self.now_ns)
        return super().result(shown, **more)  # type: ignore[arg-type]  # handed on as they are

    @property
    def windows(self) -> list[tuple[int, int, int]]:
        """Start and end of each window, in ms of the monotonic clock, and how many results it counts."""
        return [
            (event["timestamp"] - event["window_ms"], event["timestamp"], event["count"])
            for event in self.of("summary")
        ]


@pytest.fixture
def rig() -> SummaryRig:
    return SummaryRig()


# ------------------------------------------------------------------------------------------ what it tells


def test_a_summary_of_a_classification(rig: SummaryRig) -> None:
    rig.take(*["normal"] * 54, took_ns=2 * MS)
    rig.take(*["failure"] * 6, took_ns=40 * MS, clipped=0.5)
    assert rig.queue.events == []
    rig.take("normal")
    assert rig.queue.events == [
        {
            "kind": "summary",
            "event_id": "edge-001/0000000000001/000000000001",
            "device_id": "edge-001",
            "timestamp": 1_060_000,
            "time_source": "unverified",
            "window_ms": 60_000,
            "count": 60,
            "inference_time": {"p50_ms": 1.999, "p95_ms": 40.0, "p99_ms": 40.0, "max_ms": 40.0},
            "model_name": "vibration",
            "model_version": "v1",
            "accelerator": "edgetpu",
            "clipped": 0.05,
            "predictions": [
                {
                    "label": "normal",
                    "count": 54,
                    "inference_time": {"p50_ms": 1.999, "p95_ms": 1.999, "p99_ms": 1.999, "max_ms": 2.0},
                    "confidence": 0.9,
                },
                {
                    "label": "failure",
                    "count": 6,
                    "inference_time": {"p50_ms": 40.0, "p95_ms": 40.0, "p99_ms": 40.0, "max_ms": 40.0},
                    "confidence": 0.9,
                },
            ],
        }
    ]


def test_a_summary_of_a_detection_counts_objects_and_the_pictures_with_them(rig: SummaryRig) -> None:
    rig.take([found("person", 0.75), found("person", 0.5), found("dog", 0.25)], [found("dog", 0.75)], [])
    rig.pipeline.close()
    [event] = rig.queue.events
    assert event["count"] == 3
    assert [(each["label"], each["count"], each["confidence"]) for each in event["predictions"]] == [
        ("person", 1, 0.75),
        ("dog", 1, 0.75),
    ]
    assert event["objects"] == [
        {"label": "person", "count": 2, "results": 1, "confidence": 0.625},
        {"label": "dog", "count": 2, "results": 2, "confidence": 0.5},
    ]


def test_a_summary_of_values_has_their_range_and_how_often_they_were_normal(rig: SummaryRig) -> None:
    for value, verdict in ((-2.5, "low"), (20.0, "normal"), (21.1, "normal")):
        rig.take([Score("temperature", value, 0), Score("humidity", 60.0, 1)], value=value, verdict=verdict)
    rig.pipeline.close()
    [event] = rig.queue.events
    assert [(each["label"], each["count"], "confidence" in each) for each in event["predictions"]] == [
        ("normal", 2, False),
        ("low", 1, False),
    ]
    assert event["values"] == [
        {"label": "temperature", "mean": 12.86667, "min": -2.5, "max": 21.1},
        {"label": "humidity", "mean": 60.0, "min": 60.0, "max": 60.0},
    ]


def test_what_a_result_does_not_have_is_not_in_the_summary(rig: SummaryRig) -> None:
    rig.take([], outputs=[Tensor("scores", [1], [0.5])])
    rig.pipeline.close()
    [event] = rig.queue.events
    assert event["count"] == 1
    assert not {"predictions", "objects", "values", "degraded"} & event.keys()


def test_every_summary_is_as_the_schema_says(rig: SummaryRig) -> None:
    rig.take("normal", [])
    rig.take([found("dog")], report=LoadReport(accepted=True, degraded="no Edge TPU is plugged in"))
    rig.take([Score("wear", 2.5, 0)], value=2.5, model=V2)
    rig.pipeline.close()
    validator = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text()))
    for event in rig.queue.events:
        validator.validate(event)
    assert [event.get("degraded") for event in rig.queue.events] == [None, "no Edge TPU is plugged in", None]


def test_a_chosen_sample_is_published_and_counted() -> None:
    rig = SummaryRig()
    rig.take("normal", rig.result("failure", raw_data=[0.5], chosen=Chosen("min_clipped")), "normal")
    rig.pipeline.close()
    assert [(event["kind"], event.get("count")) for event in rig.queue.events] == [("result", None), ("summary", 3)]
    assert rig.queue.events[0]["raw_data"] == [0.5]


# ------------------------------------------------------------------------------------------ when it comes


def test_windows_follow_one_another_without_a_gap(rig: SummaryRig) -> None:
    rig.take(*["normal"] * 31)
    rig.now_ns += S // 2
    for _ in range(100):
        rig.take("normal")
    rig.pipeline.close()
    assert rig.windows == [(1_000_000, 1_060_000, 60), (1_060_000, 1_120_000, 60), (1_120_000, 1_130_500, 11)]


def test_a_window_ends_although_no_result_comes_any_more(rig: SummaryRig) -> None:
    rig.take("normal")
    rig.timers.go_to(1060 * S + round(GRACE * S) - 1)
    assert rig.windows == []
    rig.timers.go_to(1060 * S + round(GRACE * S))
    assert rig.windows == [(1_000_000, 1_060_000, 1)]
    # Nothing happened, so there is nothing to tell.
    rig.timers.go_to(4000 * S)
    assert len(rig.windows) == 1
    assert rig.timers.due == {}
    rig.now_ns = 4000 * S
    rig.take("normal")
    rig.timers.go_to(5000 * S)
    assert rig.windows[1:] == [(4_000_000, 4_060_000, 1)]


def test_a_result_that_was_on_its_way_when_its_window_ended_still_counts_in_it(rig: SummaryRig) -> None:
    rig.take("normal")
    rig.timers.go_to(1060 * S + S // 2)
    late = Result(1059 * S, 2 * MS, [Score("normal", 0.9, 0)], 0.0)
    rig.take(late)
    rig.timers.go_to(1061 * S)
    assert rig.windows == [(1_000_000, 1_060_000, 2)]
    # One that is later yet counts in the next window, which begins where this one has ended.
    rig.take(late)
    rig.pipeline.close()
    assert rig.windows[1:] == [(1_060_000, 1_061_000, 1)]


def test_a_window_is_no_longer_than_the_time_since_boot() -> None:
    rig = SummaryRig()
    rig.now_ns = 20 * S
    rig.take("normal")
    rig.pipeline.close()
    assert rig.windows == [(20_000, 20_000, 1)]


def test_another_model_or_another_way_to_run_it_ends_the_window(rig: SummaryRig) -> None:
    rig.take(*["normal"] * 10)
    rig.take(*["normal"] * 10, model=V2)
    rig.take(*["normal"] * 10, model=V2, report=LoadReport(accepted=True, accelerator="cpu"))
    rig.pipeline.close()
    assert [(event["model_version"], event["accelerator"]) for event in rig.queue.events] == [
        ("v1", "edgetpu"),
        ("v2", "edgetpu"),
        ("v2", "cpu"),
    ]
    assert rig.windows == [(1_000_000, 1_010_000, 10), (1_010_000, 1_020_000, 10), (1_020_000, 1_029_000, 10)]


def test_a_reload_and_the_end_send_what_there_is(rig: SummaryRig) -> None:
    rig.take("normal", "normal")
    rig.envelope.describe_device("edge-001", {"site": "lyon"})
    rig.pipeline.publish_by(Summaries(rig.envelope, 10.0, call_later=no_timer))
    assert (rig.windows, rig.timers.due) == ([(1_000_000, 1_001_000, 2)], {})
    rig.take(*["normal"] * 11)
    assert rig.windows[1:] == [(1_002_000, 1_012_000, 10)]
    rig.pipeline.close()
    assert [event["count"] for event in rig.of("summary")] == [2, 10, 1]
    rig.pipeline.close()
    assert len(rig.queue.events) == 3


def test_a_clock_that_is_set_in_the_middle_moves_the_window_and_does_not_stretch_it(rig: SummaryRig) -> None:
    rig.take(*["normal"] * 30)
    rig.clock.offset_ms = 1_800_000_000_000
    rig.take(*["normal"] * 31)
    [event] = rig.queue.events
    assert (event["timestamp"], event["window_ms"], event["count"]) == (1_800_001_060_000, 60_000, 60)


def test_the_real_loop_ends_a_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summaries, "GRACE", 0.0)

    async def run() -> list[int]:
        rig = Rig(lambda envelope: Summaries(envelope, 0.01), step_ns=0)
        arrived = asyncio.Event()
        monkeypatch.setattr(rig.queue, "told", arrived.set)
        rig.take("normal", "normal")
        assert rig.queue.events == []
        await asyncio.wait_for(arrived.wait(), 60)
        return [event["count"] for event in rig.of("summary")]

    assert asyncio.run(run()) == [2]


# ------------------------------------------------------------------------------------------ for any results


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a", "b", "c"]),
            st.integers(0, 90 * S),  # until the next capture
            st.integers(0, 5 * S),  # from the capture to the arrival
            st.sampled_from(["", "", "", "model", "reload", "wait"]),
        ),
        max_size=40,
    )
)
def test_every_result_counts_in_one_window_and_windows_do_not_overlap(shown: list[tuple[str, int, int, str]]) -> None:
    rig = SummaryRig()
    model = V2
    for label, gap, delay, what in shown:
        if what == "model":
            model = ModelFile("/m.tflite", "vibration", "next")
        elif what == "reload":
            rig.publisher.close()
        elif what == "wait":
            rig.timers.go_to(rig.now_ns)
        result = Result(rig.now_ns, MS, [Score(label, 0.5, 0)], 0.0)
        rig.timers.go_to(rig.now_ns + delay)
        rig.take(result, model=model)
        rig.now_ns += gap
    rig.pipeline.close()
    counts = [event["count"] for event in rig.queue.events]
    assert sum(counts) == len(shown)
    by_label = [each for event in rig.queue.events for each in event["predictions"]]
    for label in "abc":
        told = sum(each["count"] for each in by_label if each["label"] == label)
        assert told == sum(1 for shown_label, *_ in shown if shown_label == label)
    assert all(0 <= event["window_ms"] <= 60_000 for event in rig.queue.events)
    for (_, end, _), (start, _, _) in zip(rig.windows, rig.windows[1:], strict=False):
        assert start >= end - 1  # rounding
    assert rig.timers.due == {}
