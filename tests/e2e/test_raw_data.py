"""Pictures for retraining, from a real detector to a bucket: every reference in an event leads to a picture."""

from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.agentprocess import AgentProcess
from tests.e2e.eventfile import EventFile
from tests.servers.gcs import GcsServer

MODELS = Path(__file__).parents[3] / "shared" / "models"
MODEL, PICTURE = MODELS / "traffic_model.tflite", MODELS / "traffic_0001.bmp"
PREFIX = "gs://bucket/retraining/"
SETTINGS = """
[device]
id = "edge-001"
[source]
plugin = "images"
path = "{picture}"
rate = 20
repeat = true
[model]
url = "{model}"
[inference]
task = "detection"
[telemetry]
sink = "events.jsonl"
linger = "0s"
[telemetry.raw_data]
images = "gs://bucket/retraining"
one_in = 1
daily_budget = "{budget}"
"""
# So much that a picture can go out with every result.
PLENTY = "100GB"


@pytest.fixture
def bucket(gcs_server: GcsServer) -> GcsServer:
    for file in (MODEL, PICTURE):
        if not file.exists():
            pytest.skip(f"{file.name} is not in {MODELS}")
    gcs_server.create_bucket("bucket")
    return gcs_server


def settings(budget: str = PLENTY) -> str:
    return SETTINGS.format(picture=PICTURE, model=MODEL, budget=budget)


def stored(server: GcsServer) -> set[str]:
    return {f"gs://bucket/{name}" for name in server.buckets["bucket"].objects}


def referred(events: EventFile) -> set[str]:
    return {event["raw_data_url"] for event in events.having(raw_data_rule="one_in")}


def files(folder: Path) -> list[Path]:
    return [path for name in ("run", "state") for path in (folder / name / "raw-data").rglob("*.jpg")]


def test_an_event_refers_to_its_picture_in_the_bucket(tmp_path: Path, bucket: GcsServer) -> None:
    events = EventFile(tmp_path)
    with AgentProcess(tmp_path, settings()) as agent:
        agent.wait_until(lambda: len(stored(bucket) & referred(events)) >= 3, "pictures and their events")
        # The server has a picture before the agent knows it.
        agent.wait_for_report(lambda report: report.raw_data and report.raw_data.uploaded >= 3, "uploaded pictures")
        text = agent.command("status").stdout
        assert agent.stop() == 0
    events.check()
    assert "raw_data     gs://bucket/retraining: " in text
    name = min(stored(bucket) & referred(events))
    assert name.startswith(f"{PREFIX}edge-001/20")
    [found] = bucket.buckets["bucket"].objects[name.removeprefix("gs://bucket/")]
    assert Image.open(BytesIO(found.data)).size == (256, 256)
    assert found.properties["contentType"] == "image/jpeg"


@pytest.mark.system
def test_the_budget_is_kept_also_by_a_worker_that_is_started_again(tmp_path: Path, bucket: GcsServer) -> None:
    events = EventFile(tmp_path)
    with AgentProcess(tmp_path, settings("10kB")) as agent:
        agent.wait_until(lambda: stored(bucket), "picture")
        agent.wait_until(events.has(5, kind="result", raw_data_rule=None), "results without a picture")
        agent.kill()
        agent.start()
        agent.wait_until(events.has(5, kind="result", raw_data_rule=None), "results of the second worker")
        agent.wait_for_report(lambda report: report.raw_data and report.raw_data.over_budget, "samples left out")
        agent.stop()
    assert len(referred(events)) == len(stored(bucket)) == 1


def test_every_reference_comes_true_after_an_outage_a_kill_and_a_stop(tmp_path: Path, bucket: GcsServer) -> None:
    events = EventFile(tmp_path)
    bucket.fault("status", "upload", times=10_000, status=503)
    with AgentProcess(tmp_path, settings()) as agent:
        agent.wait_until(lambda: "pictures cannot be uploaded and wait" in agent.said, "word of the outage")
        agent.wait_until(lambda: len(referred(events)) >= 3, "events of pictures")
        agent.kill()
        agent.start()
        agent.wait_until(events.has(raw_data_rule="one_in"), "another one")
        # No more of them: the rest has to go out.
        agent.configure(settings().replace("one_in = 1", "one_in = 1000000000"))
        agent.reload()
        agent.wait_for("settings reloaded")
        agent.wait_until(
            lambda: not list((agent.runtime / "raw-data").rglob("*.jpg")),
            "pictures where a boot leaves them alone",
        )
        assert agent.stop() == 0
        waiting = len(files(tmp_path))
        assert waiting >= 4
        bucket.clear_faults()
        agent.start()
        agent.wait_until(lambda: not files(tmp_path), "upload of the pictures that had waited")
        agent.stop()
    assert referred(events) <= stored(bucket)
    assert len(stored(bucket)) >= waiting
    losses: list[dict[str, Any]] = events.having(kind="loss")
    assert losses == []
