"""The fault tests of the queue and the sender in the numbers that make a claim: 100 kills, 20 power cuts, days."""

import asyncio
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from edge_agent.telemetry.queue.queue import Queue
from edge_agent.telemetry.sending.pubsub import PubSubSink
from edge_agent.telemetry.sending.sender import Sender
from tests.servers.pubsub import PubSubServer
from tests.telemetry import loopdisk
from tests.telemetry.loopdisk import LoopDisk
from tests.telemetry.queue.powercuts import check_power_cuts
from tests.telemetry.queue.queue_kit import put
from tests.telemetry.queue.test_queue_io_errors import sweep, sweep_damage
from tests.telemetry.queue.test_queue_kill import check_kills
from tests.telemetry.sending.test_sender_failures import until
from tests.telemetry.soak import Plan, soak
from tests.telemetry.test_soak import MEMORY

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

WHERE = pytest.mark.parametrize("with_runtime", [True, False], ids=["runtime directory", "state directory"])


@WHERE
def test_a_hundred_kills_lose_nothing(tmp_path: Path, with_runtime: bool) -> None:
    assert check_kills(tmp_path, 100, with_runtime=with_runtime) > 10_000


@WHERE
def test_twenty_power_cuts_cost_a_commit_interval_each_at_most(tmp_path: Path, with_runtime: bool) -> None:
    if reason := loopdisk.why_not():
        pytest.skip(reason)
    check_power_cuts(tmp_path, 20, with_runtime=with_runtime)


@pytest.mark.parametrize("failures", [5, 9])
def test_events_flow_within_ten_seconds_after_the_server_is_back(
    tmp_path: Path, pubsub: PubSubServer, failures: int
) -> None:
    """In real time: the waits between two tries have grown to their longest, and gRPC has its own on top."""

    async def work() -> float:
        queue = Queue(tmp_path, max_size=1 << 30, commit_interval=1, boot_id="boot")
        async with queue:
            put(queue, 3000)
            sink = PubSubSink("project", "events", emulator=pubsub.address)
            sender: Sender[Any] = Sender(queue, sink, linger=0.25)
            sending = asyncio.create_task(sender.run())
            await until(lambda: sender.state.failures >= failures)
            await asyncio.sleep(0.5)  # the next wait has just begun
            pubsub.start()
            back = time.monotonic()
            await until(lambda: queue.depth == 0)
            took = time.monotonic() - back
            await sender.stop(5)
            await sending
            return took

    pubsub.stop()
    assert asyncio.run(work()) < 10


PLANS: dict[str, dict[str, Any]] = {
    "kills": {},
    "full queue": {"size": 200_000},
    "power cuts": {"cuts": True},
    "power cuts, full queue": {"cuts": True, "size": 200_000},
}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("more", PLANS.values(), ids=PLANS)
def test_hours_of_bad_weather_lose_nothing(more: dict[str, Any], seed: int) -> None:
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        soak(Path(name), Plan(seed=100 + seed, hours=4, **more))


def test_a_day_offline_is_told_to_the_last_event() -> None:
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        soak(Path(name), Plan(seed=0, hours=24, size=1_000_000, offline=True))


def test_hours_with_a_card_that_fills_up() -> None:
    if reason := loopdisk.why_not():
        pytest.skip(reason)
    for seed in range(4):
        with tempfile.TemporaryDirectory(dir=MEMORY) as name, LoopDisk(Path(name) / "card", 32) as card:
            soak(Path(name), Plan(seed=seed, hours=2, card=card))


@pytest.mark.parametrize("place", ["runtime backlog", "state backlog", "runtime nothing", "state nothing"])
@pytest.mark.parametrize(
    ("fault", "times"), [("EIO", 1), ("EIO", 3), ("ENOSPC", 1), ("ENOSPC", 20), ("SHORT", 1), ("CRASH", 1)]
)
def test_a_fault_at_each_single_step_costs_no_event(faultio: Path, fault: str, times: int, place: str) -> None:
    tried, total = sweep(faultio, fault, times, stride=1, place=place)
    assert tried == total > 50


@pytest.mark.parametrize("times", [1, 5, 1000])
def test_a_damaged_file_is_replaced_whichever_step_of_it_fails(faultio: Path, times: int) -> None:
    tried, _ = sweep_damage(faultio, times, stride=1)
    assert tried > 50
