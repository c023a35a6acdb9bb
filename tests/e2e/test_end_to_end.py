"""The whole agent as its own process, against a Pub/Sub and a Cloud Storage server.

As the public guides have it: a model object with `x-goog-meta-version`, a topic, and a loop that must not lose
anything. The tests run against Google's own Pub/Sub emulator too where it is installed.
"""

import json
import os
import select
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.agentprocess import AgentProcess
from tests.servers.emulator import Emulator, Subscription
from tests.servers.gcs import GcsServer
from tests.servers.proxy import Proxy
from tests.servers.pubsub import PubSubServer

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "edge_agent/demo/vibration_classifier.tflite"
SCHEMA = ROOT / "docs/event.schema.json"
BUCKET = "your-model-bucket"
OBJECT = "edge-models/vibration-classifier/latest/model_quant_edgetpu.tflite"
TOPIC = "projects/project/topics/events"

SETTINGS = f"""
[device]
id = "edge-001"

[source]
plugin = "vibration"
rate = 200
seed = 1
normal = "2s"
warning = "1s"
failure = "1s"

[model]
url = "gs://{BUCKET}/{OBJECT}"
poll_interval = "1s"

[model.trial]
samples = 100

[inference]
labels = ["normal", "warning", "failure"]

[telemetry]
sink = "pubsub://project/events"
linger = "50ms"

[[actions]]
name = "alarm"
when = {{ label = "failure", min_confidence = 0.8 }}
run = ["tee", "alarm.json"]
cooldown = "1s"
"""

pytestmark = pytest.mark.timeout(240)


def gsutil_cp(gcs: GcsServer, version: str, **more: str) -> None:
    """What `gsutil -h "x-goog-meta-version:VERSION" cp model.tflite gs://…` does."""
    gcs.upload(BUCKET, OBJECT, MODEL.read_bytes(), {"version": version, **more})


@pytest.fixture
def gcs(gcs_server: GcsServer) -> GcsServer:
    gcs_server.create_bucket(BUCKET)
    gsutil_cp(gcs_server, "v1.2")
    return gcs_server


class Consumer:
    """A subscriber that keeps every event by its id."""

    def __init__(self, subscription: Subscription) -> None:
        self.events: dict[str, dict[str, Any]] = {}
        self.messages = 0
        self._subscription = subscription

    def pull_until(self, condition: Any) -> None:
        """Pull until the events make the condition true."""
        while not condition(self):
            received = self._subscription.pull(1, seconds=60)
            assert received, f"no more messages; {len(self.events)} events so far"
            for message in received:
                event = json.loads(message.data)
                self.messages += 1
                known = self.events.setdefault(event["event_id"], event)
                assert known == event, "two events under one id"
                attributes = dict(message.attributes)
                assert attributes["device_id"] == "edge-001"
                assert attributes["kind"] == event["kind"]
                if event["kind"] == "result":
                    assert attributes["prediction"] == event["prediction"]
                    assert attributes["model_version"] == event["model_version"]

    def numbers(self) -> list[int]:
        """The numbers of the events, which must all be of one epoch."""
        assert len({each.split("/")[1] for each in self.events}) == 1
        return sorted(int(each.rpartition("/")[2]) for each in self.events)

    def of(self, kind: str) -> list[dict[str, Any]]:
        """The events of a kind in order."""
        return [event for _, event in sorted(self.events.items()) if event["kind"] == kind]

    def versions(self) -> set[str]:
        """The model versions that results came from."""
        return {event["model_version"] for event in self.of("result")}


@pytest.fixture
def consumer(pubsub_backend: PubSubServer | Emulator) -> Iterator[Consumer]:
    with Subscription(pubsub_backend.address, TOPIC) as subscription:
        yield Consumer(subscription)


@pytest.fixture
def line(pubsub_backend: PubSubServer | Emulator) -> Iterator[Proxy]:
    """The network between the agent and Pub/Sub."""
    with Proxy(pubsub_backend.address) as proxy:
        yield proxy


@pytest.fixture
def agent(line: Proxy, consumer: Consumer, gcs: GcsServer, tmp_path: Path) -> Iterator[AgentProcess]:
    # The consumer comes first: a subscription gets only what is published after it was made.
    with AgentProcess(tmp_path / "agent", SETTINGS, {"PUBSUB_EMULATOR_HOST": line.address}) as agent:
        yield agent


def assert_no_hole(numbers: list[int]) -> None:
    assert numbers == list(range(1, len(numbers) + 1))


def test_results_arrive_and_a_new_model_takes_over_without_a_hole(
    agent: AgentProcess, consumer: Consumer, gcs: GcsServer
) -> None:
    agent.wait_for_notice("READY=1")
    consumer.pull_until(lambda c: {"normal", "warning", "failure"} <= {e["prediction"] for e in c.of("result")})
    assert consumer.versions() == {"v1.2"}

    gsutil_cp(gcs, "v1.3", accuracy="0.94")
    consumer.pull_until(lambda c: "v1.3" in c.versions() and len(c.of("model")) == 3)
    consumer.pull_until(lambda c: c.numbers() == list(range(1, len(c.events) + 1)))

    validator = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text()))
    for event in consumer.events.values():
        validator.validate(event)
    results = consumer.of("result")
    versions = [event["model_version"] for event in results]
    assert versions == sorted(versions), "results of the old model after those of the new one"
    assert [event["timestamp"] for event in results] == sorted(event["timestamp"] for event in results)
    assert {event["model_name"] for event in results} == {"vibration-classifier"}
    first, tried, second = consumer.of("model")
    assert (first["state"], first["model_version"], first.get("accuracy")) == ("committed", "v1.2", None)
    assert (tried["state"], tried["model_version"], tried["previous_version"]) == ("trial", "v1.3", "v1.2")
    assert (second["state"], second["model_version"], second["previous_version"]) == ("committed", "v1.3", "v1.2")
    assert (second["accuracy"], second["samples"] >= 100, second["failed"]) == (0.94, True, 0)
    assert consumer.of("alarm")[0]["action"] == "alarm"

    # The version in use survives a restart, even without the bucket.
    assert agent.stop() == 0
    seen = len(consumer.events)
    gcs.fault("status", status=503, times=1000)
    agent.start()
    consumer.pull_until(lambda c: len(c.events) > seen + 50)
    assert {event["model_version"] for event in consumer.of("result")[-20:]} == {"v1.3"}
    assert_no_hole(consumer.numbers()[:seen])


@pytest.mark.system
def test_events_of_an_offline_time_arrive_although_the_agent_was_killed(
    agent: AgentProcess, consumer: Consumer, line: Proxy
) -> None:
    agent.wait_for_notice("READY=1")
    consumer.pull_until(lambda c: len(c.of("result")) > 100)

    line.stop()
    agent.wait_for_notice("events are not sent")
    agent.wait_for_report(lambda report: report.queue and report.queue.waiting > 300, "waiting events")
    agent.kill()
    agent.start()
    agent.wait_for_report(lambda report: report.queue and report.queue.waiting > 700, "more waiting events")
    agent.wait_for_notice("events wait")
    agent.kill()

    line.start()
    agent.start()
    agent.wait_for("prediction")
    agent.wait_for_notice("events are sent")
    assert agent.stop() == 0
    # All lives of the agent counted on in one epoch, so an event that was lost would leave a hole.
    consumer.pull_until(lambda c: c.numbers() == list(range(1, len(c.events) + 1)) and len(c.events) > 800)
    # At least once: what was in flight at the kill may come twice, and is known by its id.
    assert consumer.messages - len(consumer.events) <= 3 * 2000


def test_a_good_reload_is_applied_and_a_bad_one_refused(agent: AgentProcess, consumer: Consumer) -> None:
    agent.wait_for_notice("READY=1")
    consumer.pull_until(lambda c: len(c.of("result")) > 50)

    agent.configure(SETTINGS.replace("rate = 200", 'rate = "fast"').replace("linger", "lingr"))
    agent.reload()
    agent.wait_for("the old settings go on", times=2)
    agent.wait_for_notice("reload refused")
    assert f'{agent.config}:7: [source].rate: expected a number, not "fast"' in agent.said
    assert "[telemetry].lingr: unknown key (did you mean 'linger'?)" in agent.said
    seen = len(consumer.events)
    consumer.pull_until(lambda c: len(c.events) > seen + 50)

    agent.configure(SETTINGS.replace('id = "edge-001"', 'id = "edge-001"\nlabels = { site = "lyon" }'))
    agent.reload()
    agent.wait_for("settings reloaded")
    consumer.pull_until(lambda c: any(event.get("device_labels") for event in c.of("result")))
    agent.wait_until(lambda: "reload refused" not in agent.notices[-1], "status without the refusal")
    assert agent.notices[0].startswith("STATUS") or "READY=1" in agent.notices[0]
    assert any("RELOADING=1" in notice for notice in agent.notices)
    assert agent.stop() == 0
    assert any("STOPPING=1" in notice for notice in agent.notices)


def test_a_damaged_model_is_refused_once_and_the_old_one_goes_on(
    agent: AgentProcess, consumer: Consumer, gcs: GcsServer
) -> None:
    consumer.pull_until(lambda c: len(c.of("result")) > 20)
    gcs.upload(BUCKET, OBJECT, MODEL.read_bytes()[:5000], {"version": "v1.3"})
    consumer.pull_until(lambda c: any(event["state"] == "rejected" for event in c.of("model")))
    rejected = consumer.of("model")[-1]
    assert rejected["model_version"] == "v1.3"
    assert rejected["reason"] == "is no TensorFlow Lite model, or is cut short"
    seen = len(consumer.of("result"))
    consumer.pull_until(lambda c: len(c.of("result")) > seen + 300)
    assert consumer.versions() == {"v1.2"}
    assert sum(event["state"] == "rejected" for event in consumer.of("model")) == 1

    gsutil_cp(gcs, "v1.3")  # the same version again, whole
    consumer.pull_until(lambda c: "v1.3" in c.versions())


def test_the_worker_dies_with_a_killed_agent(agent: AgentProcess) -> None:
    agent.wait_for("prediction")
    worker = agent.pids[1]
    agent.kill()
    try:
        pidfd = os.pidfd_open(worker)
    except ProcessLookupError:
        return
    try:
        assert select.select([pidfd], [], [], 30)[0], "the worker lives on without its agent"
    finally:
        os.close(pidfd)


def worker_health(consumer: Consumer) -> list[dict[str, Any]]:
    """What was told of the worker; this machine may have its own troubles."""
    return [event for event in consumer.of("health") if event["component"] == "worker"]


def test_a_killed_worker_is_replaced_and_told_of(agent: AgentProcess, consumer: Consumer) -> None:
    consumer.pull_until(lambda c: len(c.of("result")) > 20)
    os.kill(agent.pids[1], signal.SIGKILL)
    consumer.pull_until(worker_health)
    [event] = worker_health(consumer)
    assert event["state"] == "died"
    assert "killed by SIGKILL" in event["detail"]
    seen = len(consumer.of("result"))
    consumer.pull_until(lambda c: len(c.of("result")) > seen + 50)
    assert_no_hole(consumer.numbers())
