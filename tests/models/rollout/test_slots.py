import hashlib
import json
import os
import shutil
from pathlib import Path

import msgspec
import pytest

from edge_agent.models.release.releases import Claims, Release, RemoteObject, describe
from edge_agent.models.rollout.slots import REJECTED_KEPT, Slots
from edge_agent.models.stores.base import FetchFailed, StoreNeedsPerson

URL = "gs://bucket/m"
TWIN_URL = "gs://bucket/twin"


def _remote(version: str, data: bytes, generation: str = "1") -> RemoteObject:
    facts = {"version": version, "accuracy": "0.5", "labels": "a,b"}
    return describe(URL, facts, generation=generation, size=len(data), checksum=f"sha256:{data.hex()[:8]}")


def _download(slots: Slots, version: str, generation: str = "1") -> Release:
    data = version.encode() * 1000
    remote = _remote(version, data, generation)
    path = slots.begin(remote)
    path.write_bytes(data)
    return slots.finish(remote, path)


def _commit(slots: Slots, version: str) -> Release:
    release = _download(slots, version)
    slots.commit(release, previous=slots.committed)
    return release


def _attach(slots: Slots, release: Release, data: bytes = b"twin", generation: str = "1") -> Release:
    remote = _twin(data, generation)
    path = slots.begin_twin(remote)
    path.write_bytes(data)
    return slots.attach(release, remote, path)


def _twin(data: bytes = b"twin", generation: str = "1") -> RemoteObject:
    return describe(TWIN_URL, {}, generation=generation, size=len(data), checksum=f"sha256:{data.hex()[:8]}")


def _promised(remote: RemoteObject, data: bytes) -> RemoteObject:
    """The same upload, of which it was said meanwhile what its bytes are."""
    return msgspec.structs.replace(remote, claims=Claims(sha256=hashlib.sha256(data).hexdigest()))


@pytest.fixture
def slots(tmp_path: Path) -> Slots:
    return _open(tmp_path)


def _open(directory: Path) -> Slots:
    slots = Slots(directory, URL)
    slots.open()
    return slots


def _home(directory: Path) -> Path:
    (home,) = directory.iterdir()
    return home


def _folders(directory: Path) -> set[str]:
    return {folder.name for folder in (_home(directory) / "releases").iterdir()}


def test_nothing_at_first(slots: Slots) -> None:
    assert (slots.committed, slots.previous, slots.candidate, slots.last_rejected) == (None, None, None, None)


def test_downloaded_then_committed_survives_opening_again(slots: Slots, tmp_path: Path) -> None:
    release = _download(slots, "v1")
    assert _open(tmp_path).candidate == release
    slots.commit(release, previous=None)
    again = _open(tmp_path)
    assert (again.committed, again.candidate) == (release, None)
    assert again.path(release).read_bytes() == b"v1" * 1000
    assert (release.version, release.accuracy, release.labels, release.size) == ("v1", 0.5, ["a", "b"], 2000)


def test_the_previous_one_is_kept_and_older_ones_go(slots: Slots, tmp_path: Path) -> None:
    _, second, third = (_commit(slots, version) for version in ("v1", "v2", "v3"))
    assert (slots.committed, slots.previous) == (third, second)
    assert _folders(tmp_path) == {second.id, third.id}


def test_rejected_is_remembered_for_this_very_upload(slots: Slots, tmp_path: Path) -> None:
    release = _download(slots, "v1")
    slots.reject(release, "it is no model")
    again = _open(tmp_path)
    rejection = again.rejection(_remote("v1", b"v1" * 1000))
    assert rejection is not None
    assert (rejection.reason, rejection.version) == ("it is no model", "v1")
    assert again.rejection(_remote("v1", b"v1" * 1000, generation="2")) is None
    assert (again.candidate, _folders(tmp_path)) == (None, set())


def test_only_the_newest_rejections_are_remembered(slots: Slots) -> None:
    for number in range(REJECTED_KEPT + 2):
        slots.reject(_download(slots, f"v{number}"), "no")
    assert slots.rejection(_remote("v1", b"v1" * 1000)) is None
    assert slots.rejection(_remote("v2", b"v2" * 1000)) is not None
    assert slots.last_rejected is not None
    assert slots.last_rejected.version == f"v{REJECTED_KEPT + 1}"


def test_what_is_on_disk_is_not_fetched_again(slots: Slots) -> None:
    first = _commit(slots, "v1")
    second = _commit(slots, "v2")
    assert slots.stored(_remote("v1", b"v1" * 1000)) == first
    assert slots.candidate == first
    slots.commit(first, previous=second)
    assert (slots.committed, slots.previous) == (first, second)
    assert slots.stored(_remote("v9", b"v9" * 1000)) is None


def test_a_damaged_candidate_is_fetched_again(slots: Slots) -> None:
    release = _download(slots, "v1")
    slots.path(release).write_bytes(b"xx" * 1000)
    assert slots.stored(_remote("v1", b"v1" * 1000)) is None
    assert _download(slots, "v1") == release
    assert slots.path(release).read_bytes() == b"v1" * 1000


def test_discarding_a_candidate(slots: Slots, tmp_path: Path) -> None:
    committed = _commit(slots, "v1")
    _download(slots, "v2")
    slots.discard_candidate()
    assert (slots.candidate, _folders(tmp_path)) == (None, {committed.id})


@pytest.mark.parametrize("damage", [b"xx" * 1000, b"v2", None])
def test_damaged_committed_model_falls_back_to_the_previous(slots: Slots, tmp_path: Path, damage: bytes | None) -> None:
    first, second = _commit(slots, "v1"), _commit(slots, "v2")
    if damage is None:
        slots.path(second).unlink()
    else:
        slots.path(second).write_bytes(damage)
    again = _open(tmp_path)
    assert (again.committed, again.previous) == (first, None)
    assert json.loads((_home(tmp_path) / "state.json").read_text())["committed"]["version"] == "v1"
    assert _folders(tmp_path) == {first.id}


def test_everything_damaged_leaves_nothing(slots: Slots, tmp_path: Path) -> None:
    for version in ("v1", "v2"):
        slots.path(_commit(slots, version)).write_bytes(b"")
    again = _open(tmp_path)
    slots.path(_commit(again, "v3")).unlink()
    assert _open(tmp_path).committed is None


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"\0" * 100, b'{"format": 2, "url": "x"}', b'{"url": "x", "committed": {"id": "../.."}}', b"\xff\xfe"],
)
def test_damaged_state_is_set_aside_and_its_copy_used(slots: Slots, tmp_path: Path, text: bytes) -> None:
    release = _commit(slots, "v1")
    (_home(tmp_path) / "state.json").write_bytes(text)
    assert _open(tmp_path).committed == release
    assert (_home(tmp_path) / "state.json.damaged").read_bytes() == text
    assert _open(tmp_path).committed == release


def test_both_states_damaged_is_a_new_beginning(slots: Slots, tmp_path: Path) -> None:
    _commit(slots, "v1")
    for name in ("state.json", "state.json.bak"):
        (_home(tmp_path) / name).write_text("?")
    again = _open(tmp_path)
    assert again.committed is None
    assert {path.name for path in _home(tmp_path).glob("*.damaged")} == {
        "state.json.damaged",
        "state.json.bak.damaged",
    }
    assert _commit(again, "v1") == _open(tmp_path).committed


def test_everything_is_on_the_disk_before_a_name_points_to_it(
    slots: Slots, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    sync, replace, rename = os.fsync, os.replace, os.rename

    def synced(handle: int) -> None:
        steps.append(f"sync {Path(f'/proc/self/fd/{handle}').readlink().relative_to(_home(tmp_path))}")
        sync(handle)

    def moved(source: Path, target: Path) -> None:
        steps.append(f"{source.name} -> {target.name}")
        (replace if source.is_file() else rename)(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", moved)
    monkeypatch.setattr(os, "rename", moved)
    release = _download(slots, "v1")
    state = ["sync state.json.new", "state.json.new -> state.json", "sync ."]
    copy = ["sync state.json.bak.new", "state.json.bak.new -> state.json.bak", "sync ."]
    part = f"{release.id}.part"
    assert steps == [
        f"sync releases/{part}/model.tflite",
        f"sync releases/{part}",
        f"{part} -> {release.id}",
        "sync releases",
        *state,
        *copy,
    ]
    steps.clear()
    pair = _attach(slots, release)
    part = f"{_twin().id}.part"
    assert steps == [
        f"sync twins/{part}/cpu.tflite",
        f"sync twins/{part}",
        f"{part} -> {_twin().id}",
        "sync twins",
        *state,
        *copy,
    ]
    steps.clear()
    slots.commit(pair, previous=None)
    assert steps == [*state, *copy]


def test_state_is_json_for_people(slots: Slots, tmp_path: Path) -> None:
    _commit(slots, "v1")
    state = json.loads((_home(tmp_path) / "state.json").read_text())
    assert (state["url"], state["committed"]["version"]) == (URL, "v1")


def test_left_overs_are_removed(slots: Slots, tmp_path: Path) -> None:
    release = _commit(slots, "v1")
    slots.begin(_remote("v2", b"x")).write_bytes(b"half")
    (_home(tmp_path) / "releases" / "0123456789abcdef").mkdir()
    assert len(_folders(tmp_path)) == 3
    _open(tmp_path)
    assert _folders(tmp_path) == {release.id}


def test_each_url_has_slots_of_its_own(slots: Slots, tmp_path: Path) -> None:
    _commit(slots, "v1")
    other = Slots(tmp_path, "gs://bucket/other/../../m")
    other.open()
    assert other.committed is None
    assert len(list(tmp_path.iterdir())) == 2


def test_no_download_that_would_fill_the_disk(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    slots = Slots(tmp_path, URL, reserve=2 * free)
    slots.open()
    with pytest.raises(StoreNeedsPerson, match="does not have that; free some space there") as caught:
        slots.begin(_remote("v1", b"x"))
    assert str(tmp_path) in str(caught.value)


def test_a_failed_change_leaves_everything_as_it_was(
    slots: Slots, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    committed = _commit(slots, "v1")
    release = _download(slots, "v2")

    def full(handle: int) -> None:
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            slots.commit(release, previous=committed)
    assert (slots.committed, slots.candidate) == (committed, release)
    assert _open(tmp_path).committed == committed
    slots.commit(release, previous=committed)
    assert _open(tmp_path).committed == release


def test_a_version_never_becomes_a_path(slots: Slots, tmp_path: Path) -> None:
    release = _commit(slots, "../../../../etc/passwd")
    assert slots.path(release).is_relative_to(_home(tmp_path) / "releases")
    assert msgspec.structs.asdict(release)["id"] in str(slots.path(release))


def test_a_twin_makes_a_candidate_of_its_release_and_leaves_the_model_alone(slots: Slots, tmp_path: Path) -> None:
    first, second = _commit(slots, "v1"), _commit(slots, "v2")
    status = slots.path(second).stat()
    pair = _attach(slots, second)
    assert (pair.without_twin(), slots.candidate, slots.committed) == (second, pair, second)
    slots.commit(pair, previous=slots.previous)
    again = _open(tmp_path)
    assert (again.committed, again.previous, again.candidate) == (pair, first, None)
    assert pair.cpu is not None
    assert again.twin_path(pair.cpu).read_bytes() == b"twin"
    assert slots.path(pair).stat() == status
    assert (pair.trial_id == second.trial_id, second.trial_id) == (False, second.id)


def test_the_twins_that_nothing_names_go(slots: Slots, tmp_path: Path) -> None:
    release = _commit(slots, "v1")
    for data in (b"one", b"two"):
        slots.commit(_attach(slots, release, data), previous=None)
    slots.begin_twin(_twin(b"half")).write_bytes(b"ha")
    _open(tmp_path)
    (folder,) = (_home(tmp_path) / "twins").iterdir()
    assert (folder / "cpu.tflite").read_bytes() == b"two"


def test_a_new_model_that_is_rejected_with_its_twin_stays_the_candidate(slots: Slots, tmp_path: Path) -> None:
    _commit(slots, "v1")
    release = _download(slots, "v2")
    slots.reject(_attach(slots, release), "it is no model")
    again = _open(tmp_path)
    assert again.candidate == release
    assert again.rejection(_remote("v2", b"v2" * 1000)) is None
    rejection = again.rejection(_twin(), of=release)
    assert rejection is not None
    assert (rejection.what, rejection.reason) == ("v2 with its model for the CPU", "it is no model")
    assert again.rejection(_twin(generation="2"), of=release) is None
    assert list((_home(tmp_path) / "twins").iterdir()) == []
    again.reject(release, "it is no model")
    assert again.candidate is None
    assert again.last_rejected is not None
    assert again.last_rejected.what == "v2"


def test_a_twin_that_is_rejected_leaves_the_committed_model_with_the_old_one(slots: Slots, tmp_path: Path) -> None:
    pair = _attach(slots, _commit(slots, "v1"), b"good")
    slots.commit(pair, previous=None)
    slots.reject(_attach(slots, pair, b"bad"), "no")
    again = _open(tmp_path)
    assert (again.committed, again.candidate) == (pair, None)
    assert pair.cpu is not None
    assert again.twin_path(pair.cpu).read_bytes() == b"good"


def test_a_twin_that_is_on_disk_serves_another_model_too(slots: Slots, tmp_path: Path) -> None:
    slots.commit(_attach(slots, _commit(slots, "v1")), previous=None)
    new = _download(slots, "v2")
    pair = slots.stored_twin(new, _twin())
    assert pair is not None
    assert (slots.candidate, pair.without_twin()) == (pair, new)
    slots.commit(pair, previous=None)
    assert _open(tmp_path).committed == pair
    assert pair.cpu is not None
    slots.twin_path(pair.cpu).write_bytes(b"xxxx")
    assert slots.stored_twin(new, _twin()) is None


@pytest.mark.parametrize("damage", [b"xxxx", b"twi", None])
def test_a_damaged_twin_takes_nothing_with_it(slots: Slots, tmp_path: Path, damage: bytes | None) -> None:
    pair = _attach(slots, _commit(slots, "v1"))
    slots.commit(pair, previous=None)
    assert pair.cpu is not None
    file = slots.twin_path(pair.cpu)
    if damage is None:
        file.unlink()
    else:
        file.write_bytes(damage)
    again = _open(tmp_path)
    assert again.committed == pair.without_twin()
    assert not file.parent.exists()
    assert _attach(again, pair.without_twin()) == pair


def test_a_candidate_whose_twin_was_damaged_meanwhile(slots: Slots) -> None:
    release = _download(slots, "v1")
    pair = _attach(slots, release)
    assert pair.cpu is not None
    slots.twin_path(pair.cpu).write_bytes(b"xxxx")
    assert slots.stored(_remote("v1", b"v1" * 1000)) == release
    assert slots.candidate == release


def test_a_copy_of_the_model_as_its_own_twin(slots: Slots, tmp_path: Path) -> None:
    """Then both uploads may have the same id."""
    release = _download(slots, "v1")
    remote = _remote("v1", b"v1" * 1000)
    path = slots.begin_twin(remote)
    path.write_bytes(b"v1" * 1000)
    pair = slots.attach(release, remote, path)
    again = _open(tmp_path)
    assert again.candidate == pair
    assert again.path(pair).read_bytes() == b"v1" * 1000


def test_no_twin_that_would_fill_the_disk(tmp_path: Path) -> None:
    slots = Slots(tmp_path, URL, reserve=2 * shutil.disk_usage(tmp_path).free)
    slots.open()
    with pytest.raises(StoreNeedsPerson, match=f"^{TWIN_URL} needs 0.0 MiB"):
        slots.begin_twin(_twin())


def test_a_failed_attachment_leaves_everything_as_it_was(
    slots: Slots, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    committed = _commit(slots, "v1")

    def full(handle: int) -> None:
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            _attach(slots, committed)
    assert (slots.committed, slots.candidate) == (committed, None)
    assert _open(tmp_path).committed == committed


def test_what_is_on_the_disk_is_compared_with_what_is_promised_now(slots: Slots) -> None:
    release = _attach(slots, _download(slots, "v1"))
    model, twin = _remote("v1", b"v1" * 1000), _twin()
    assert (model.id, release.cpu and release.cpu.id) == (release.id, twin.id)
    assert slots.stored(_promised(model, b"another")) is None
    assert slots.stored_twin(release, _promised(twin, b"another")) is None
    assert slots.stored(_promised(model, b"v1" * 1000)) == release
    assert slots.stored_twin(release, _promised(twin, b"twin")) == release


def test_what_changes_after_it_was_compared_is_not_taken(slots: Slots) -> None:
    release = _commit(slots, "v1")
    model, twin = _promised(_remote("v2", b"v2"), b"v2"), _promised(_twin(), b"twin")
    path, twin_path = slots.begin(model), slots.begin_twin(twin)
    path.write_bytes(b"v3")
    twin_path.write_bytes(b"niwt")
    with pytest.raises(FetchFailed, match="on the disk it is not what was promised"):
        slots.finish(model, path)
    with pytest.raises(FetchFailed, match="on the disk it is not what was promised"):
        slots.attach(release, twin, twin_path)
    assert slots.candidate is None
