"""Three lines of shell are the sensor, and another program acts on what the model makes of it."""

import json
from pathlib import Path

from tests.agentprocess import AgentProcess
from tests.e2e.eventfile import EventFile

MODEL = Path(__file__).parents[2] / "edge_agent/demo/vibration_classifier.tflite"
SENSOR = """\
#!/bin/sh
while sleep 0.02; do
    seq -s, 2.00 0.01 3.27
done
"""
SETTINGS = f"""
[device]
id = "edge-001"
[source]
plugin = "command"
run = ["./sensor"]
[model]
url = "{MODEL}"
[inference]
labels = ["normal", "warning", "failure"]
[telemetry]
sink = "events.jsonl"
raw_data = 2
linger = "0s"
[[actions]]
name = "alarm"
when = {{ label = "warning", min_confidence = 0.8 }}
run = ["tee", "alarm.json"]
cooldown = "1h"
"""


def test_a_shell_script_is_a_sensor(tmp_path: Path) -> None:
    folder = tmp_path / "agent"
    folder.mkdir()
    sensor = folder / "sensor"
    sensor.write_text(SENSOR)
    sensor.chmod(0o755)
    events = EventFile(folder)
    with AgentProcess(folder, SETTINGS) as agent:
        agent.wait_for("action done")
        agent.wait_until(events.has(10, kind="result"), "further results")
        report = agent.report()
        assert report.source is not None
        assert (report.source.plugin, report.source.state) == ("command", "open")
        assert agent.stop() == 0
    events.check()
    [alarm] = events.having(kind="alarm")
    assert json.loads((folder / "alarm.json").read_text()) == alarm
    assert (alarm["prediction"], alarm["raw_data"]) == ("warning", [2.0, 2.01])
