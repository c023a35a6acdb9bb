"""Pictures through a real detector with state: objects with boxes, a rule that counts them, and the regular figures."""

import json
from pathlib import Path
from typing import Any

import pytest

from edge_agent import __version__
from tests.agentprocess import AgentProcess
from tests.e2e.eventfile import EventFile

MODELS = Path(__file__).parents[3] / "shared" / "models"
MODEL, PICTURE = MODELS / "traffic_model.tflite", MODELS / "traffic_0001.bmp"
SETTINGS = f"""
[device]
id = "edge-001"
[source]
plugin = "images"
path = "{PICTURE}"
rate = 10
repeat = true
[model]
url = "{MODEL}"
[inference]
task = "detection"
labels = "labels.txt"
top_k = 10
threshold = 0.3
[telemetry]
sink = "events.jsonl"
linger = "0s"
health_interval = "10s"
[[actions]]
name = "traffic"
when = {{ min_confidence = 0.3, min_count = 2 }}
run = ["tee", "traffic.json"]
cooldown = "1h"
[[actions]]
name = "jam"
when = {{ min_confidence = 0.3, min_count = 9 }}
run = ["touch", "jam"]
"""


@pytest.mark.system
def test_objects_are_found_counted_acted_on_and_reported(tmp_path: Path) -> None:
    for file in (MODEL, PICTURE):
        if not file.exists():
            pytest.skip(f"{file.name} is not in {MODELS}")
    folder = tmp_path / "agent"
    folder.mkdir()
    (folder / "labels.txt").write_text("car\ntruck\n")
    events = EventFile(folder)
    with AgentProcess(folder, SETTINGS) as agent:
        agent.wait_for("action done")
        agent.wait_until(events.has(kind="health", component="inference"), "health event")
        report = agent.report()
        assert agent.stop() == 0
    events.check()

    first = events.having(kind="result")[0]
    assert first["prediction"] == first["results"][0]["label"] == "truck"
    assert len(first["results"]) >= 2
    for found in first["results"]:
        box, pixels = found["box"], found["pixels"]
        assert found["label"] == ("car", "truck")[found["index"]]
        assert 0 <= box["left"] < box["right"] <= 1
        assert 0 <= box["top"] < box["bottom"] <= 1
        # The picture has 256 x 256 pixels.
        assert {side: round(256 * share) for side, share in box.items()} == pytest.approx(pixels, abs=1)

    [alarm] = events.having(kind="alarm")
    assert json.loads((folder / "traffic.json").read_text()) == alarm
    assert (alarm["action"], alarm["results"]) == ("traffic", first["results"])
    assert not (folder / "jam").exists()

    # There may be others: of the disk or the heat of this machine.
    [health] = events.having(kind="health", component="inference")
    check_health(health, first)
    assert report.device is not None
    assert report.device.disk_total_bytes == health["device"]["disk_total_bytes"]
    # `edge-agent status` shows the same figures until there are newer ones.
    assert report.results is not None
    assert [latency.stage for latency in report.results.latencies] == [each["stage"] for each in health["latencies"]]


def check_health(health: dict[str, Any], first: dict[str, Any]) -> None:
    """The regular event has the figures of everything; `first` is the first result."""
    assert health["state"] == "running"
    latencies = {latency["stage"]: latency for latency in health["latencies"]}
    assert set(latencies) == {"capture", "preprocess", "invoke", "decode", "action"}
    assert latencies["action"]["count"] == 1
    assert 20 < latencies["invoke"]["count"] <= health["counters"]["samples"]
    for latency in latencies.values():
        assert 0 <= latency["p50_ms"] <= latency["p90_ms"] <= latency["p99_ms"] <= latency["max_ms"]
    assert {name for name, count in health["counters"].items() if count} == {"samples"}
    assert (health["agent_version"], health["model_name"]) == (__version__, first["model_name"])
    assert (health["model_version"], health["accelerator"]) == (first["model_version"], "cpu")
    queue, device = health["queue"], health["device"]
    assert queue["alarms"] == 0
    assert queue["results"] >= 0
    assert 0 < device["disk_free_bytes"] <= device["disk_total_bytes"]
    assert 1_000_000 < device["worker_rss_bytes"] < device["memory_total_bytes"]
    assert 1_000_000 < device["agent_rss_bytes"] < device["memory_total_bytes"]
