"""A reload that brings keys, or other terms, while something is on its way to the worker on the old ones."""

import asyncio
import hashlib
from pathlib import Path

import msgspec
import pytest

from edge_agent.models.release.releases import Claims
from edge_agent.models.release.signatures import sign_model
from edge_agent.models.rollout.rollout import Rollout
from edge_agent.settings.location import Location
from tests.models.rollout.release_kit import KEY, public_file
from tests.models.rollout.rollout_kit import GOOD, HOUR, NO_WORKER, Clock, Device, committed, first_pause

EVIL = b"model that nobody has signed" * 1000


@pytest.fixture
def offered(device: Device) -> Device:
    """A device without keys that runs v1, and is offered v2, which nobody has signed."""
    committed(device, "v1")
    device.upload("v2", EVIL)
    return device


def _give_keys(device: Device, rollout: Rollout, folder: Path) -> None:
    device.keys = [public_file(KEY, folder)]
    device.ask(rollout)


def _signed(version: str, data: bytes) -> dict[str, str]:
    """The metadata of a model that the publisher has signed."""
    said = Claims(sha256=hashlib.sha256(data).hexdigest(), labels="a,b", name="vibration")
    return {key: text for key, text in msgspec.structs.asdict(sign_model(version, said, KEY)).items() if text}


async def _is_not_taken(device: Device, rollout: Rollout, clock: Clock) -> None:
    await clock.pause()
    await clock.tick()
    assert "is not signed, and [model].keys is set" in rollout.status.last_poll
    assert rollout.status.version == "v1"


def test_what_waits_for_the_worker_is_not_tried_once_there_are_keys(offered: Device, tmp_path: Path) -> None:
    offered.worker.answers["v2"] = [NO_WORKER, GOOD]

    async def story(rollout: Rollout, clock: Clock) -> None:
        assert await clock.pause() == 5
        assert offered.worker.loaded == ["v1", "v2"]
        _give_keys(offered, rollout, tmp_path)
        await _is_not_taken(offered, rollout, clock)

    offered.live(story)
    assert offered.worker.loaded == ["v1", "v2"]


@pytest.mark.parametrize("where", ["metadata", "media"])
def test_what_is_on_its_way_is_not_tried_once_there_are_keys(offered: Device, tmp_path: Path, where: str) -> None:
    offered.server.fault("stall", where, at=10)  # type: ignore[arg-type]

    async def story(rollout: Rollout, clock: Clock) -> None:
        assert await asyncio.to_thread(offered.server.stalled.wait, 30)
        _give_keys(offered, rollout, tmp_path)
        offered.server.resume()
        await _is_not_taken(offered, rollout, clock)

    offered.live(story)
    assert offered.worker.loaded == ["v1"]


def test_a_shadow_ends_once_its_release_is_not_believed(offered: Device, tmp_path: Path) -> None:
    offered.server.upload("bucket", "m", EVIL, {"version": "v2", "rollout": "0% shadow 10%"})

    async def story(rollout: Rollout, clock: Clock) -> None:
        assert await clock.pause() == HOUR
        assert offered.worker.shadows == [("v2", 0.1)]
        _give_keys(offered, rollout, tmp_path)
        await clock.pause()
        assert rollout.status.shadow == ""

    offered.live(story)
    assert offered.worker.shadows == [("v2", 0.1), ("", 0.0)]


def test_bytes_from_before_the_keys_do_not_pass_for_those_that_were_signed(offered: Device, tmp_path: Path) -> None:
    """Whoever may write to the bucket puts a signature of other bytes over those that the device has fetched."""
    offered.worker.answers["v2"] = [NO_WORKER, GOOD]

    async def story(rollout: Rollout, clock: Clock) -> None:
        assert await clock.pause() == 5
        offered.server.patch("bucket", "m", {}, {"metadata": _signed("v2", b"another")})
        _give_keys(offered, rollout, tmp_path)
        await clock.pause()
        await clock.tick()
        assert "its SHA-256 is another" in rollout.status.last_poll

    offered.live(story)
    assert offered.worker.loaded == ["v1", "v2"]


def test_a_twin_that_is_not_what_is_promised_of_it_now_is_told(device: Device) -> None:
    device.url = Location("gs", "bucket", "m_edgetpu.tflite")
    device.upload("v1")
    device.server.upload("bucket", "m.tflite", b"model twin", {"version": "v1"})

    async def story(rollout: Rollout, clock: Clock) -> None:
        await clock.pause()
        assert rollout.status.twin
        promised = {"sha256": hashlib.sha256(b"another").hexdigest()}
        device.server.patch("bucket", "m.tflite", {}, {"metadata": promised})
        await clock.tick()
        assert "the model for the CPU: gs://bucket/m.tflite is not what its metadata says" in rollout.status.last_poll
        assert rollout.status.twin, "what is in use goes on"

    device.live(story)


def test_a_twin_that_waits_is_not_tried_once_it_would_have_to_be_signed(device: Device, tmp_path: Path) -> None:
    device.url = Location("gs", "bucket", "m_edgetpu.tflite")
    device.upload("v1")
    device.live(first_pause)
    device.server.upload("bucket", "m.tflite", b"model that nobody has signed", {"version": "v1"})
    device.worker.answers_with_twin["v1"] = [NO_WORKER, GOOD]

    async def story(rollout: Rollout, clock: Clock) -> None:
        assert await clock.pause() == 5
        device.server.patch("bucket", "m_edgetpu.tflite", {}, {"metadata": _signed("v1", b"model v1" * 500)})
        _give_keys(device, rollout, tmp_path)
        await clock.pause()
        await clock.tick()
        assert "v1 is the newest; the model for the CPU: gs://bucket/m.tflite is not signed" in rollout.status.last_poll

    device.live(story)
    assert device.worker.twins == [None, None, b"model that nobody has signed"], "before there were keys"
