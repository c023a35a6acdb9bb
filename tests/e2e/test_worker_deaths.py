"""Native code ends the worker: the agent stays, the worker goes on, and an event tells what it died of."""

import os
import signal
from pathlib import Path

from tests.agentprocess import AgentProcess
from tests.e2e.eventfile import EventFile

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "edge_agent/demo/vibration_classifier.tflite"
TOTAL = 400
SETTINGS = f"""
[device]
id = "edge-001"
[source]
plugin = "faulty"
what = "abort"
at = 50
marker = "aborted"
total = {TOTAL}
pause = 0.005
last = "last"
[model]
url = "{MODEL}"
[inference]
labels = ["normal", "warning", "failure"]
[telemetry]
sink = "events.jsonl"
linger = "0s"
"""


def test_a_worker_that_aborts_or_is_killed_is_brought_back_and_told_of(tmp_path: Path) -> None:
    site = tmp_path / "site"
    metadata = site / "faulty-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: faulty\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[edge_agent.sources]\nfaulty = tests.plugins.faulty:Faulty\n")
    folder = tmp_path / "agent"
    events = EventFile(folder)
    path = os.pathsep.join([str(site), str(ROOT)])
    with AgentProcess(folder, SETTINGS, {"PYTHONPATH": path}) as agent:
        agent.wait_until(events.has(70, kind="result"), "results behind the abort")
        os.kill(agent.pids[1], signal.SIGKILL)
        agent.wait_for("killed by SIGKILL")
        (folder / "last").touch()
        agent.wait_for("source has ended")
        report = agent.report()
        assert agent.stop() == 0
    events.check()

    first, second = events.having(kind="health", component="worker", state="died")
    assert first["exit_status"] == "killed by SIGABRT"
    # The other thread may be at something, too.
    assert first["stage"].startswith("reading the source")
    assert "USB transfer error" in first["detail"]
    assert second["exit_status"] == "killed by SIGKILL"
    assert report.worker is not None
    assert report.worker.deaths == 2
    # A recording goes on behind the last sample that became a result: none is missing, none comes twice.
    assert len(events.having(kind="result")) == TOTAL
    assert events.having(kind="loss") == []
