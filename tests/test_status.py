"""The line that an operator reads first, and the whole report."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge_agent.health import DeviceHealth
from edge_agent.inference.accelerators.devices import Device, DeviceState
from edge_agent.inference.supervision.status import WorkerStatus
from edge_agent.models.rollout.news import RolloutStatus
from edge_agent.raw_data.uploads import UploadsState
from edge_agent.records import Latency, LoadReport, ResultEvent, Score
from edge_agent.report import RawDataReport, StatusReport, render
from edge_agent.settings.location import Destination, Location
from edge_agent.settings.publish import Publish
from edge_agent.settings.raw_data import RawDataSettings
from edge_agent.settings.schema import (
    ActionSettings,
    InferenceSettings,
    ModelSettings,
    QueueSettings,
    Settings,
    SourceSettings,
    TelemetrySettings,
)
from edge_agent.settings.when import When
from edge_agent.status import Snapshot, make_report, problems, status_line
from edge_agent.telemetry.sending.sender import SenderState

SETTINGS = Settings(
    source=SourceSettings(plugin="vibration"),
    model=ModelSettings(url=Location("gs", "bucket", "vibration.tflite"), name="vibration"),
    inference=InferenceSettings(accelerator="edgetpu"),
    telemetry=TelemetrySettings(sink=Destination("pubsub", "project", "topic"), queue=QueueSettings(max_size=10**6)),
)


STICK = Device(bus="usb", address="2-1", node=Path("/dev/x"), state=DeviceState.READY, speed=5000)


ON_CPU = LoadReport(accepted=True, degraded="no Edge TPU is plugged in")
INVOKE = Latency("invoke", 100, 2.0, 2.5, 3.25, 9.0)


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
        "settings": SETTINGS,
        "device_id": "edge-001",
        "latest": event(),
        "rate": 10.04,
        "latencies": [INVOKE],
        "waiting": 3,
        "oldest": 0.2,
        "queue_trouble": None,
        "uploads": UploadsState(),
        "queue_size": 2048,
        "dropped": 0,
        "reload_problem": None,
        "time_source": "synchronized",
        "device_problems": [],
        "now": 100.0,
    }
    return Snapshot(**(fine | more))


def test_all_is_well() -> None:
    assert status_line(snapshot()) == "vibration v1.3 on cpu, 10.0/s, normal; events are sent"


def test_what_is_wrong_comes_first() -> None:
    now = snapshot(
        worker=WorkerStatus(
            state="restarting", source="trouble: unplugged", last_death="killed by SIGABRT", report=ON_CPU
        ),
        sender=SenderState("offline", "pubsub://p/t cannot be reached", 0.0, 0, 0, 9),
        waiting=4711,
        oldest=7200.4,
        queue_trouble="the disk is full",
        reload_problem="edge-agent.toml:3: [source].rate: expected a number",
        time_source="unverified",
    )
    assert status_line(now) == (
        "the worker died and is started again (killed by SIGABRT); source trouble: unplugged; "
        "degraded: no Edge TPU is plugged in; events are not sent: pubsub://p/t cannot be reached; "
        "queue: the disk is full; reload refused: edge-agent.toml:3: [source].rate: expected a number; "
        "the clock is not set yet; "
        "vibration v1.3 on cpu, 10.0/s, normal; 4711 events wait, the oldest for 2h"
    )


def test_an_action_that_nothing_can_set_off_is_wrong() -> None:
    pump = ActionSettings(name="pump", when=When(label="failur"), run=["true"])
    worker = WorkerStatus(state="running", source="open", report=LoadReport(accepted=True, labels=("failure", "ok")))
    now = snapshot(settings=dataclasses.replace(SETTINGS, actions=[pump]), worker=worker)
    assert problems(now) == ['action "pump" waits for "failur", which the model never says; did you mean "failure"?']


def test_a_clock_that_is_wrong_is_said_once_with_what_follows() -> None:
    kept = SenderState("offline", "the clock is not set yet: it says 1970-01-01, which is over", 0.0, 0, 0, 1)
    assert problems(snapshot(sender=kept, time_source="unverified")) == [f"events are not sent: {kept.reason}"]
    skewed = "the clock is 2h behind storage.googleapis.com"
    assert problems(snapshot(time_source="unverified", skew=skewed)) == ["the clock is not set yet", skewed]


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


def test_used_up_budget_says_what_still_goes_out() -> None:
    reason = "the daily budget of 20MB is used up until 2026-11-27 08:15 UTC"
    now = snapshot(sender=SenderState("over_budget", reason, 0.0, 0, 0, 0), waiting=3, oldest=0.2)

    assert problems(now) == [f"only alarms and notices are sent: {reason}"]
    assert status_line(now).endswith("; 3 events wait, the oldest for 0s")


# ------------------------------------------------------------------------------------------ problems


def test_problems_come_in_the_order_in_which_they_matter() -> None:
    everything = snapshot(
        model=model(refusal="v2 waits: the device is gone"),
        worker=WorkerStatus(
            state="restarting",
            source="ended: all was read",
            last_death="killed by SIGKILL",
            failure="64 values",
            waiting="it needs an Edge TPU",
            report=ON_CPU,
        ),
        sender=SenderState("needs_person", "no permission", 0.0, 0, 0, 1),
        queue_trouble="the disk is full",
        reload_problem="line 3",
        time_source="unverified",
        device_problems=["the supply voltage is too low"],
    )
    assert problems(everything) == [
        "model v2 waits: the device is gone",
        "the worker died and is started again (killed by SIGKILL)",
        "the model cannot run now: it needs an Edge TPU",
        "source ended: all was read",
        "no sample can be worked on: 64 values",
        "the supply voltage is too low",
        "degraded: no Edge TPU is plugged in",
        "events are not sent: no permission",
        "queue: the disk is full",
        "reload refused: line 3",
        "the clock is not set yet",
    ]


def test_without_problems_there_are_none() -> None:
    assert problems(snapshot()) == []
    assert problems(snapshot(latest=None)) == []


# ------------------------------------------------------------------------------------------ the report


def report(
    now: Snapshot,
    devices: Sequence[Device] = (),
    library: str | None = None,
    device: DeviceHealth | None = None,
) -> StatusReport:
    return make_report(
        now,
        version="0.1.0",
        config="/etc/edge-agent.toml",
        uptime=3723.4,
        devices=devices,
        library=library,
        device=device,
    )


def test_a_trial_is_told_beside_the_version() -> None:
    on_trial = model(version="v1.4", state="on trial", trial="3m of 10m, 1,200 samples")
    line = status_line(snapshot(model=on_trial))
    assert line.startswith("vibration v1.4 (on trial: 3m of 10m, 1,200 samples)")


def test_the_report_holds_what_the_agent_knows() -> None:
    now = snapshot(
        worker=WorkerStatus(
            state="running",
            runtime="ai_edge_litert 2.1",
            source="open",
            deaths=2,
            last_death="killed by SIGKILL",
            samples=4000,
            dropped=7,
            failed=1,
            skipped=4,
            set_aside=2,
            clipped=3,
            report=LoadReport(
                accepted=True,
                accelerator="edgetpu",
                device="usb:2-1",
                degraded="no Edge TPU is plugged in",
                remarks=("it is slow",),
            ),
        ),
        model=model(rejected="v1.4"),
        sender=SenderState("sending", "slow", 40.0, 100, 1, 0),
        latest=event(degraded="no Edge TPU is plugged in"),
        dropped=5,
        budget=(1000, 50_000_000),
    )
    library = "/usr/lib/libedgetpu.so.1"
    made = report(now, [STICK], library, DeviceHealth(cpu_temperature_c=48.2))
    assert msgspec.to_builtins(made) == {
        "state": "running",
        "version": "0.1.0",
        "config": "/etc/edge-agent.toml",
        "summary": status_line(now),
        "problems": problems(now),
        "device_id": "edge-001",
        "uptime": 3723.4,
        "clock": "synchronized",
        "device": {"cpu_temperature_c": 48.2},
        "source": {"plugin": "vibration", "state": "open"},
        "model": {
            "name": "vibration",
            "version": "v1.3",
            "last_poll": "v1.3 is the newest",
            "next_poll": 60.0,
            "twin": False,
            "rejected": "v1.4",
            "trial": "",
            "shadow": "",
            "pin": "",
            "hold": False,
        },
        "accelerator": {
            "asked": "edgetpu",
            "used": "edgetpu",
            "device": "usb:2-1",
            "degraded": "no Edge TPU is plugged in",
            "remarks": ["it is slow"],
            "runtime": "ai_edge_litert 2.1",
            "devices": [
                {
                    "name": "usb:2-1",
                    "state": "ready",
                    "detail": "",
                    "speed": 5000,
                    "temperature": None,
                    "owner": None,
                    "in_use": True,
                }
            ],
            "library": library,
        },
        "results": {
            "rate": 10.04,
            "samples": 4000,
            "dropped": 7,
            "failed": 1,
            "skipped": 4,
            "set_aside": 2,
            "clipped": 3,
            "latencies": [
                {"stage": "invoke", "count": 100, "p50_ms": 2.0, "p90_ms": 2.5, "p99_ms": 3.25, "max_ms": 9.0}
            ],
            "prediction": "normal",
            "confidence": 0.99,
            "value": None,
            "published": None,
        },
        "queue": {"waiting": 3, "oldest": 0.2, "size": 2048, "max_size": 10**6, "dropped": 5, "trouble": None},
        "sending": {
            "sink": "pubsub://project/topic",
            "state": "sending",
            "reason": "slow",
            "since": 60.0,
            "sent": 100,
            "used_today": 1000,
            "daily_budget": 50_000_000,
        },
        "worker": {"state": "running", "deaths": 2, "last_death": "killed by SIGKILL"},
        "raw_data": None,
    }


@pytest.mark.parametrize(
    ("publish", "told"),
    [
        (Publish("change"), "change"),
        (Publish("one_in", one_in=30), "one in 30"),
        (Publish("summary", window=60.0), "a summary each 1m"),
    ],
)
def test_the_report_says_which_results_become_events_if_not_all_do(publish: Publish, told: str) -> None:
    telemetry = dataclasses.replace(SETTINGS.telemetry, publish=publish)
    made = report(snapshot(settings=dataclasses.replace(SETTINGS, telemetry=telemetry)))
    assert made.results is not None
    assert made.results.published == told


def test_before_the_first_result_there_is_none_to_report() -> None:
    made = report(snapshot(latest=None, sender=SenderState("sending", "", 100.5, 0, 0, 0)))
    assert made.accelerator is not None
    assert (made.accelerator.used, made.accelerator.degraded) == (None, None)
    assert made.results is not None
    assert (made.results.prediction, made.results.confidence) == (None, None)
    assert made.sending is not None
    assert made.sending.since == 0.0  # and not negative, should the clocks of both be read a moment apart


def test_the_report_crosses_the_socket_unchanged() -> None:
    made = report(snapshot(latest=None, time_source="unverified"))
    assert msgspec.convert(json.loads(msgspec.json.encode(made)), StatusReport) == made
    assert "clock        not known to be set" in render(made)


def test_a_long_problem_leaves_room_for_the_rest() -> None:
    now = snapshot(sender=SenderState("needs_person", "no credentials; " * 100, 0.0, 0, 0, 9))
    line = status_line(now)
    assert line.startswith("events are not sent: no credentials; ")
    assert "…; vibration v1.3 on cpu" in line
    assert len(line) < 400
    assert problems(now) == ["events are not sent: " + "no credentials; " * 100]


def test_a_device_that_is_named_and_not_there_is_told_of() -> None:
    for wanted, name in (
        ("usb:2-9", "usb:2-9"),
        ("pci:01:00.0", "pci:0000:01:00.0"),
        ("usb:1", "usb:1"),
        ("pci", "pci"),
    ):
        inference = InferenceSettings(device=wanted)
        made = report(snapshot(settings=dataclasses.replace(SETTINGS, inference=inference)), [STICK])
        assert made.accelerator is not None
        assert [device.name for device in made.accelerator.devices] == ["usb:2-1", name]
        assert made.accelerator.devices[1].state == "absent"
        assert made.accelerator.devices[1].detail == "it is not plugged in; there is usb:2-1"
        assert not any(device.in_use for device in made.accelerator.devices)


def test_a_device_that_the_settings_mean_is_not_missing() -> None:
    for wanted in ("", "usb", "usb:0", ":0", "usb:2-1"):
        inference = InferenceSettings(device=wanted)
        made = report(snapshot(settings=dataclasses.replace(SETTINGS, inference=inference)), [STICK])
        assert made.accelerator is not None
        assert [device.name for device in made.accelerator.devices] == ["usb:2-1"]


def test_the_device_of_this_service_is_in_use_even_before_a_model_runs_on_it() -> None:
    made = report(snapshot(), [msgspec.structs.replace(STICK, owner="this service")])
    assert made.accelerator is not None
    assert made.accelerator.devices[0].in_use


def test_what_becomes_of_the_input_is_reported_where_it_is_kept() -> None:
    raw_data = RawDataSettings(images=Location("gs", "bucket", "retraining"), one_in=10)
    telemetry = dataclasses.replace(SETTINGS.telemetry, raw_data=raw_data)
    settings = dataclasses.replace(SETTINGS, telemetry=telemetry)
    worker = WorkerStatus(state="running", source="open", over_budget=7, unkept=2)
    now = snapshot(settings=settings, worker=worker, uploads=UploadsState(12, 3, 1, "no permission"))
    assert report(now).raw_data == RawDataReport(
        images="gs://bucket/retraining", uploaded=12, waiting=3, dropped=3, over_budget=7, trouble="no permission"
    )
    assert problems(now) == ["pictures are not uploaded: no permission"]
    assert status_line(now).startswith("pictures are not uploaded: no permission; ")
