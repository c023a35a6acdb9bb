"""The twin for the CPU in roll-outs from a real server, with everything that may go wrong on its way."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from edge_agent.models.open import sibling
from edge_agent.models.rollout.news import RolloutChange
from edge_agent.models.rollout.rollout import Rollout
from edge_agent.settings.location import Location, parse_location
from tests.models.rollout.rollout_kit import GOOD, HOUR, NO_MODEL, NO_WORKER, Clock, Device, first_pause

MODEL = "latest/m_edgetpu.tflite"
TWIN = "latest/m.tflite"
TWIN_URL = f"gs://bucket/{TWIN}"
OLD_STATE = Path(__file__).with_name("state_without_twins.json")


@pytest.fixture(autouse=True)
def named(device: Device) -> None:
    device.url = Location("gs", "bucket", MODEL)


def _twin(version: str | None, data: bytes = b"") -> bytes:
    return data or f"twin {version}".encode() * 400


def _upload_twin(device: Device, version: str | None, data: bytes = b"", **properties: str) -> None:
    metadata = None if version is None else {"version": version}
    device.server.upload("bucket", TWIN, _twin(version, data), metadata, **properties)


def _upload(device: Device, version: str) -> None:
    device.upload(version)
    _upload_twin(device, version)


def _parts(changes: list[RolloutChange]) -> list[tuple[str, str, str]]:
    return [(one.part, one.state, one.release.version) for one in changes]


def _lines(log: list[Any], *levels: str) -> list[str]:
    return [line["event"] for line in log if line["log_level"] in levels]


def test_both_are_fetched_and_given_to_the_worker(device: Device) -> None:
    async def story(rollout: Rollout, clock: Clock) -> None:
        assert await clock.pause() == HOUR
        assert rollout.status.twin
        assert rollout.status.last_poll == "v1 is offered"
        assert await clock.tick() == HOUR
        assert rollout.status.last_poll == "v1 is the newest"

    _upload(device, "v1")
    device.live(story)
    assert device.worker.twins == [_twin("v1")]
    assert (device.downloads(MODEL), device.downloads(TWIN)) == (1, 1)
    assert _parts(device.changes) == [("model", "committed", "v1")]


def test_a_start_without_network_has_the_twin(device: Device) -> None:
    _upload(device, "v1")
    device.live(first_pause)
    device.server.fault("status", times=-1)

    async def story(_: Rollout, clock: Clock) -> None:
        assert await clock.pause() == 5

    device.live(story)
    assert device.worker.twins == [_twin("v1")] * 2


def test_no_twin_beside_the_model_is_normal(device: Device, log: list[Any]) -> None:
    async def story(rollout: Rollout, clock: Clock) -> None:
        assert await clock.pause() == HOUR
        before = len(device.server.requests)
        for _ in range(2):
            assert await clock.tick() == HOUR
        assert len(device.server.requests) - before == 4, "one request more per poll"
        assert rollout.status.last_poll == "v1 is the newest"
        assert not rollout.status.twin

    device.upload("v1")
    device.live(story)
    assert device.worker.twins == [None]
    assert _lines(log, "warning", "error") == []
    assert _lines(log, "debug").count("there is no model for the CPU") == 1


def test_a_model_that_is_not_compiled_is_asked_for_alone(device: Device) -> None:
    device.url = Location("gs", "bucket", TWIN)
    device.upload("v1")
    device.live(first_pause)
    assert {request.path.rpartition("/")[2] for request in device.server.requests} == {"m.tflite"}


def test_a_forbidden_sibling_counts_as_missing_and_is_said_once(device: Device, log: list[Any]) -> None:
    async def story(rollout: Rollout, clock: Clock) -> None:
        for _ in range(2):
            assert await clock.pause() == HOUR
            rollout.poll_now()
        assert await clock.pause() == HOUR
        assert rollout.status.last_poll == "v1 is the newest"

    device.server.fault("status", status=403, times=-1, name=TWIN)
    _upload(device, "v1")
    device.live(story)
    (line,) = [line for line in log if line["event"] == "there is no model for the CPU"]
    assert line["log_level"] == "info"
    assert f"{TWIN_URL}: the credentials" in line["reason"]


def test_a_missing_twin_that_the_settings_name_is_told_and_looked_for_soon(device: Device, log: list[Any]) -> None:
    async def story(rollout: Rollout, clock: Clock) -> None:
        assert await clock.pause() == 5
        assert await clock.tick() == 10
        assert rollout.status.last_poll.startswith(f"v1 is the newest; the model for the CPU: {TWIN_URL}: there is no")
        assert "correct [model].cpu_url" in rollout.status.last_poll
        assert rollout.status.failures == 0, "the model itself is fine"
        _upload_twin(device, "v1")
        assert await clock.tick() == HOUR
        assert rollout.status.twin

    device.cpu_url = parse_location(TWIN_URL)
    device.upload("v1")
    device.live(story)
    assert device.worker.twins == [None, _twin("v1")]
    assert len(_lines(log, "warning")) == 2, "with v1 is offered, and with v1 is the newest"
    assert _parts(device.changes) == [("model", "committed", "v1"), ("twin", "committed", "v1")]


@pytest.mark.parametrize(
    ("kind", "where", "at", "says"),
    [
        ("status", "metadata", 0, "the server answers 503"),
        ("status", "media", 0, "the server answers 503"),
        ("reset", "metadata", 0, "connection reset by peer"),
        ("portal", "metadata", 0, "captive portal"),
        ("corrupt", "media", 1000, "came with checksum"),
    ],
)
def test_the_model_goes_first_and_the_twin_follows(
    *, device: Device, log: list[Any], kind: Any, where: Any, at: int, says: str
) -> None:
    async def story(rollout: Rollout, clock: Clock) -> None:
        assert await clock.pause() == 5
        assert rollout.status.version == "v1"
        assert f"v1 is offered; the model for the CPU: {TWIN_URL}" in rollout.status.last_poll
        assert says in rollout.status.last_poll
        assert await clock.tick() == 10
        assert await clock.tick() == HOUR
        assert rollout.status.last_poll == "v1 is the newest"

    device.server.fault(kind, where, at=at, times=2, name=TWIN)
    _upload(device, "v1")
    device.live(story)
    assert device.worker.twins == [None, _twin("v1")]
    assert device.downloads(MODEL) == 1
    assert len(_lines(log, "warning")) == 2
    assert _parts(device.changes) == [("model", "committed", "v1"), ("twin", "committed", "v1")]


def test_a_twin_replaced_while_it_is_fetched_is_fetched_anew(device: Device) -> None:
    device.server.fault("status", "media", status=404, name=TWIN)

    async def story(rollout: Rollout, clock: Clock) -> None:
        assert await clock.pause() == 5
        assert "was replaced while it was being fetched" in rollout.status.last_poll
        _upload_twin(device, "v1", b"twin v1 again")
        await clock.tick()

    _upload(device, "v1")
    device.live(story)
    assert device.worker.twins == [None, b"twin v1 again"]


def test_a_poll_in_the_middle_of_an_upload_of_both_model_first(device: Device) -> None:
    async def story(rollout: Rollout, clock: Clock) -> None:
        await clock.pause()
        device.upload("v2")
        assert await clock.tick() == 5
        told = f"v2 is offered; the model for the CPU: {TWIN_URL} is version v1, not v2, and is not used"
        assert (rollout.status.version, rollout.status.last_poll) == ("v2", told)
        _upload_twin(device, "v2")
        assert await clock.tick() == HOUR

    _upload(device, "v1")
    device.live(story)
    assert device.worker.twins == [_twin("v1"), None, _twin("v2")]
    assert device.worker.loaded == ["v1", "v2", "v2"]
    assert _parts(device.changes)[1:] == [("model", "committed", "v2"), ("twin", "committed", "v2")]
    assert device.slots.previous is not None
    assert device.slots.previous.version == "v1", "another twin is no other model to go back to"


def test_a_poll_in_the_middle_of_an_upload_of_both_twin_first(device: Device) -> None:
    async def story(rollout: Rollout, clock: Clock) -> None:
        await clock.pause()
        _upload_twin(device, "v2")
        assert await clock.tick() == 5
        assert rollout.status.twin, "that on disk goes on"
        device.upload("v2")
        assert await clock.tick() == HOUR

    _upload(device, "v1")
    device.live(story)
    assert device.worker.twins == [_twin("v1"), _twin("v2")]


def test_another_twin_of_the_same_version_is_loaded_with_the_model_on_disk(device: Device, log: list[Any]) -> None:
    async def story(rollout: Rollout, clock: Clock) -> None:
        await clock.pause()
        _upload(device, "v1")
        await clock.tick()
        _upload_twin(device, "v1", b"twin repaired")
        assert await clock.tick() == HOUR
        assert rollout.status.version == "v1"

    _upload(device, "v0")
    device.live(story)
    assert device.worker.twins == [_twin("v0"), _twin("v1"), b"twin repaired"]
    assert device.downloads(MODEL) == 2
    assert _parts(device.changes)[2:] == [("twin", "committed", "v1")]
    assert [line.get("twin") for line in log if line["event"] == "model in use"] == [None, None, "another"]
    assert device.slots.previous is not None
    assert device.slots.previous.version == "v0"
    assert len(list(Path(device.worker.files[2].cpu_path or "").parents[1].iterdir())) == 2


def test_the_same_bytes_again_are_nothing(device: Device) -> None:
    async def story(_: Rollout, clock: Clock) -> None:
        await clock.pause()
        _upload(device, "v1")
        assert await clock.tick() == HOUR

    _upload(device, "v1")
    device.live(story)
    assert (device.worker.loaded, device.downloads()) == (["v1"], 2)


def test_a_twin_that_the_store_has_no_more_stays_on_disk(device: Device) -> None:
    async def story(rollout: Rollout, clock: Clock) -> None:
        await clock.pause()
        device.server.delete("bucket", TWIN, {})
        assert await clock.tick() == HOUR
        assert rollout.status.twin

    _upload(device, "v1")
    device.live(story)
    device.live(first_pause)
    assert device.worker.twins == [_twin("v1")] * 2


def test_another_cpu_url_takes_the_twin_of_the_old_one_out_of_use(device: Device) -> None:
    _upload(device, "v1")
    device.live(first_pause)
    device.cpu_url = parse_location("gs://bucket/other.tflite")

    async def story(rollout: Rollout, clock: Clock) -> None:
        assert await clock.pause() == 5
        assert not rollout.status.twin
        device.server.upload("bucket", "other.tflite", _twin("v1"), {"version": "v1"})
        assert await clock.tick() == HOUR
        assert rollout.status.twin

    device.live(story)
    assert device.worker.twins == [_twin("v1"), None, _twin("v1")]


@pytest.mark.parametrize(
    ("model", "twin", "uploaded", "used"),
    [
        (None, None, "2026-01-01T00:00:00.000Z", True),
        (None, None, "2025-12-31T23:00:01.000Z", True),
        (None, None, "2026-02-01T00:00:00.000Z", True),
        (None, None, "2025-12-31T22:59:59.000Z", False),
        ("v1", None, "2026-01-01T00:00:00.000Z", True),
        ("v1", None, "2025-12-01T00:00:00.000Z", False),
        (None, "v1", "2025-12-01T00:00:00.000Z", False),
        ("v1", "v1", "2025-12-01T00:00:00.000Z", True),
        ("v1", "v2", "2026-01-01T00:00:00.000Z", False),
    ],
)
def test_which_twin_belongs_to_a_model(
    *, device: Device, model: str | None, twin: str | None, uploaded: str, used: bool
) -> None:
    async def story(rollout: Rollout, clock: Clock) -> None:
        assert await clock.pause() == (HOUR if used else 5)
        assert ("not used" in rollout.status.last_poll) != used

    device.upload(model, b"model")
    _upload_twin(device, twin, timeCreated=uploaded)
    device.live(story)
    assert device.worker.twins == [_twin(twin) if used else None]


def test_one_twin_of_two_models_without_versions_is_fetched_once(device: Device) -> None:
    async def story(_: Rollout, clock: Clock) -> None:
        await clock.pause()
        device.upload(None, b"model B")
        await clock.tick()

    device.upload(None, b"model A")
    _upload_twin(device, None)
    device.live(story)
    device.live(first_pause)
    assert device.worker.twins == [_twin(None)] * 3
    assert device.downloads(TWIN) == 1


def test_a_model_refused_with_its_twin_is_tried_alone_at_once(device: Device) -> None:
    device.worker.answers_with_twin["v2"] = [NO_MODEL]

    async def story(rollout: Rollout, clock: Clock) -> None:
        await clock.pause()
        _upload(device, "v2")
        assert await clock.tick() == HOUR
        assert (rollout.status.version, rollout.status.twin) == ("v2", False)
        assert rollout.status.rejected == "v2 with its model for the CPU: it is no model"
        assert await clock.tick() == 5
        assert f"{TWIN_URL} was rejected: it is no model; upload it again" in rollout.status.last_poll

    _upload(device, "v1")
    device.live(story)
    device.live(first_pause_of(5))
    assert device.worker.twins == [_twin("v1"), _twin("v2"), None, None]
    assert device.downloads(TWIN) == 2
    assert device.downloads(MODEL) == 2
    assert _parts(device.changes)[1:] == [("twin", "rejected", "v2"), ("model", "committed", "v2")]
    device.worker.answers_with_twin.clear()
    _upload_twin(device, "v2")
    device.live(first_pause)
    assert device.worker.twins[4:] == [None, _twin("v2")]


def first_pause_of(length: float) -> Any:
    async def story(_: Rollout, clock: Clock) -> None:
        assert await clock.pause() == length

    return story


def test_a_model_that_is_refused_alone_too_is_not_tried_again(device: Device) -> None:
    device.worker.answers["v1"] = [NO_MODEL]

    async def story(rollout: Rollout, clock: Clock) -> None:
        for _ in range(2):
            assert await clock.pause() == HOUR
            rollout.poll_now()
        await clock.pause()

    _upload(device, "v1")
    device.live(story)
    assert device.worker.twins == [_twin("v1"), None]
    assert _parts(device.changes) == [("twin", "rejected", "v1"), ("model", "rejected", "v1")]
    assert (device.downloads(MODEL), device.downloads(TWIN)) == (1, 1)


def test_a_new_twin_that_is_refused_leaves_the_running_model_and_its_twin(device: Device) -> None:
    async def story(rollout: Rollout, clock: Clock) -> None:
        await clock.pause()
        device.worker.answers_with_twin["v1"] = [NO_MODEL]
        _upload_twin(device, "v1", b"twin broken")
        assert await clock.tick() == HOUR
        assert (rollout.status.version, rollout.status.twin) == ("v1", True)
        assert await clock.tick() == 5
        assert "was rejected" in rollout.status.last_poll

    _upload(device, "v1")
    device.live(story)
    device.worker.answers_with_twin.clear()
    device.live(first_pause_of(5))
    assert device.worker.twins == [_twin("v1"), b"twin broken", _twin("v1")]
    assert _parts(device.changes)[1:] == [("twin", "rejected", "v1")]
    assert device.downloads(TWIN) == 2


def test_a_committed_model_that_is_refused_with_its_twin_starts_alone(device: Device) -> None:
    _upload(device, "v1")
    device.live(first_pause)
    device.worker.answers_with_twin["v1"] = [NO_MODEL]
    for _ in range(2):
        device.live(first_pause)
    assert device.worker.twins == [_twin("v1")] + [_twin("v1"), None] * 2
    assert device.downloads() == 2
    assert device.slots.committed is not None
    assert device.slots.committed.cpu is not None, "the next start tries it again"


def test_what_was_refused_with_and_without_its_twin_waits_for_the_next_start(device: Device) -> None:
    _upload(device, "v1")
    device.live(first_pause)
    device.worker.answers["v1"] = [NO_MODEL]

    async def story(rollout: Rollout, clock: Clock) -> None:
        await clock.pause()
        await clock.tick()
        assert device.worker.twins[1:] == [_twin("v1"), None]
        assert rollout.status.last_poll == "v1 is all there is, and the worker refuses it"

    device.live(story)


def test_a_new_twin_for_a_committed_model_that_cannot_run(device: Device) -> None:
    _upload(device, "v1")
    device.live(first_pause)
    _upload(device, "v2")
    device.live(first_pause)
    device.changes.clear()
    device.worker.answers["v2"] = [NO_MODEL]

    async def story(rollout: Rollout, clock: Clock) -> None:
        await clock.pause()
        assert rollout.status.version == "v1"
        device.worker.answers_with_twin["v2"] = [GOOD]
        _upload_twin(device, "v2", b"twin repaired")
        await clock.tick()
        assert rollout.status.version == "v2"

    device.live(story)
    assert _parts(device.changes)[-1] == ("model", "committed", "v2")
    assert device.slots.previous is not None
    assert device.slots.previous.version == "v1"


def test_a_waiting_twin_is_not_fetched_again(device: Device) -> None:
    async def story(rollout: Rollout, clock: Clock) -> None:
        await clock.pause()
        device.worker.answers_with_twin["v1"] = [NO_WORKER, NO_WORKER, GOOD]
        _upload_twin(device, "v1", b"twin new")
        assert [await clock.tick() for _ in range(3)] == [5, 10, HOUR]

    _upload(device, "v1")
    device.live(story)
    assert device.worker.twins == [_twin("v1")] + [b"twin new"] * 3
    assert device.downloads(TWIN) == 2
    assert _parts(device.changes)[1:] == [("twin", "committed", "v1")]


def test_a_twin_that_waited_over_a_restart_makes_no_new_version(device: Device) -> None:
    _upload(device, "v0")
    device.live(first_pause)
    _upload(device, "v1")
    device.live(first_pause)
    device.worker.answers_with_twin["v1"] = [GOOD, NO_WORKER]
    _upload_twin(device, "v1", b"twin new")
    device.live(first_pause_of(5))
    device.changes.clear()
    device.worker.answers_with_twin["v1"] = [NO_WORKER, NO_WORKER, GOOD]
    device.live(first_pause)
    assert _parts(device.changes) == [("twin", "committed", "v1")]
    assert device.slots.previous is not None
    assert device.slots.previous.version == "v0"


@pytest.mark.parametrize("damage", [b"twin", b"damaged!" * 100, None])
def test_a_damaged_twin_is_left_out_and_fetched_again(device: Device, log: list[Any], damage: bytes | None) -> None:
    _upload(device, "v1")
    device.live(first_pause)
    file = Path(device.worker.files[0].cpu_path or "")
    if damage is None:
        shutil.rmtree(file.parent)
    else:
        file.write_bytes(damage)
    device.live(first_pause)
    assert device.worker.twins == [_twin("v1"), None, _twin("v1")]
    assert (device.downloads(MODEL), device.downloads(TWIN)) == (1, 2)
    assert [line["file"] for line in log if line["event"] == "model file is damaged"] == [str(file)]


def test_a_damaged_model_takes_its_twin_along(device: Device) -> None:
    _upload(device, "v1")
    device.live(first_pause)
    Path(device.worker.files[0].path).write_bytes(b"damaged")
    device.live(first_pause)
    assert device.worker.twins == [_twin("v1")] * 2
    assert (device.downloads(MODEL), device.downloads(TWIN)) == (2, 2)


def test_a_disk_without_room_for_the_twin(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    real = shutil.disk_usage
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: real(path)._replace(free=0 if Path(path).name == "twins" else 1 << 40)
    )

    async def story(rollout: Rollout, clock: Clock) -> None:
        assert await clock.pause() == 5
        assert rollout.status.version == "v1"
        assert f"{TWIN_URL} needs 0.0 MiB" in rollout.status.last_poll
        monkeypatch.undo()

    _upload(device, "v1")
    device.live(story)
    assert device.worker.twins == [None]


def test_trouble_with_a_twin_is_forgotten_with_its_model(device: Device) -> None:
    """The polls are not rushed by the twin of a model that is refused."""

    async def story(_: Rollout, clock: Clock) -> None:
        assert await clock.pause() == 5
        device.worker.answers["v2"] = [NO_MODEL]
        device.upload("v2")
        await clock.tick()
        assert await clock.tick() == HOUR

    device.upload("v1")
    _upload_twin(device, "v0")
    device.live(story)


def test_the_state_of_an_agent_that_knew_no_twins(device: Device) -> None:
    """Nothing is fetched again after an update, and the twin comes to the model that is there."""
    device.upload("v1", b"model v1" * 10)
    device.upload("v2", b"model v2" * 10)
    device.live(first_pause)
    home = Path(device.worker.files[0].path).parents[2]
    state = json.loads(OLD_STATE.read_text())
    old = home / "releases" / state["previous"]["id"]
    old.mkdir()
    (old / "model.tflite").write_bytes(b"model v1" * 10)
    shutil.rmtree(home / "twins")
    for name in ("state.json", "state.json.bak"):
        shutil.copy(OLD_STATE, home / name)
    before = device.downloads()
    device.live(first_pause)
    assert device.downloads() == before
    assert (device.slots.committed and device.slots.committed.id) == state["committed"]["id"]
    assert (device.slots.previous and device.slots.previous.id) == state["previous"]["id"]
    assert (device.slots.last_rejected and device.slots.last_rejected.id) == state["rejected"][0]["id"]
    _upload_twin(device, "v2")
    device.live(first_pause)
    assert device.downloads(MODEL) == before
    assert device.worker.twins[-1] == _twin("v2")


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("gs://b/latest/model_quant_edgetpu.tflite", "gs://b/latest/model_quant.tflite"),
        ("/srv/m_edgetpu.tflite", "file:///srv/m.tflite"),
        ("gs://b/m_edgetpu.tflite_edgetpu.tflite", "gs://b/m_edgetpu.tflite.tflite"),
        ("gs://b/latest/model.tflite", None),
        ("gs://b/latest/_edgetpu.tflite", None),
        ("gs://b/_edgetpu.tflite", None),
        ("gs://b/m_edgetpu.tflite/v1", None),
    ],
)
def test_where_a_twin_is_by_convention(url: str, expected: str | None) -> None:
    found = sibling(parse_location(url))
    assert (found and str(found)) == expected
