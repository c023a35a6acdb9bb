"""A release on its way to many devices, with nothing but a bucket."""

import asyncio
import math
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edge_agent.models.release.manifest import Audience
from edge_agent.settings.location import Location
from tests.fleet.fleet_kit import Fleet
from tests.models.rollout.release_kit import MANIFEST, Publisher, manifest, public_file
from tests.models.rollout.rollout_kit import HOUR
from tests.servers.gcs import GcsServer

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
ROUND = 1.15 * HOUR
"""In so long each device polls at least once."""
SLOW: Any = {"id": "1000", "marks": [pytest.mark.system, pytest.mark.timeout(900)]}


@pytest.fixture
def publisher(gcs_server: GcsServer) -> Publisher:
    gcs_server.create_bucket("bucket")
    return Publisher(gcs_server, KEY)


def a_fleet(count: int, folder: Path, publisher: Publisher) -> Fleet:
    url, keys = Location("gs", "bucket", MANIFEST), [public_file(KEY, folder)]
    return Fleet(count, folder / "devices", publisher.server, url, keys)


@pytest.mark.parametrize("count", [pytest.param(16, id="16"), pytest.param(1000, **SLOW)])
def test_a_release_goes_out_step_by_step(
    count: int, tmp_path: Path, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = a_fleet(count, tmp_path, publisher)
    model = b"model v1.3" * 5000
    before = manifest("v1.3", model)

    def promote(percent: float, **more: Any) -> None:
        publisher.publish("v1.4", before=before, audience=Audience(percent=percent, **more))

    async def story() -> None:
        publisher.publish("v1.3", data=model)
        await asyncio.sleep(ROUND)
        assert len(fleet.on("v1.3")) == count
        reached: set[str] = set()
        for percent in (5, 25, 50):
            promote(percent)
            await asyncio.sleep(ROUND)
            now = fleet.on("v1.4")
            mean = count * percent / 100
            assert 2 * mean - at_most(mean, count) <= len(now) <= at_most(mean, count)
            assert reached <= now
            reached = now
            assert len(fleet.on("v1.3")) == count - len(now)
        labels = next(one.device.labels for one in fleet.members if one.device.id not in reached)
        promote(50, cohorts=[labels])
        await asyncio.sleep(ROUND)
        cohort = {one.device.id for one in fleet.members if one.device.labels == labels}
        assert fleet.on("v1.4") == reached | cohort
        reached |= cohort
        promote(100, halted=True)
        await asyncio.sleep(2 * ROUND)
        assert fleet.on("v1.4") == reached
        promote(100)
        await asyncio.sleep(ROUND)
        assert len(fleet.on("v1.4")) == count

    fleet.live(story, monkeypatch)
    for one in fleet.members:
        assert one.worker.loaded == ["v1.3", "v1.4"]


@pytest.mark.parametrize(("count", "hours"), [pytest.param(16, 8, id="16"), pytest.param(1000, 24, **SLOW)])
def test_what_it_costs(
    count: int, hours: int, tmp_path: Path, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The figures in docs/cloud.md."""
    fleet = a_fleet(count, tmp_path, publisher)
    traffic = fleet.traffic

    async def story() -> None:
        publisher.publish("v1.3", twin=b"model for the CPU")
        await asyncio.sleep(ROUND)
        # A new release: its manifest, and each object with what is said of it.
        assert traffic.of("/release.json")[1] == count
        assert traffic.of("/objects/") == (2 * count, 2 * count)
        # Hours without news: one answer without a body per poll.
        requests, bodies = len(traffic.requests), traffic.bodies
        await asyncio.sleep(hours * HOUR)
        polls = len(traffic.requests) - requests
        assert abs(polls / count - hours) < 1
        assert traffic.bodies == bodies
        assert traffic.of("/release.json")[1] == count

    fleet.live(story, monkeypatch)
    # All were switched on at the same moment. An hour later they come in the course of twelve minutes, and after a day
    # all the time. Without jitter, each hour would have a minute with all of them.
    assert traffic.busiest_minute(0, 60) > count
    assert traffic.busiest_minute(0.5 * HOUR, 1.5 * HOUR) <= at_most(count / 12, count)
    assert traffic.busiest_minute((hours - 2) * HOUR, hours * HOUR) <= at_most(count / min(36, 2.5 * hours), count)


def at_most(mean: float, count: int) -> float:
    """What chance leaves below it: four standard deviations."""
    return mean + 4 * math.sqrt(mean * (1 - mean / count))
