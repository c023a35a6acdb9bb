"""The Edge TPU goes away under a running agent and comes back; the stand-in for its driver takes its part."""

import shutil
from itertools import groupby
from pathlib import Path

from edge_agent.device.troubles import STATES
from tests.agentprocess import AgentProcess
from tests.e2e.eventfile import EventFile
from tests.standin import build, models

MODEL = Path(__file__).parents[2] / "edge_agent/demo/vibration_classifier.tflite"
SETTINGS = """
[device]
id = "edge-001"
[source]
plugin = "vibration"
rate = 100
seed = 1
[model]
url = "file:///MODELS/vibration_edgetpu.tflite"
[inference]
labels = ["normal", "warning", "failure"]
[telemetry]
sink = "events.jsonl"
linger = "0s"
"""


def test_the_twin_takes_over_while_the_edge_tpu_is_away(edgetpu_standin: Path, tmp_path: Path) -> None:
    folder, store, state = tmp_path / "agent", tmp_path / "models", tmp_path / "mode"
    store.mkdir()
    (store / "vibration_edgetpu.tflite").write_bytes(models.edgetpu_model(MODEL.read_bytes()))
    shutil.copy(MODEL, store / "vibration.tflite")
    log = tmp_path / "driver.log"
    settings = SETTINGS.replace("/MODELS", str(store))
    events = EventFile(folder)
    with AgentProcess(folder, settings, build.environment(edgetpu_standin, state=state, log=log)) as agent:
        agent.wait_until(events.has(20, kind="result", accelerator="edgetpu"), "results of the Edge TPU")
        report = agent.report()
        assert report.accelerator is not None
        assert (report.accelerator.used, report.accelerator.degraded) == ("edgetpu", None)
        assert report.model is not None
        assert report.model.twin

        state.write_text("absent")
        agent.wait_until(events.has(20, kind="result", accelerator="cpu"), "results of the CPU")
        [away] = events.having(kind="health", component="accelerator", state="degraded")
        report = agent.report()
        assert report.accelerator is not None
        assert (report.accelerator.used, report.accelerator.degraded) == ("cpu", away["detail"])
        assert f"degraded: {away['detail']}" in report.problems

        state.write_text("ok")
        done = agent.command("reload")
        assert (done.returncode, done.stdout) == (0, "settings reloaded\n")
        agent.wait_until(events.has(20, kind="result", accelerator="edgetpu"), "results of the Edge TPU again")
        assert not any("degraded" in problem for problem in agent.report().problems)
        assert agent.stop() == 0
    events.check()

    results = events.having(kind="result")
    assert [name for name, _ in groupby(each["accelerator"] for each in results)] == ["edgetpu", "cpu", "edgetpu"]
    assert {(each["accelerator"], each.get("degraded")) for each in results} == {
        ("edgetpu", None),
        ("cpu", away["detail"]),
    }
    # Five invokes in a row fail before the device is given up, and these samples are told of.
    assert sum(event["count"] for event in events.having(kind="loss", cause="sample_failed")) <= 5
    told = [(event["component"], event["state"]) for event in events.having(kind="health")]
    states = [each for each in told if each[0] not in STATES]  # this machine may have its own troubles
    assert states == [("worker", "died"), ("accelerator", "degraded"), ("accelerator", "ok")]
    # The driver crashes when a device is closed while a model still hangs on it.
    closed = [entry["kernels"] for entry in build.read_log(log) if entry["event"] == "destroy"]
    assert closed
    assert not any(closed)
