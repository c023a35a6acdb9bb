"""From a sample to a program that runs, and to what the cloud hears of one that does not."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.agentprocess import AgentProcess

MODEL = Path(__file__).parents[2] / "edge_agent/demo/vibration_classifier.tflite"
SETTINGS = f"""
[device]
id = "edge-001"
[source]
plugin = "vibration"
rate = 50
seed = 1
normal = "200ms"
warning = "200ms"
failure = "1h"
[model]
url = "{MODEL}"
[inference]
labels = ["normal", "warning", "failure"]
[telemetry]
sink = "events.jsonl"
linger = "0s"
[[actions]]
name = "alarm"
when = {{ label = ["warning", "failure"], min_confidence = 0.6, hysteresis = 0.2, hold = "100ms" }}
run = ["tee", "alarm.json"]
cooldown = "1h"
[[actions]]
name = "siren"
when = {{ label = "failure" }}
run = ["/nonexistent/siren"]
cooldown = "100ms"
"""


def test_a_rule_runs_its_program_and_a_failing_one_is_a_health_event(tmp_path: Path) -> None:
    folder = tmp_path / "agent"
    with AgentProcess(folder, SETTINGS) as agent:
        agent.wait_until(lambda: of(folder, has_failed), "health event")
        agent.wait_for("action done")
        # It fails ten times a second, and is told of once a minute.
        agent.wait_until(lambda: len(of(folder, lambda event: event.get("action") == "siren")) > 5, "further alarms")
        assert agent.stop() == 0

    [alarm] = of(folder, lambda event: event.get("action") == "alarm")
    assert alarm["prediction"] in {"warning", "failure"}
    assert json.loads((folder / "alarm.json").read_text()) == alarm
    [health] = of(folder, has_failed)
    assert health["detail"] == "siren: there is no such program"
    [done] = [line for line in agent.lines if "action done" in line]
    assert "reaction_ms=" in done


def has_failed(event: dict[str, Any]) -> bool:
    """Whether it is a health event of an action that failed."""
    return (event["kind"], event.get("component"), event.get("state")) == ("health", "action", "failed")


def of(folder: Path, wanted: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
    """The events of the file so far for which this is true."""
    file = folder / "events.jsonl"
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    return [event for line in lines if line.endswith("\n") and wanted(event := json.loads(line))]
