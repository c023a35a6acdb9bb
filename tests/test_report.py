"""The text of `edge-agent status`."""

from typing import Any

import msgspec
import pytest
from msgspec import UNSET

from edge_agent.health import Battery, DeviceHealth, NetworkInterface
from edge_agent.records import Latency
from edge_agent.report import (
    AcceleratorReport,
    DeviceReport,
    ModelReport,
    QueueReport,
    RawDataReport,
    ResultsReport,
    SendingReport,
    SourceReport,
    StatusReport,
    WorkerReport,
    render,
)

DEVICE = DeviceReport(
    name="usb:2-1.3",
    state="ready",
    detail="",
    speed=5000,
    temperature=None,
    owner="this service",
    in_use=True,
)
USED = {"used_today": 1_234_567, "daily_budget": 50_000_000}
FULL = StatusReport(
    state="running",
    version="0.1.0",
    config="/etc/edge-agent.toml",
    summary="the worker died; vibration v1.3 on cpu, 10.0/s, normal; 4711 events wait",
    problems=["the worker died and is started again (killed by SIGKILL)", "the clock is not set yet"],
    device_id="edge-001",
    uptime=3723.4,
    clock="unverified",
    device=DeviceHealth(
        board="Raspberry Pi 5 Model B Rev 1.0",
        load_5m=0.42,
        cpu_temperature_c=81.6,
        throttled=True,
        undervoltage=False,
        memory_total_bytes=8_256_448_000,
        memory_available_bytes=7_012_352_000,
        disk_total_bytes=31_000_000_000,
        disk_free_bytes=987_654_321,
        disk_life_used_percent=20,
        battery=Battery(charge_percent=81, status="Full"),
        network=[
            NetworkInterface(name="eth0", type="ethernet", up=True, speed_mbps=1000),
            NetworkInterface(name="wlan0", type="wifi", up=True, signal_dbm=-58),
            NetworkInterface(name="wwan0", type="cellular", up=False),
        ],
    ),
    source=SourceReport(plugin="vibration", state="trouble: unplugged"),
    model=ModelReport(
        name="vibration",
        version="v1.3",
        last_poll="v1.4 was rejected: is no model",
        next_poll=59.6,
        rejected="v1.4",
        twin=True,
    ),
    accelerator=AcceleratorReport(
        asked="edgetpu",
        used="edgetpu",
        device="usb:2-1.3",
        degraded=None,
        remarks=["Usb.AlwaysDfu of device_options has no effect"],
        runtime="ai_edge_litert 2.1",
        devices=[
            DeviceReport(
                name="pci:0000:01:00.0",
                state="busy",
                detail="process 812 (frigate) has it open; stop that",
                speed=None,
                temperature=61.4,
                owner="process 812 (frigate)",
                in_use=False,
            ),
            DEVICE,
        ],
        library="/usr/lib/libedgetpu.so.1",
    ),
    results=ResultsReport(
        rate=10.04,
        samples=4000,
        dropped=7,
        failed=2,
        skipped=4,
        set_aside=1,
        clipped=30,
        latencies=[Latency("capture", 9, 1.25, 2, 3.5, 4), Latency("invoke", 9, 2, 2.5, 3, 9)],
        prediction="normal",
        confidence=0.994,
        value=None,
    ),
    queue=QueueReport(
        waiting=4711, oldest=7200.4, size=1_234_567, max_size=256_000_000, dropped=5, trouble="the disk is full"
    ),
    sending=SendingReport(
        sink="pubsub://project/topic", state="needs_person", reason="no permission", since=61.2, sent=100
    ),
    raw_data=RawDataReport(
        images="gs://bucket/retraining", uploaded=12, waiting=3, dropped=2, over_budget=40, trouble="no permission"
    ),
    worker=WorkerReport(state="restarting", deaths=3, last_death="killed by SIGKILL"),
)

TEXT = """\
edge-agent   0.1.0, device edge-001, running for 1h2m3s
problem      the worker died and is started again (killed by SIGKILL)
problem      the clock is not set yet
settings     /etc/edge-agent.toml
source       vibration: trouble: unplugged
model        vibration v1.3; with a twin for the CPU; v1.4 was rejected: is no model; next look in 1m; rejected: v1.4
accelerator  edgetpu usb:2-1.3 (edgetpu was asked for); ai_edge_litert 2.1; /usr/lib/libedgetpu.so.1
  pci:0000:01:00.0  busy, 61 °C; process 812 (frigate) has it open; stop that
  usb:2-1.3  ready, USB 3 (5000 Mbit/s), in use by this service
  remark     Usb.AlwaysDfu of device_options has no effect
results      10.0/s; now normal (0.99); 4000 since the start; 7 samples dropped as the model is too slow; 2 samples failed; 4 samples skipped by the source; 1 sample left out as they had ended the worker; 30 samples beyond the model's range
  latency    median capture 1.25 ms (p99 3.5); invoke 2 ms (p99 3)
queue        4711 events wait, the oldest for 2h; 1.23 MB of 256 MB; 5 events dropped; the disk is full
sending      pubsub://project/topic: needs person for 1m1s; no permission; 100 events sent since the start
raw_data     gs://bucket/retraining: 12 pictures uploaded since the start; 3 wait; 2 dropped; 40 samples left out for the daily budget; no permission
worker       restarting; died 3 times since the start, the last time: killed by SIGKILL
device       Raspberry Pi 5 Model B Rev 1.0; 82 °C, slowed down; voltage right; load 0.42; memory 7.01 GB of 8.26 GB free; disk 988 MB of 31 GB free; 20 % of the disk's life used; battery 81 %
  network    eth0 ethernet up 1000 Mbit/s; wlan0 wifi up -58 dBm; wwan0 cellular down
clock        not known to be set; events say so in time_source
"""  # noqa: E501


NONE_LOST = {"dropped": 0, "failed": 0, "skipped": 0, "set_aside": 0, "clipped": 0}


def changed(part: str, **changes: Any) -> StatusReport:
    """The full report with something changed in one part of it."""
    inner = msgspec.structs.replace(getattr(FULL, part), **changes)
    return msgspec.structs.replace(FULL, **{part: inner})


def line(report: StatusReport, name: str) -> str:
    """What stands behind this name in the text."""
    [found] = [text for text in render(report).splitlines() if text.startswith(f"{name} ")]
    return found.removeprefix(name).strip()


def test_a_full_report() -> None:
    assert render(FULL) == TEXT


def test_every_part_of_the_report_has_its_line() -> None:
    # A part that is added has to be rendered, too.
    without_line = {"state", "version", "summary", "device_id", "uptime"}
    renamed = {"config": "settings", "problems": "problem"}
    expected = {renamed.get(name, name) for name in FULL.__struct_fields__ if name not in without_line}
    names = {text.split()[0] for text in render(FULL).splitlines() if not text.startswith(" ")}
    assert names == expected | {"edge-agent"}


def test_what_a_board_does_not_have_is_not_shown() -> None:
    assert line(msgspec.structs.replace(FULL, device=DeviceHealth(undervoltage=True)), "device") == "voltage too low"
    assert line(changed("device", network=UNSET, throttled=UNSET), "device").startswith(
        "Raspberry Pi 5 Model B Rev 1.0; 82 °C; "
    )
    assert "network" not in render(changed("device", network=UNSET))


def test_an_idle_report_has_no_parts() -> None:
    idle = StatusReport(state="idle", version="0.1.0", config="/etc/x.toml", summary="", problems=["not set up yet"])
    assert render(idle) == "edge-agent   0.1.0, idle\nproblem      not set up yet\nsettings     /etc/x.toml\n"


def test_texts_from_outside_cannot_drive_the_terminal() -> None:
    evil = "\x1b[2J\r\nworker       fine\x07\x9b31m\u202e\udce9"
    report = msgspec.structs.replace(FULL, problems=[evil], config=evil, device_id=evil)
    text = render(report)
    assert len(text.splitlines()) == len(TEXT.splitlines()) - 1
    assert all(char.isprintable() or char == "\n" for char in text)
    assert "  [2J  worker       fine  31m" in text


@pytest.mark.parametrize(
    ("part", "changes", "expected"),
    [
        (
            "model",
            {"version": None, "last_poll": "not asked yet", "next_poll": None, "rejected": None, "twin": False},
            "vibration: none yet; not asked yet",
        ),
        (
            "model",
            {"next_poll": 0.2, "rejected": None, "twin": False},
            "vibration v1.3; v1.4 was rejected: is no model; next look in 0s",
        ),
        (
            "model",
            {"trial": "3m of 10m, 1,200 samples", "next_poll": None, "rejected": None, "twin": False},
            "vibration v1.3; on trial: 3m of 10m, 1,200 samples; v1.4 was rejected: is no model",
        ),
        (
            "model",
            {"pin": "v1.3", "hold": True, "last_poll": "v1.4 is offered", "next_poll": None, "rejected": None},
            "vibration v1.3; with a twin for the CPU; pinned to v1.3; held; v1.4 is offered",
        ),
        (
            "model",
            {
                "shadow": "v1.5 on 0.1 of the samples",
                "last_poll": "v1.3 is the newest",
                "rejected": None,
                "twin": False,
            },
            "vibration v1.3; v1.3 is the newest; beside it v1.5 on 0.1 of the samples; next look in 1m",
        ),
        (
            "accelerator",
            {"used": None, "device": None, "runtime": "", "devices": [], "library": None, "remarks": []},
            "none now (edgetpu was asked for); no libedgetpu; no Edge TPU is plugged in",
        ),
        (
            "results",
            {"rate": 0.0, "samples": 0, "prediction": None, "confidence": None, **NONE_LOST},
            "0.0/s; 0 since the start",
        ),
        (
            "results",
            NONE_LOST | {"dropped": 1, "failed": 1},
            (
                "10.0/s; now normal (0.99); 4000 since the start; "
                "1 sample dropped as the model is too slow; 1 sample failed"
            ),
        ),
        (
            "results",
            NONE_LOST | {"published": "one in 30"},
            "10.0/s; now normal (0.99); 4000 since the start; published: one in 30",
        ),
        ("queue", {"waiting": 0, "size": 0, "dropped": 0, "trouble": None}, "empty; 0 B of 256 MB"),
        (
            "queue",
            {"waiting": 1, "oldest": 0.4, "size": 999, "dropped": 1, "trouble": None},
            "1 event waits, the oldest for 0s; 999 B of 256 MB; 1 event dropped",
        ),
        ("queue", {"waiting": 0, "max_size": 3e9, "dropped": 0, "trouble": None}, "empty; 1.23 MB of 3 GB"),
        (
            "queue",
            {"waiting": 0, "size": 999_999, "max_size": 999_499, "dropped": 0, "trouble": None},
            "empty; 1 MB of 999 kB",
        ),
        (
            "sending",
            {"state": "sending", "reason": "", "since": 0.0, "sent": 1},
            "pubsub://project/topic: sending for 0s; 1 event sent since the start",
        ),
        (
            "sending",
            {
                "state": "idle",
                "reason": "",
                "since": 0.0,
                "sent": 2,
                "used_today": 1_234_567,
                "daily_budget": 50_000_000,
            },
            "pubsub://project/topic: idle for 0s; 2 events sent since the start; 1.23 MB of the day's 50 MB used",
        ),
        (
            "worker",
            {"deaths": 1},
            "restarting; died 1 time since the start, the last time: killed by SIGKILL",
        ),
        ("worker", {"state": "running", "deaths": 0, "last_death": ""}, "running"),
    ],
)
def test_what_is_not_there_is_left_out(part: str, changes: dict[str, Any], expected: str) -> None:
    assert line(changed(part, **changes), part) == expected


def test_a_clock_that_is_set() -> None:
    assert line(msgspec.structs.replace(FULL, clock="synchronized"), "clock") == "set"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"speed": 480, "detail": "use a USB 3 port", "in_use": False, "owner": None},
            "ready, USB 2 (480 Mbit/s); use a USB 3 port",
        ),
        ({"speed": 12}, "ready, USB 1 (12 Mbit/s), in use by this service"),
        ({"speed": 10000, "in_use": False}, "ready, USB 3 (10000 Mbit/s)"),
        ({"speed": None, "temperature": 91.0, "state": "throttled"}, "throttled, 91 °C, in use by this service"),
        ({"speed": None, "in_use": False, "state": "absent", "detail": "it is not plugged in"},
         "absent; it is not plugged in"),
    ],
)  # fmt: skip
def test_a_device_in_one_line(changes: dict[str, Any], expected: str) -> None:
    report = changed("accelerator", devices=[msgspec.structs.replace(DEVICE, **changes)])
    assert f"\n  usb:2-1.3  {expected}\n" in render(report)
