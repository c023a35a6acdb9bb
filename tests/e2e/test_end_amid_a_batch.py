"""SIGTERM while a request is under way and nobody answers it."""

import json
from pathlib import Path

import pytest

from tests.agentprocess import AgentProcess
from tests.servers.pubsub import Hang, PubSubServer

MODEL = Path(__file__).parents[2] / "edge_agent/demo/vibration_classifier.tflite"
TOPIC = "projects/project/topics/events"
SETTINGS = f"""
[source]
plugin = "vibration"
rate = 200
[model]
url = "{MODEL.as_uri()}"
[telemetry]
sink = "pubsub://project/events"
linger = "50ms"
"""


@pytest.mark.timeout(240)
def test_what_was_under_way_at_the_end_arrives_after_the_next_start(pubsub: PubSubServer, tmp_path: Path) -> None:
    pubsub.script(Hang(), times=100)
    with AgentProcess(tmp_path / "agent", SETTINGS, {"PUBSUB_EMULATOR_HOST": pubsub.address}) as agent:
        pubsub.wait_for(lambda server: bool(server.requests), 60)
        assert agent.stop() == 0
        assert pubsub.messages(TOPIC) == []

        pubsub.clear()
        agent.start()
        pubsub.wait_for(lambda server: len(server.messages(TOPIC)) > 100, 60)
        assert agent.stop() == 0
    names = [json.loads(message.data)["event_id"] for message in pubsub.messages(TOPIC)]
    assert len({name.rpartition("/")[0] for name in names}) == 1
    numbers = sorted(int(name.rpartition("/")[2]) for name in names)
    assert numbers == list(range(1, len(names) + 1)), "lost, or sent twice"
