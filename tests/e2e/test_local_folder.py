"""The whole agent at a site without network: models are copied into a folder, and looked for once a day otherwise."""

import json
import shutil
from pathlib import Path

from tests.agentprocess import AgentProcess

MODEL = Path(__file__).parents[2] / "edge_agent/demo/vibration_classifier.tflite"

SETTINGS = """\
[source]
plugin = "vibration"

[model]
url = "stick/model.tflite"
name = "vibration"
poll_interval = "1d"

[telemetry]
sink = "events.jsonl"

[log]
level = "debug"
"""
LIMITS = """
[model.download]
bandwidth = "1MB"
window = "01:00-05:00"
"""


def _copy(folder: Path, version: str) -> None:
    shutil.copyfile(MODEL, folder / "model.tflite")
    (folder / "model.tflite.json").write_text(json.dumps({"version": version, "labels": ["a", "b", "c"]}))


def test_a_model_is_taken_soon_after_it_was_copied(tmp_path: Path) -> None:
    stick = tmp_path / "stick"
    stick.mkdir()
    _copy(stick, "v1")
    with AgentProcess(tmp_path, SETTINGS) as agent:
        agent.wait_for("model in use")
        _copy(stick, "v2")
        agent.wait_for("previous=v1")
        agent.configure(SETTINGS + LIMITS)
        agent.reload()
        agent.wait_for("settings reloaded")
        assert agent.stop() == 0
        assert agent.said.count("looking for a model") == 1, "other limits are no other model"
