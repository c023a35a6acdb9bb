"""Roll-outs that wait for the time of day, for memory, or for a server, and go on with what has come."""

import asyncio
from typing import Any

import pytest

from edge_agent.device.memory import Memory
from edge_agent.models.rollout.rollout import Rollout
from edge_agent.models.rollout.schedule import WINDOW_SPREAD
from edge_agent.models.stores.limits import DownloadLimits
from edge_agent.settings.window import parse_window
from tests.models.rollout.rollout_kit import HOUR, Clock, Device, first_pause

NOON = 12 * 60.0
SIZE = 100_000


@pytest.fixture
def running(device: Device) -> Device:
    """A device that runs v1, and is offered v2."""
    device.upload("v1")
    device.live(first_pause)
    device.changes.clear()
    device.upload("v2", b"model v2" * (SIZE // 8))
    return device


def _ranges(device: Device) -> list[str | None]:
    return [one.headers.get("range") for one in device.server.requests if one.query.get("alt") == "media"]


def test_outside_of_the_window_it_is_named_and_fetched_as_the_window_opens(running: Device, log: list[Any]) -> None:
    minute = NOON
    running.limits = DownloadLimits(window=parse_window("14:30-15:00"), now=lambda: minute)

    async def story(rollout: Rollout, clock: Clock) -> None:
        nonlocal minute
        assert await clock.pause() == HOUR
        assert rollout.status.last_poll == "v2 is offered and is fetched from 14:30 on"
        assert (rollout.status.version, rollout.status.failures) == ("v1", 0)
        minute += 60
        assert await clock.tick() == HOUR
        minute += 60
        assert await clock.tick() == 30 * 60 + WINDOW_SPREAD / 2
        minute += 31
        assert await clock.tick() == HOUR
        assert rollout.status.version == "v2"
        assert rollout.status.last_poll == "v2 is offered"

    running.live(story)
    assert len(_ranges(running)) == 2
    lines = [line for line in log if line.get("found") == "v2 is offered and is fetched from 14:30 on"]
    assert [line["log_level"] for line in lines] == ["info"]
    assert "fetching a model" not in [line["event"] for line in log[: log.index(lines[0])]][3:]


def test_a_device_without_a_model_does_not_wait_for_the_window(device: Device) -> None:
    device.limits = DownloadLimits(window=parse_window("14:30-15:00"), now=lambda: NOON)
    device.upload("v1")
    device.live(first_pause)
    assert device.changed() == [("committed", "v1", None)]


def test_the_window_closes_in_the_middle(running: Device) -> None:
    minute, now = 14 * 60 + 59.0, 0.0

    def clock_of_limits() -> float:
        nonlocal now, minute
        now, minute = now + 6, minute + 0.1  # each piece takes so long
        return now

    limits = DownloadLimits(window=parse_window("14:30-15:00"), now=lambda: minute, clock=clock_of_limits)
    running.limits = limits

    async def story(rollout: Rollout, clock: Clock) -> None:
        nonlocal minute
        assert await clock.pause() == HOUR
        assert rollout.status.last_poll == "v2 is offered and is fetched from 14:30 on"
        minute = 14 * 60 + 30.0
        await clock.tick()
        assert rollout.status.version == "v2"

    running.live(story)
    (_, first, second) = _ranges(running)
    assert first is None
    assert second is not None


def test_the_twin_waits_for_the_window_too(device: Device) -> None:
    device.url = device.url.__class__("gs", "bucket", "m_edgetpu.tflite")
    device.upload("v1")
    device.live(first_pause)
    device.server.upload("bucket", "m.tflite", b"model twin", {"version": "v1"})
    minute = NOON
    device.limits = DownloadLimits(window=parse_window("14:30-15:00"), now=lambda: minute)

    async def story(rollout: Rollout, clock: Clock) -> None:
        nonlocal minute
        assert await clock.pause() == HOUR, "to wait is no failure"
        assert rollout.status.last_poll == (
            "v1 is the newest; the model for the CPU: v1 is offered and is fetched from 14:30 on"
        )
        minute = 14 * 60 + 30.0
        assert await clock.tick() == HOUR
        assert rollout.status.twin

    device.live(story)


def test_a_twin_does_not_miss_the_window_between_two_polls(device: Device) -> None:
    device.url = device.url.__class__("gs", "bucket", "m_edgetpu.tflite")
    device.upload("v1")
    device.live(first_pause)
    device.server.upload("bucket", "m.tflite", b"model twin", {"version": "v1"})
    device.limits = DownloadLimits(window=parse_window("14:30-15:00"), now=lambda: NOON)

    async def story(_: Rollout, clock: Clock) -> None:
        assert await clock.pause() == 2.5 * HOUR + WINDOW_SPREAD / 2

    device.live(story, interval=24 * HOUR)


def test_without_memory_it_waits_and_the_old_one_goes_on(running: Device, log: list[Any]) -> None:
    memory = Memory(1000, "/proc/meminfo")
    running.limits = DownloadLimits(memory=lambda: memory)

    async def story(rollout: Rollout, clock: Clock) -> None:
        nonlocal memory
        assert await clock.pause() == 5
        assert await clock.tick() == 10
        assert rollout.status.version == "v1"
        assert rollout.status.last_poll.startswith("v2 waits: to try it beside the model in use takes about 9 MiB")
        memory = Memory(1 << 30, "/proc/meminfo")
        await clock.tick()
        assert rollout.status.version == "v2"

    running.live(story)
    assert len(_ranges(running)) == 2
    assert [line["event"] for line in log].count("no new model can be had") == 1


def test_the_first_model_is_tried_with_whatever_memory_there_is(device: Device) -> None:
    device.limits = DownloadLimits(memory=lambda: Memory(0, "/proc/meminfo"))
    device.upload("v1")
    device.live(first_pause)
    assert device.changed() == [("committed", "v1", None)]


def test_a_download_goes_on_over_polls_and_starts_of_the_agent(running: Device) -> None:
    async def broken(_: Rollout, clock: Clock) -> None:
        assert await clock.pause() == 5

    async def stopped(rollout: Rollout, _: Clock) -> None:
        assert await asyncio.to_thread(running.server.stalled.wait, 30)
        await rollout.stop()

    running.server.fault("break", "media", at=30_000)
    running.server.fault("status", "media", status=503)
    running.live(broken)
    running.server.fault("stall", "media", at=20_000)
    running.live(stopped)
    running.server.resume()
    running.live(first_pause)
    assert running.changed() == [("committed", "v2", "v1")]
    first, *rest = _ranges(running)[1:]
    assert first is None
    assert rest[0] == rest[1] == "bytes=30000-"
    assert len(rest) == 3
    assert all(rest)


def test_a_server_that_asks_for_rest_is_not_asked_before(running: Device) -> None:
    running.server.fault("status", "metadata", status=429, times=-1, headers={"Retry-After": "3600"})

    async def story(rollout: Rollout, clock: Clock) -> None:
        assert await clock.pause() == 5
        before = len(running.server.requests)
        assert await clock.tick() == 10
        assert rollout.status.last_poll.endswith("the server answers 429: Too Many Requests")
        assert len(running.server.requests) == before

    running.live(story)
