"""Roll-outs from a real server onto a real disk; only the worker and the clock stand in."""

import asyncio
import os
from typing import Any

import pytest

from edge_agent.models.rollout.rollout import Rollout
from tests.models.rollout.rollout_kit import GOOD, HOUR, NO_MODEL, NO_WORKER, Clock, Device, committed, first_pause


def test_the_first_model_is_fetched_tried_andcommitted(device: Device) -> None:
    device.upload("v1")
    device.live(first_pause)
    assert device.changed() == [("committed", "v1", None)]
    assert device.changes[0].report == GOOD
    (model,) = device.worker.files
    assert (model.name, model.version, model.labels) == ("vibration", "v1", ["a", "b"])


def test_a_start_loads_what_was_committed_without_the_network(device: Device) -> None:
    committed(device, "v1")
    device.server.fault("status", times=-1)

    async def story(rollout: Rollout, clock: Clock) -> None:
        assert rollout.running is not None
        assert await clock.pause() == 5

    device.live(story)
    assert device.worker.loaded == ["v1"]
    assert device.changes == []


def test_a_new_version_takes_over_and_the_same_is_left_alone(device: Device) -> None:
    async def story(rollout: Rollout, clock: Clock) -> None:
        await clock.pause()
        assert await clock.tick() == HOUR
        device.upload("v2")
        await clock.tick()
        assert rollout.status.version == "v2"
        assert rollout.status.last_poll == "v2 is offered"
        assert rollout.status.next_poll == HOUR
        await clock.tick()
        assert rollout.status.last_poll == "v2 is the newest"

    device.upload("v1")
    device.live(story)
    assert device.changed() == [("committed", "v1", None), ("committed", "v2", "v1")]
    assert (device.downloads(), device.worker.loaded) == (2, ["v1", "v2"])


def test_going_back_to_an_older_version_is_a_rollout(device: Device) -> None:
    committed(device, "v1", "v2", "v1")


def test_without_versions_each_upload_is_one(device: Device) -> None:
    async def story(_: Rollout, clock: Clock) -> None:
        await clock.pause()
        await clock.tick()
        device.upload(None, b"model B")
        await clock.tick()

    device.upload(None, b"model A")
    device.live(story)
    assert [one.release.version.partition("-")[0] for one in device.changes] == ["generation", "generation"]


def test_same_version_other_bytes_is_warned_of_once(device: Device, log: list[Any]) -> None:
    async def story(rollout: Rollout, clock: Clock) -> None:
        await clock.pause()
        await clock.tick()
        device.upload("v1", b"model other")
        for _ in range(3):
            await clock.tick()
        assert "its version is still v1, so it is not fetched" in rollout.status.last_poll

    device.upload("v1")
    device.live(story)
    assert device.downloads() == 1
    assert [line["log_level"] for line in log].count("warning") == 1


def test_same_version_same_bytes_is_nothing(device: Device, log: list[Any]) -> None:
    async def story(_: Rollout, clock: Clock) -> None:
        await clock.pause()
        device.upload("v1")
        await clock.tick()

    device.upload("v1")
    device.live(story)
    assert device.downloads() == 1
    assert "warning" not in [line["log_level"] for line in log]


def test_a_refused_model_is_remembered_and_the_old_one_goes_on(device: Device) -> None:
    committed(device, "v1")
    device.upload("v2")
    device.worker.answers["v2"] = [NO_MODEL]

    async def story(rollout: Rollout, clock: Clock) -> None:
        assert await clock.pause() == HOUR
        assert await clock.tick() == HOUR
        assert rollout.status.version == "v1"
        assert rollout.status.rejected == "v2: it is no model"
        assert "v2 was rejected: it is no model; upload it again" in rollout.status.last_poll

    for _ in range(2):
        device.live(story)
    assert device.changed() == [("rejected", "v2", "v1")]
    assert device.downloads() == 2
    device.upload("v2")
    device.worker.answers.clear()
    device.live(first_pause)
    assert device.changed()[1:] == [("committed", "v2", "v1")]


def test_bad_luck_is_tried_again_without_another_download(device: Device, log: list[Any]) -> None:
    committed(device, "v1")
    device.upload("v2")
    device.worker.answers["v2"] = [NO_WORKER] * 8 + [GOOD]

    async def story(rollout: Rollout, clock: Clock) -> None:
        pauses = [await clock.pause()] + [await clock.tick() for _ in range(7)]
        assert pauses == [5, 10, 20, 40, 80, 160, 300, 300]
        assert (rollout.status.version, rollout.status.waiting) == ("v1", "v2")
        assert await clock.tick() == HOUR
        assert (rollout.status.version, rollout.status.waiting) == ("v2", None)

    device.live(story)
    assert device.downloads() == 2
    assert [line["event"] for line in log].count("model waits for the worker") == 1


def test_a_waiting_model_survives_a_restart_but_the_committed_one_comes_first(device: Device) -> None:
    committed(device, "v1")
    device.upload("v2")
    device.worker.answers["v2"] = [NO_WORKER]

    async def story(_: Rollout, clock: Clock) -> None:
        assert await clock.pause() == 5

    device.live(story)
    device.worker.answers.clear()
    device.worker.loaded.clear()
    device.live(first_pause)
    assert device.worker.loaded == ["v1", "v2"]
    assert device.downloads() == 2


def test_a_waiting_model_is_not_tried_before_the_store_confirms_it(device: Device) -> None:
    committed(device, "v1")
    device.upload("v2")
    device.worker.answers["v2"] = [NO_WORKER]

    async def story(_: Rollout, clock: Clock) -> None:
        assert await clock.pause() == 5

    device.live(story)
    device.worker.loaded.clear()
    device.server.fault("status", times=-1)
    device.live(story)
    assert device.worker.loaded == ["v1"]


def test_a_waiting_model_is_dropped_when_the_store_goes_back(device: Device) -> None:
    committed(device, "v1")
    device.upload("v2")
    device.worker.answers["v2"] = [NO_WORKER]

    async def story(rollout: Rollout, clock: Clock) -> None:
        await clock.pause()
        device.upload("v1")
        assert await clock.tick() == HOUR
        assert rollout.status.waiting is None

    device.live(story)
    assert device.changes == []


def test_no_worker_at_start_is_tried_again(device: Device) -> None:
    committed(device, "v1", "v2")
    device.worker.answers["v2"] = [NO_WORKER, NO_WORKER, GOOD]

    async def story(rollout: Rollout, clock: Clock) -> None:
        assert await clock.pause() == 5
        states = [rollout.status.state]
        assert await clock.tick() == HOUR
        states.append(rollout.status.state)
        assert states == ["waiting for the worker", "running"]

    device.live(story)
    assert device.worker.loaded == ["v2", "v2", "v2"]
    assert device.changes == []


def test_a_committed_model_that_cannot_run_gives_way_to_the_previous(device: Device) -> None:
    committed(device, "v1", "v2")
    device.worker.answers["v2"] = [NO_MODEL]

    async def story(rollout: Rollout, clock: Clock) -> None:
        assert await clock.pause() == HOUR
        assert rollout.status.version == "v1"
        assert rollout.status.last_poll == "v2 is all there is, and the worker refuses it"
        device.upload("v2", b"model repaired")
        device.worker.answers.clear()
        await clock.tick()
        assert rollout.status.version == "v2"

    device.live(story)
    assert device.changed() == [("rejected", "v2", None), ("committed", "v2", "v1")]
    assert device.slots.previous is not None
    assert device.slots.previous.version == "v1"


def test_what_cannot_run_at_one_start_is_tried_at_the_next(device: Device) -> None:
    committed(device, "v1", "v2")
    device.worker.answers["v2"] = [NO_MODEL]
    device.live(first_pause)
    device.worker.answers.clear()
    device.worker.loaded.clear()
    device.live(first_pause)
    assert device.worker.loaded == ["v2"]


def test_nothing_can_run_until_the_store_offers_something(device: Device) -> None:
    committed(device, "v1")
    device.worker.answers["v1"] = [NO_MODEL]

    async def story(rollout: Rollout, clock: Clock) -> None:
        assert await clock.pause() == HOUR
        assert rollout.status.state == "no model"
        device.upload("v2")
        await clock.tick()
        assert rollout.status.version == "v2"

    device.live(story)


def test_a_damaged_model_is_replaced_by_the_previous_and_fetched_again(device: Device) -> None:
    committed(device, "v1", "v2")
    assert device.slots.committed is not None
    device.slots.path(device.slots.committed).write_bytes(b"damaged")
    device.live(first_pause)
    assert device.worker.loaded == ["v1", "v2"]
    assert device.changed() == [("committed", "v2", "v1")]


def test_store_trouble_backs_off_and_is_said_once(device: Device, log: list[Any]) -> None:
    async def story(rollout: Rollout, clock: Clock) -> None:
        device.server.fault("status", times=12, status=503)
        pauses = [await clock.pause()] + [await clock.tick() for _ in range(10)]
        assert pauses == [5, 10, 20, 40, 80, 160, 320, 640, 1280, 2560, HOUR]
        assert rollout.status.failures == 11
        assert rollout.status.state == "no model"
        assert await clock.tick() == HOUR
        assert await clock.tick() == HOUR
        assert (rollout.status.failures, rollout.status.version) == (0, "v1")

    device.upload("v1")
    device.live(story)
    assert [line["event"] for line in log].count("no new model can be had") == 1


def test_what_needs_a_person_is_an_error_in_the_log(device: Device, log: list[Any]) -> None:
    async def story(_: Rollout, clock: Clock) -> None:
        await clock.pause()
        await clock.tick()
        device.upload("v1")
        await clock.tick()

    device.live(story)
    errors = [line for line in log if line["log_level"] == "error"]
    assert len(errors) == 1
    assert "upload the model there" in errors[0]["reason"]
    assert device.changed() == [("committed", "v1", None)]


def test_a_damaged_download_is_thrown_away_and_tried_again(device: Device) -> None:
    async def story(rollout: Rollout, clock: Clock) -> None:
        assert await clock.pause() == 5
        assert "instead of crc32c" in rollout.status.last_poll
        await clock.tick()

    device.server.fault("corrupt", "media", at=7)
    device.upload("v1")
    device.live(story)
    assert device.worker.loaded == ["v1"]


def test_a_full_disk_at_commit_is_made_good_later(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    committed(device, "v1")
    device.upload("v2")
    sync = os.fsync

    def full(handle: int) -> None:
        if "v2" in device.worker.loaded:
            raise OSError(28, os.strerror(28))
        sync(handle)

    async def story(rollout: Rollout, clock: Clock) -> None:
        assert await clock.pause() == 5
        assert "No space left" in rollout.status.last_poll
        assert rollout.status.version == "v2"
        assert device.changes == []
        monkeypatch.setattr(os, "fsync", sync)
        await clock.tick()

    monkeypatch.setattr(os, "fsync", full)
    device.live(story)
    assert device.worker.loaded == ["v1", "v2"]
    assert device.changed() == [("committed", "v2", "v1")]


def test_poll_now_and_another_interval(device: Device) -> None:
    async def story(rollout: Rollout, clock: Clock) -> None:
        assert await clock.pause() == HOUR
        device.upload("v2")
        rollout.poll_now()
        assert await clock.pause() == HOUR
        assert rollout.status.version == "v2"
        rollout.configure(poll_interval=HOUR)
        rollout.configure(poll_interval=60)
        assert await clock.pause() == 60

    device.upload("v1")
    device.live(story)
    assert device.server.count("GET", "/storage/v1/b/bucket/o/m") >= 3


def test_stop_does_not_wait_for_a_download(device: Device) -> None:
    device.upload("v1")
    device.server.fault("stall", "media", at=100)

    async def story(rollout: Rollout, _: Clock) -> None:
        assert await asyncio.to_thread(device.server.stalled.wait, 30)
        await asyncio.wait_for(rollout.stop(), 30)
        assert rollout.status.state == "stopped"

    device.live(story)
    assert device.worker.loaded == []


def test_stop_does_not_wait_for_the_worker(device: Device) -> None:
    device.upload("v1")
    device.worker.hangs = True

    async def story(rollout: Rollout, _: Clock) -> None:
        await asyncio.wait_for(device.worker.asked.wait(), 30)
        await asyncio.wait_for(rollout.stop(), 30)

    device.live(story)
    assert device.slots.committed is None


@pytest.mark.parametrize(("chance", "factor"), [(0.0, 0.9), (0.25, 0.95), (1.0, 1.1)])
def test_jitter(device: Device, chance: float, factor: float) -> None:
    async def story(_: Rollout, clock: Clock) -> None:
        assert await clock.pause() == pytest.approx(HOUR * factor)

    device.chance = chance
    device.upload("v1")
    device.live(story)


def test_metadata_not_understood_is_logged(device: Device, log: list[Any]) -> None:
    device.server.upload("bucket", "m", b"model", {"version": "v1", "accuracy": "good"})
    device.live(first_pause)
    assert [line["remark"] for line in log if "remark" in line] == ["accuracy 'good' is not a number and was left out"]
