"""New models on trial in a whole agent: one fails where the one before does not, another is interrupted by a kill."""

import json
import os
from pathlib import Path

import pytest

from tests.agentprocess import AgentProcess
from tests.e2e.eventfile import EventFile
from tests.inference.synthetic import Spec, slices

SETTINGS = """
[device]
id = "edge-001"
[source]
plugin = "marked"
marker = "{marker}"
pause = 0.01
[model]
url = "m.tflite"
poll_interval = "1s"
[model.trial]
time = "{time}"
[inference]
labels = ["a", "b", "c"]
[telemetry]
sink = "events.jsonl"
linger = "0s"
"""
ROOT = Path(__file__).parents[2]
VALUES = 8
# It clips whatever comes, where the other cannot work on infinities.
TOLERANT, STRICT = Spec("x", (1, VALUES), "uint8", 1 / 255), Spec("x", (1, VALUES))

pytestmark = pytest.mark.timeout(240)


def publish(folder: Path, version: str, entry: Spec) -> None:
    (folder / "new").write_bytes(slices(entry, [Spec("y", (1, 3))]).bytes())
    (folder / "new").rename(folder / "m.tflite")
    # Last, or the old model could be taken for the new version.
    (folder / "new").write_text(json.dumps({"version": version}))
    (folder / "new").rename(folder / "m.tflite.json")


def settings(folder: Path, time: str) -> str:
    return SETTINGS.format(time=time, marker=folder / "marker")


def agent_on(folder: Path, *, time: str) -> AgentProcess:
    """An agent whose source gives a sample of infinities once there is a file `marker`."""
    metadata = folder.with_name("site") / "marked-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: marked\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[edge_agent.sources]\nmarked = tests.plugins.marked:Marked\n")
    path = os.pathsep.join([str(metadata.parent), str(ROOT)])
    agent = AgentProcess(folder, settings(folder, time), {"PYTHONPATH": path})
    publish(folder, "v1", TOLERANT)
    return agent


def test_a_model_that_fails_on_a_sample_gives_way_and_nothing_is_lost(tmp_path: Path) -> None:
    folder = tmp_path / "agent"
    file = EventFile(folder)
    with agent_on(folder, time="1h") as agent:
        agent.wait_until(file.has(20, kind="result"), "results")
        publish(folder, "v2", STRICT)
        agent.wait_until(file.has(20, kind="result", model_version="v2"), "results of the new model")
        (folder / "marker").touch()
        agent.wait_until(file.has(kind="model", state="rolled_back"), "the way back")
        agent.wait_until(file.has(50, kind="result", model_version="v1"), "results of the model before")
        report = agent.wait_for_report(
            lambda report: report.model and "v2 was rejected" in report.model.last_poll, "it"
        )
        assert report.model is not None
        assert (report.model.version, report.model.trial) == ("v1", "")
        assert report.results is not None
        assert (report.results.failed, report.results.dropped) == (0, 0)
        assert agent.stop() == 0

    file.check()
    first, trial, back = file.having(kind="model")
    assert (first["state"], first["model_version"]) == ("committed", "v1")
    assert (trial["state"], trial["model_version"], trial["previous_version"]) == ("trial", "v2", "v1")
    assert (back["state"], back["model_version"], back["previous_version"]) == ("rolled_back", "v2", "v1")
    assert back["reason"] == "the model's output holds values that are no numbers"
    assert back["failed"] == 0
    assert len(file.having(kind="model", state="trial")) == 1
    assert "the new model was worse" in agent.said


def test_a_trial_that_a_kill_interrupts_begins_anew_and_is_passed(tmp_path: Path) -> None:
    folder = tmp_path / "agent"
    file = EventFile(folder)
    with agent_on(folder, time="1h") as agent:
        agent.wait_until(file.has(kind="result"), "results")
        publish(folder, "v2", TOLERANT)
        agent.wait_until(file.has(kind="result", model_version="v2"), "results of the new model")
        report = agent.wait_for_report(lambda report: report.model and report.model.trial, "the trial")
        assert report.model is not None
        assert " of 1h, " in report.model.trial
        agent.kill()
        publish(folder, "v1", TOLERANT)
        agent.start()
        agent.wait_until(file.has(20, kind="result", model_version="v1"), "results of the model before")
        publish(folder, "v2", TOLERANT)
        agent.wait_until(file.has(kind="model", state="trial"), "the next trial")
        agent.configure(settings(folder, "0s"))
        agent.reload()
        agent.wait_for("settings reloaded")
        publish(folder, "v3", TOLERANT)
        agent.wait_until(file.has(kind="model", state="committed", model_version="v3"), "a model without a trial")
        assert agent.stop() == 0

    file.check(killed=True)
    told = [(event["state"], event["model_version"]) for event in file.having(kind="model")]
    assert told == [
        ("committed", "v1"),
        ("trial", "v2"),
        ("trial", "v2"),
        ("rolled_back", "v2"),
        ("committed", "v3"),
    ]
