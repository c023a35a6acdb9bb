"""What the settings, the generation and the store itself say about which release this device is to run."""

from typing import Any

import msgspec
import pytest

from edge_agent.models.release.releases import RemoteObject
from edge_agent.models.rollout.rollout import Rollout
from edge_agent.models.rollout.twins import Twins
from edge_agent.models.stores.base import StoreUnavailable
from edge_agent.settings.trial import TrialSettings
from tests.models.rollout.rollout_kit import HOUR, NO_MODEL, Clock, Device, committed, first_pause


def test_a_pinned_version_that_ran_before_needs_no_network(device: Device) -> None:
    committed(device, "v1", "v2")
    device.pin = "v1"
    device.trial = TrialSettings(time=600)
    device.server.fault("status", times=-1)

    async def story(rollout: Rollout, clock: Clock) -> None:
        assert await clock.pause() == HOUR
        assert (rollout.status.version, rollout.status.pin) == ("v1", "v1")
        assert rollout.status.last_poll == "v1 is pinned, and is on the disk"

    device.live(story)
    assert device.changed() == [("committed", "v1", "v2")], "whoever pins has decided: there is no trial"
    device.server.clear_faults()
    device.live(first_pause)
    assert device.worker.loaded == ["v2", "v1", "v1"]
    assert device.downloads() == 2


def test_a_pin_that_a_reload_brings_goes_for_a_running_device_too(device: Device) -> None:
    committed(device, "v1", "v2")

    async def story(rollout: Rollout, clock: Clock) -> None:
        assert await clock.pause() == HOUR
        device.pin = "v1"
        rollout.ask(device.open_store(), twins=Twins(rollout.slots, None), golden=None, pin="v1")
        assert await clock.pause() == HOUR
        assert rollout.status.version == "v1"

    device.live(story)
    assert device.worker.loaded == ["v2", "v1"]


def test_beside_a_pin_nothing_else_is_taken_until_it_is_gone(device: Device) -> None:
    committed(device, "v1")
    device.pin = "v1"
    device.upload("v2")

    async def story(rollout: Rollout, clock: Clock) -> None:
        assert await clock.pause() == HOUR
        assert rollout.status.last_poll == "v1 is pinned; v2 is offered"

    device.live(story)
    assert device.worker.loaded == ["v1"]
    device.pin = ""
    device.live(first_pause)
    assert device.worker.loaded[-1] == "v2"


def test_a_pinned_version_that_is_nowhere_is_told(device: Device, log: list[Any]) -> None:
    committed(device, "v2")
    device.pin = "v1"

    async def story(rollout: Rollout, clock: Clock) -> None:
        assert await clock.pause() == HOUR
        assert rollout.status.version == "v2"
        assert rollout.status.last_poll == "v1 is pinned, and neither on the disk nor offered: v2 is"

    device.live(story)
    assert [line["log_level"] for line in log if line["event"] == "asked for a new model"][-1] == "warning"


def test_a_pinned_version_that_is_offered_is_fetched(device: Device) -> None:
    committed(device, "v2")
    device.pin = "v1"
    device.upload("v1")
    device.live(first_pause)
    assert device.changed() == [("committed", "v1", "v2")]


def test_a_rejected_version_is_not_run_for_a_pin_either(device: Device) -> None:
    committed(device, "v1", "v2")
    device.worker.answers["v1"] = [NO_MODEL]
    device.pin = "v1"

    async def story(rollout: Rollout, clock: Clock) -> None:
        assert await clock.pause() == HOUR
        assert await clock.tick() == HOUR
        assert (rollout.status.version, rollout.status.rejected) == ("v2", "v1: it is no model")

    device.live(story)
    assert device.worker.loaded == ["v2", "v1"]


def test_a_pinned_version_that_was_damaged_meanwhile_is_fetched_again(device: Device) -> None:
    committed(device, "v1", "v2")
    device.pin = "v1"
    device.upload("v1")

    async def story(rollout: Rollout, clock: Clock) -> None:
        await clock.pause()
        if rollout.status.version != "v1":
            await clock.tick()
        assert rollout.status.version == "v1"

    assert device.slots.previous is not None
    device.slots.path(device.slots.previous).write_bytes(b"model damaged")
    device.live(story)


def test_a_held_device_names_what_it_does_not_fetch(device: Device) -> None:
    committed(device, "v1")
    device.hold = True
    device.upload("v2")

    async def story(rollout: Rollout, clock: Clock) -> None:
        assert await clock.pause() == HOUR
        assert rollout.status.hold
        assert rollout.status.last_poll == "v2 is offered, and v1 is held"
        assert device.downloads() == 1
        rollout.configure(poll_interval=HOUR, hold=False)
        assert await clock.pause() == HOUR
        assert rollout.status.version == "v2"

    device.live(story)


def test_a_device_without_a_model_holds_nothing(device: Device) -> None:
    device.hold = True
    device.upload("v1")
    device.live(first_pause)
    assert device.worker.loaded == ["v1"]


def test_a_held_model_that_does_not_work_any_more_gives_way(device: Device) -> None:
    committed(device, "v1")
    device.hold = True
    device.worker.answers["v1"] = [NO_MODEL]
    device.upload("v2")
    device.live(first_pause)
    assert device.worker.loaded == ["v1", "v2"]


def test_an_older_upload_is_never_taken_for_a_newer_one(device: Device, log: list[Any]) -> None:
    committed(device, "v1", "v2")
    device.server.buckets["bucket"].objects["m"].pop()

    async def story(rollout: Rollout, clock: Clock) -> None:
        assert await clock.pause() == HOUR
        assert rollout.status.version == "v2"
        assert "v1 is offered by an older upload than before: upload it again" in rollout.status.last_poll
        device.pin = "v1"

    device.live(story)
    assert [line["log_level"] for line in log if line["event"] == "asked for a new model"][-1] == "warning"
    assert device.worker.loaded == ["v2"]
    device.live(first_pause)
    assert device.worker.loaded == ["v2", "v2", "v1"], "unless somebody has pinned it"


class Announced:
    """A store that announces what a test makes of the object of another store."""

    def __init__(self, device: Device) -> None:
        self.url = str(device.url)
        self.changes: dict[str, Any] = {}
        self.store: Any = None

    def stat(self) -> RemoteObject:
        if self.store is None:
            raise StoreUnavailable("no network")
        remote: RemoteObject = self.store.stat()
        return msgspec.structs.replace(remote, **self.changes)

    def fetch(self, *arguments: Any) -> None:
        self.store.fetch(*arguments)


@pytest.fixture
def announced(device: Device, monkeypatch: pytest.MonkeyPatch) -> Announced:
    """What the device's store announces, with the changes that a test makes."""
    announced = Announced(device)
    opened = device.open_store

    def open_store() -> Announced:
        announced.store = opened()
        return announced

    monkeypatch.setattr(device, "open_store", open_store)
    return announced


def test_what_is_not_for_this_device_is_told_and_not_taken(device: Device, announced: Announced) -> None:
    committed(device, "v1")
    device.upload("v2")
    announced.changes = {"withheld": "v2 is out for 10 % of the devices, and this one is not among them"}

    async def story(rollout: Rollout, clock: Clock) -> None:
        assert await clock.pause() == HOUR
        assert rollout.status.last_poll == "v2 is out for 10 % of the devices, and this one is not among them"
        assert (rollout.status.version, rollout.status.failures) == ("v1", 0)
        announced.changes = {}
        await clock.tick()
        assert rollout.status.version == "v2"
        announced.changes = {"withheld": "v2 was halted"}
        await clock.tick()
        assert rollout.status.version == "v2", "halt stops those who have not switched"
        assert rollout.status.last_poll == "v2 is the newest; v2 was halted"

    device.live(story)
    assert device.worker.loaded == ["v1", "v2"]


def test_a_device_without_a_model_does_not_take_it_either(device: Device, announced: Announced) -> None:
    device.upload("v1")
    announced.changes = {"withheld": "v1 was halted"}

    async def story(rollout: Rollout, clock: Clock) -> None:
        assert await clock.pause() == HOUR
        assert (rollout.status.state, rollout.status.last_poll) == ("no model", "v1 was halted")

    device.live(story)


def test_a_release_that_is_halted_during_its_trial_goes(device: Device, announced: Announced) -> None:
    committed(device, "v1")
    device.upload("v2")
    device.trial = TrialSettings(time=2 * HOUR)

    async def story(rollout: Rollout, clock: Clock) -> None:
        assert await clock.pause() == HOUR
        assert rollout.status.state == "on trial"
        announced.changes = {"withheld": "v2 was halted"}
        await clock.tick()
        assert (rollout.status.state, rollout.status.version) == ("running", "v1")

    async def story_again(rollout: Rollout, clock: Clock) -> None:
        await clock.pause()
        assert (rollout.status.state, rollout.status.version) == ("on trial", "v2")

    device.live(story)
    assert [(one.state, one.reason) for one in device.changes] == [("trial", ""), ("rolled_back", "v2 was halted")]
    assert device.slots.last_rejected is None
    announced.changes = {}
    device.live(story_again)


def test_what_else_there_is_to_know_of_it_is_told(device: Device, announced: Announced) -> None:
    device.upload("v1")
    announced.changes = {"outlook": "it expires in 3 days"}

    async def story(rollout: Rollout, clock: Clock) -> None:
        await clock.pause()
        assert rollout.status.last_poll == "v1 is offered; it expires in 3 days"
        await clock.tick()
        assert rollout.status.last_poll == "v1 is the newest; it expires in 3 days"

    device.live(story)
