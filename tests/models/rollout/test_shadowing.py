"""Releases with golden samples, and releases that run beside the one in use: from real manifests onto a real disk."""

import hashlib
from pathlib import Path

import pytest

from edge_agent.models.release.manifest import Acceptance, Audience, ObjectFile
from edge_agent.models.rollout.rollout import Rollout
from edge_agent.records import LoadReport, Terms
from edge_agent.settings.location import Location
from tests.models.rollout.release_kit import FOLDER, MANIFEST, Publisher, manifest
from tests.models.rollout.rollout_kit import HOUR, NO_MODEL, NO_WORKER, Clock, Device, Shadowed, first_pause

GOLDEN = b"golden samples"
OUT = Audience(percent=0, shadow=0.1)


@pytest.fixture
def publisher(device: Device) -> Publisher:
    device.url = Location("gs", "bucket", MANIFEST)
    return Publisher(device.server)


def _with_golden(publisher: Publisher, data: bytes = GOLDEN) -> Acceptance:
    digest = hashlib.sha256(GOLDEN).hexdigest()
    file = ObjectFile(name=f"{digest[:16]}-golden.npz", size=len(GOLDEN), sha256=digest)
    publisher.server.upload("bucket", f"{FOLDER}objects/{file.name}", data)
    return Acceptance(golden=file, tolerance=0.05, min_agreement=0.9, min_accuracy=0.8, max_latency_ms=20)


def test_golden_samples_go_to_the_worker_with_the_terms(device: Device, publisher: Publisher) -> None:
    publisher.publish("v1", acceptance=_with_golden(publisher))
    device.live(first_pause)
    [terms] = device.worker.terms
    assert terms == Terms(terms.golden, tolerance=0.05, min_agreement=0.9, min_accuracy=0.8, max_latency_ms=20)
    assert Path(terms.golden).read_bytes() == GOLDEN
    assert device.slots.committed is not None
    assert device.slots.golden_path(device.slots.committed) == Path(terms.golden)
    device.live(first_pause)
    assert device.worker.terms[1:] == [Terms()]
    assert device.downloads("golden.npz") == 1


def test_other_golden_samples_than_were_announced_are_not_taken(device: Device, publisher: Publisher) -> None:
    acceptance = _with_golden(publisher, b"golden_samples")
    publisher.publish("v1", acceptance=acceptance)

    async def story(rollout: Rollout, clock: Clock) -> None:
        assert await clock.pause() == 5
        assert "its SHA-256 is another" in rollout.status.last_poll
        _with_golden(publisher)
        await clock.tick()
        assert rollout.status.version == "v1"

    device.live(story)


@pytest.mark.parametrize("damage", [b"golden_samples", b"", None])
def test_golden_samples_that_were_damaged_meanwhile_are_fetched_again(
    device: Device, publisher: Publisher, damage: bytes | None
) -> None:
    publisher.publish("v1", acceptance=_with_golden(publisher))
    device.worker.answers["v1"] = [NO_WORKER]

    async def story(_: Rollout, clock: Clock) -> None:
        assert await clock.pause() == 5

    device.live(story)
    assert device.slots.candidate is not None
    path = device.slots.golden_path(device.slots.candidate)
    assert path is not None
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage)
    device.worker.answers.clear()
    device.live(first_pause)
    assert Path(device.worker.terms[0].golden).read_bytes() == GOLDEN


def test_damaged_golden_samples_take_nothing_away_from_a_model_that_is_in_use(
    device: Device, publisher: Publisher
) -> None:
    publisher.publish("v1", acceptance=_with_golden(publisher))
    device.live(first_pause)
    Path(device.worker.terms[0].golden).unlink()
    device.live(first_pause)
    assert device.worker.loaded == ["v1", "v1"]
    assert device.downloads("model.tflite") == 1


@pytest.fixture
def shadowed(device: Device, publisher: Publisher) -> Publisher:
    """v1 is in use, and v2 is out for none of the devices yet, but runs beside it on a tenth of the samples."""
    publisher.publish("v1")
    device.live(first_pause)
    device.changes.clear()
    publisher.publish("v2", audience=OUT, before=manifest("v1", b"model v1" * 500), acceptance=_with_golden(publisher))
    return publisher


def test_a_shadow_runs_beside_and_tells_how_it_does(device: Device, shadowed: Publisher) -> None:
    async def story(rollout: Rollout, clock: Clock) -> None:
        await clock.pause()
        assert (rollout.status.version, rollout.status.shadow) == ("v1", "v2 on 0.1 of the samples")
        assert (device.worker.shadows, device.changes) == ([("v2", 0.1)], [])
        device.worker.shadowed = Shadowed(samples=1000, agreed=970, failed=2)
        rollout.poll_now()
        await clock.pause()
        assert device.changes == [], "not more than once in an hour"
        await clock.tick()
        assert rollout.status.shadow == "v2 on 0.1 of the samples, 97.0% of 1,000 agree"

    device.live(story)
    [told] = device.changes
    assert (told.state, told.release.version, told.reason) == ("shadow", "v2", "")
    assert told.shadow is not None
    assert (told.shadow.samples, told.shadow.agreed, told.shadow.failed) == (1000, 970, 2)
    assert device.slots.shadow is not None
    assert (device.slots.shadow.version, device.slots.candidate) == ("v2", None)
    assert device.slots.path(device.slots.shadow).read_bytes() == b"model v2" * 500


def test_a_shadow_that_becomes_the_release_is_not_fetched_again(device: Device, shadowed: Publisher) -> None:
    async def story(rollout: Rollout, clock: Clock) -> None:
        await clock.pause()
        device.worker.shadowed = Shadowed(samples=10, agreed=10)
        shadowed.publish("v2", before=manifest("v1", b"model v1" * 500), acceptance=_with_golden(shadowed))
        await clock.tick()
        assert (rollout.status.version, rollout.status.shadow) == ("v2", "")

    device.live(story)
    assert device.worker.shadows == [("v2", 0.1), ("", 0.0)]
    assert [one.state for one in device.changes] == ["shadow", "committed"]
    assert device.downloads("model.tflite") == 2
    assert device.slots.shadow is None
    device.live(first_pause)
    assert device.worker.loaded == ["v1", "v1", "v2", "v2"]


def test_a_shadow_is_on_the_disk_at_the_next_start(device: Device, shadowed: Publisher) -> None:
    for _ in range(2):
        device.live(first_pause)
    assert device.worker.shadows == [("v2", 0.1), ("v2", 0.1)]
    assert device.downloads("model.tflite") == 2


def test_what_is_on_the_disk_as_the_one_before_runs_as_a_shadow_from_there(
    device: Device, publisher: Publisher
) -> None:
    publisher.publish("v1")
    device.live(first_pause)
    publisher.publish("v2")
    device.live(first_pause)
    publisher.publish("v2", audience=OUT, before=manifest("v1", b"model v1" * 500))
    device.live(first_pause)
    assert device.slots.committed is not None
    assert device.slots.previous == device.slots.shadow
    assert (device.slots.committed.version, device.worker.shadows) == ("v1", [("v2", 0.1)])
    assert device.downloads("model.tflite") == 2


def test_a_shadow_that_nobody_wants_any_more_goes(device: Device, shadowed: Publisher) -> None:
    async def story(rollout: Rollout, clock: Clock) -> None:
        await clock.pause()
        device.worker.shadowed = Shadowed(samples=10, agreed=9)
        shadowed.publish("v1")
        await clock.tick()
        assert rollout.status.shadow == ""
        assert device.slots.shadow is None

    device.live(story)
    assert device.worker.shadows == [("v2", 0.1), ("", 0.0)]
    assert [one.state for one in device.changes] == ["shadow"]
    assert device.worker.loaded == ["v1", "v1"]


def test_the_end_of_the_agent_tells_the_rest(device: Device, shadowed: Publisher) -> None:
    async def story(_: Rollout, clock: Clock) -> None:
        await clock.pause()
        device.worker.shadowed = Shadowed(samples=10, agreed=9)

    device.live(story)
    assert [one.shadow and one.shadow.agreed for one in device.changes] == [9]


def test_another_share_begins_it_anew(device: Device, shadowed: Publisher) -> None:
    async def story(_: Rollout, clock: Clock) -> None:
        await clock.pause()
        audience = Audience(percent=0, shadow=0.5)
        before = manifest("v1", b"model v1" * 500)
        shadowed.publish("v2", audience=audience, before=before, acceptance=_with_golden(shadowed))
        await clock.tick()

    device.live(story)
    assert device.worker.shadows == [("v2", 0.1), ("", 0.0), ("v2", 0.5)]
    assert device.downloads("model.tflite") == 2


def test_a_shadow_that_fails_is_told_and_not_begun_again(device: Device, shadowed: Publisher) -> None:
    async def story(rollout: Rollout, clock: Clock) -> None:
        await clock.pause()
        device.worker.on_shadow_end("it cannot divide by 0")
        assert rollout.status.shadow == ""
        await clock.tick()
        await clock.tick()

    device.live(story)
    assert [(one.state, one.reason) for one in device.changes] == [("shadow", "it cannot divide by 0")]
    assert device.worker.shadows == [("v2", 0.1)]
    assert device.slots.last_rejected is None


@pytest.mark.parametrize(("answer", "tries", "told"), [(NO_MODEL, 1, ["it is no model"]), (NO_WORKER, 3, [])])
def test_a_shadow_that_cannot_run(
    device: Device, shadowed: Publisher, answer: LoadReport, tries: int, told: list[str]
) -> None:
    device.worker.shadow_answer = answer

    async def story(rollout: Rollout, clock: Clock) -> None:
        for _ in range(3):
            await (clock.tick() if rollout.status.next_poll and device.worker.shadows else clock.pause())
        assert rollout.status.shadow == ""

    device.live(story)
    assert len(device.worker.shadows) == tries
    assert [one.reason for one in device.changes] == told


def test_neither_a_held_nor_a_pinned_device_runs_a_shadow(device: Device, shadowed: Publisher) -> None:
    device.hold = True
    device.live(first_pause)
    assert device.worker.shadows == []


def test_a_shadow_that_cannot_be_fetched_is_trouble_and_nothing_more(device: Device, shadowed: Publisher) -> None:
    device.server.fault(
        "corrupt", "media", at=100, name=f"{FOLDER}objects/{manifest('v2', b'model v2' * 500).model.name}"
    )

    async def story(rollout: Rollout, clock: Clock) -> None:
        assert await clock.pause() == 5
        assert (rollout.status.version, rollout.status.state, device.worker.shadows) == ("v1", "running", [])
        assert await clock.tick() == HOUR

    device.live(story)
    assert device.worker.shadows == [("v2", 0.1)]
