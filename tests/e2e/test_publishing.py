"""The whole agent with fewer events than results: nothing is counted twice or not at all over a reload and the end."""

import itertools
import re
from pathlib import Path

from tests.agentprocess import AgentProcess
from tests.e2e.eventfile import EventFile

MODEL = Path(__file__).parents[2] / "edge_agent/demo/vibration_classifier.tflite"


def settings(publish: str, site: str) -> str:
    return f"""
[device]
id = "edge-001"
labels = {{ site = "{site}" }}
[source]
plugin = "vibration"
rate = 200
seed = 1
normal = "200ms"
warning = "100ms"
failure = "100ms"
[model]
url = "{MODEL}"
[inference]
labels = ["normal", "warning", "failure"]
[telemetry]
sink = "events.jsonl"
linger = "0s"
publish = {publish}
[[actions]]
name = "alarm"
when = {{ label = "failure", min_confidence = 0.8 }}
run = ["true"]
cooldown = "1h"
"""


def test_summaries_over_a_reload_and_the_end(tmp_path: Path) -> None:
    folder = tmp_path / "agent"
    file = EventFile(folder)
    with AgentProcess(folder, settings('{ summary = "1h" }', "lyon")) as agent:
        # The alarm does not wait for the end of the window.
        agent.wait_until(file.has(kind="alarm"), "alarm")
        report = agent.wait_for_report(lambda report: report.results and report.results.samples > 100, "results")
        assert report.results is not None
        assert report.results.published == "a summary each 1h"
        assert report.results.prediction in {"normal", "warning", "failure"}
        agent.configure(settings('{ summary = "1h" }', "turin"))
        agent.reload()
        agent.wait_until(file.has(kind="summary"), "summary of the time before the reload")
        agent.wait_for_report(lambda report: report.results and report.results.samples > 200, "further results")
        assert agent.stop() == 0

    file.check()
    [alarm] = file.having(kind="alarm")
    assert (alarm["prediction"], len(alarm["results"]), alarm["model_version"]) == ("failure", 3, "v1")
    first, second = file.having(kind="summary")
    assert (first["device_labels"], second["device_labels"]) == ({"site": "lyon"}, {"site": "turin"})
    [told] = re.findall(r"stopped .*results=(\d+)", agent.said)
    assert first["count"] + second["count"] == int(told)
    assert file.having(kind="result") == []
    for summary in (first, second):
        assert sum(each["count"] for each in summary["predictions"]) == summary["count"]
        assert summary["window_ms"] < 3_600_000


def test_changes_and_every_so_many(tmp_path: Path) -> None:
    folder = tmp_path / "agent"
    file = EventFile(folder)
    with AgentProcess(folder, settings('"change"', "lyon")) as agent:
        agent.wait_until(file.has(7, kind="result"), "changes")
        changes = list(file.having(kind="result"))
        agent.configure(settings("{ one_in = 50 }", "lyon"))
        agent.reload()
        agent.wait_until(file.has(3, kind="result", unpublished=49), "every 50th result")
        assert agent.stop() == 0

    file.check()
    shown = [event["prediction"] for event in changes]
    assert all(before != after for before, after in itertools.pairwise(shown))
