"""The whole agent on a board whose clock starts in 1970, is set, and is moved about."""

import itertools
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.agentprocess import AgentProcess
from tests.servers.gcs import GcsServer
from tests.servers.pubsub import PubSubServer
from tests.standin import wallclock
from tests.standin.wallclock import NOT_SET, TENDED, WallClock

MODEL = Path(__file__).parents[2] / "edge_agent/demo/vibration_classifier.tflite"
TOPIC = "projects/project/topics/events"
ROUNDING_MS = 3
SETTINGS = """
[device]
id = "edge-001"

[source]
plugin = "vibration"
rate = 100
seed = 1

[model]
url = "{model}"
poll_interval = "1s"

[inference]
labels = ["normal", "warning", "failure"]

[telemetry]
sink = "pubsub://project/events"
linger = "50ms"
"""

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def clock(tmp_path: Path) -> WallClock:
    reason = wallclock.why_not()
    if reason is not None:
        pytest.skip(reason)
    return WallClock(tmp_path / "clock", wallclock.build(tmp_path))


@pytest.fixture
def agent(clock: WallClock, pubsub: PubSubServer, tmp_path: Path) -> Iterator[AgentProcess]:
    environ = {"PUBSUB_EMULATOR_HOST": pubsub.address, **clock.environ}
    agent = AgentProcess(tmp_path / "agent", SETTINGS.replace("{model}", f"file://{MODEL}"), environ)
    try:
        yield agent
    finally:
        agent.__exit__(None, None, None)


class Arrived:
    """What the server has got, by event id, in the order of the numbers."""

    def __init__(self, server: PubSubServer) -> None:
        events = [json.loads(message.data) for message in server.messages(TOPIC)]
        self.events = sorted({event["event_id"]: event for event in events}.values(), key=lambda e: e["event_id"])

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["kind"] == kind]

    @property
    def clock(self) -> list[str]:
        """What was told of the clock."""
        return [event["state"] for event in self.of("health") if event["component"] == "clock"]

    def assert_true_to(self, begin_ms: float) -> None:
        """All are there, dated with their right time, and in its order."""
        numbers = [int(event["event_id"].rpartition("/")[2]) for event in self.events]
        assert numbers == list(range(1, len(numbers) + 1))
        # A busy machine may be too slow for some samples; they never became events.
        assert {event["cause"] for event in self.of("loss")} <= {"source_overrun"}
        assert {event["time_source"] for event in self.events} == {"restored", "synchronized"}
        times = [event["timestamp"] for event in self.of("result")]
        assert begin_ms - ROUNDING_MS <= times[0]
        assert times[-1] <= time.time() * 1000
        assert all(later - earlier > -ROUNDING_MS for earlier, later in itertools.pairwise(times))


def wait_for(server: PubSubServer, condition: Callable[[Arrived], object]) -> Arrived:
    server.wait_for(lambda server: bool(condition(Arrived(server))), seconds=60)
    return Arrived(server)


def wait_for_results(server: PubSubServer, more: int) -> None:
    before = len(Arrived(server).of("result"))
    wait_for(server, lambda arrived: len(arrived.of("result")) >= before + more)


def synchronized(event: dict[str, Any]) -> bool:
    return bool(event["time_source"] == "synchronized")


def test_events_of_1970_wait_for_the_clock_through_a_restart_and_get_their_time(
    agent: AgentProcess, clock: WallClock, pubsub: PubSubServer
) -> None:
    begin_ms = time.time() * 1000
    agent.start()
    held = "the clock is not set yet: it says 1970-01-01"
    report = agent.wait_for_report(lambda report: report.queue and report.queue.waiting >= 50, "waiting events")
    agent.wait_for_report(lambda report: held in report.summary, "the reason")
    assert report.clock == "unverified"
    agent.stop()
    agent.start()
    agent.wait_for_report(lambda report: report.queue and report.queue.waiting >= 150, "more waiting events")
    assert Arrived(pubsub).events == []

    clock.move(0, TENDED)
    arrived = wait_for(pubsub, lambda arrived: arrived.of("result")[-1:] and synchronized(arrived.of("result")[-1]))
    agent.stop()
    arrived.assert_true_to(begin_ms)
    assert arrived.clock == ["set"]
    restored = [event for event in arrived.of("result") if event["time_source"] == "restored"]
    assert len(restored) >= 150


def test_a_clock_that_is_moved_neither_reorders_nor_loses_anything(
    agent: AgentProcess, clock: WallClock, pubsub: PubSubServer
) -> None:
    clock.move(0, TENDED)
    begin_ms = time.time() * 1000
    agent.start()
    wait_for_results(pubsub, 20)
    # One hour, to 1970, beyond 2038, and back at last, which the network does.
    for by in (3600, -3600, -time.time() + 60, 2.0**31):
        clock.move(by, NOT_SET)
        wait_for_results(pubsub, 20)
    clock.move(0, TENDED)
    arrived = wait_for(
        pubsub, lambda arrived: arrived.clock == ["jumped", "set"] and synchronized(arrived.of("result")[-1])
    )
    agent.stop()
    arrived.assert_true_to(begin_ms)


def test_a_clock_that_is_not_that_of_the_bucket_is_told_until_it_is(
    pubsub: PubSubServer, gcs_server: GcsServer, tmp_path: Path
) -> None:
    gcs_server.upload("bucket", "model.tflite", MODEL.read_bytes(), {"version": "v1.2"})
    gcs_server.ahead = 7200
    settings = SETTINGS.replace("{model}", "gs://bucket/model.tflite")
    with AgentProcess(tmp_path / "agent", settings, {"PUBSUB_EMULATOR_HOST": pubsub.address}) as agent:
        wait_for(pubsub, lambda arrived: "skewed" in arrived.clock)
        report = agent.wait_for_report(lambda report: "behind 127.0.0.1" in report.summary, "the skew")
        assert any(problem.startswith(("the clock is 2h", "the clock is 1h5")) for problem in report.problems)
        gcs_server.ahead = 0
        wait_for(pubsub, lambda arrived: "ok" in arrived.clock)
        agent.wait_for_report(lambda report: "behind" not in report.summary, "no skew")
        agent.stop()
