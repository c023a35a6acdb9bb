"""What is left of downloads on disk: what a later try goes on with stays, everything else goes."""

import shutil
from pathlib import Path

import pytest

from edge_agent.models.release.releases import GOLDEN_FILE, RemoteObject, describe
from edge_agent.models.rollout.slots import Slots
from edge_agent.models.stores.base import StoreNeedsPerson
from edge_agent.models.stores.download import Part

URL = "gs://bucket/m"


def _remote(version: str, size: int = 1000, generation: str = "1") -> RemoteObject:
    return describe(URL, {"version": version}, generation=generation, size=size, checksum="crc32c:AAAAAA==")


def _open(directory: Path) -> Slots:
    slots = Slots(directory, URL, reserve=0)
    slots.open()
    return slots


def _half(slots: Slots, remote: RemoteObject) -> Path:
    path = slots.begin(remote)
    with Part(path, remote) as part:
        part.write(b"half")
    return path


def _parts(directory: Path) -> set[str]:
    return {path.parent.name for path in directory.glob("*/*/*.part/*.tflite")}


def test_a_download_survives_a_restart_and_changes_of_the_state(tmp_path: Path) -> None:
    slots = _open(tmp_path)
    path = _half(slots, _remote("v1"))
    slots.note(sequence=7, generation=0)
    again = _open(tmp_path)
    assert again.begin(_remote("v1")) == path
    with Part(path, _remote("v1")) as part:
        assert part.size == 4


@pytest.mark.parametrize("other", [_remote("v2"), _remote("v1", generation="2")])
def test_another_download_takes_its_place(tmp_path: Path, other: RemoteObject) -> None:
    slots = _open(tmp_path)
    first = _half(slots, _remote("v1"))
    second = _half(slots, other)
    assert not first.exists()
    assert _parts(tmp_path) == {second.parent.name}


def test_a_twin_is_no_other_download(tmp_path: Path) -> None:
    slots = _open(tmp_path)
    first = _half(slots, _remote("v1"))
    slots.begin_twin(_remote("v1"))
    assert first.exists()


def test_what_has_come_needs_no_room_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slots = _open(tmp_path)
    usage = shutil.disk_usage(tmp_path)
    _half(slots, _remote("v1"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=996))
    slots.begin(_remote("v1"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=995))
    with pytest.raises(StoreNeedsPerson, match=r"the disk of .* does not have that"):
        slots.begin(_remote("v1"))


def test_golden_samples_that_are_there_leave_the_whole_model_beside_them(tmp_path: Path) -> None:
    """The model is whole, its golden samples broke off: the next try asks for what is missing of them alone."""
    slots, remote = _open(tmp_path), _remote("v1", size=0)
    path = slots.begin(remote)
    Part(path, remote).__exit__(None, None, None)
    golden = _remote("v1", size=10)
    with Part(path.with_name(GOLDEN_FILE), golden) as part:
        part.write(b"12345")
    again = _open(tmp_path)
    path = again.begin(remote)
    with Part(path.with_name(GOLDEN_FILE), golden) as part:
        assert part.size == 5
    release = again.finish(remote, path)
    assert {file.name for file in again.path(release).parent.iterdir()} == {"model.tflite", GOLDEN_FILE}
