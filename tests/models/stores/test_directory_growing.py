"""Files that somebody is copying at the moment."""

import os
import time
from pathlib import Path

import pytest

from edge_agent.models.stores import directory
from edge_agent.models.stores.base import StoreUnavailable
from edge_agent.models.stores.directory import FileStore

MODEL = b"model one" * 1000
# So long that no file gets too old while the test is at it.
QUIET = 600.0


@pytest.fixture(autouse=True)
def files_may_be_growing(files_are_whole: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory, "QUIET", QUIET)


def test_a_file_that_is_still_growing_is_not_taken(tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"
    path.write_bytes(MODEL)
    pauses: list[float] = []

    def grow(seconds: float) -> None:
        pauses.append(seconds)
        with path.open("ab") as file:
            file.write(b"more")

    store = FileStore(path, pause=grow)
    for _ in range(2):
        with pytest.raises(StoreUnavailable, match=f"^{path} is still being written$"):
            store.stat()
    assert all(0 < seconds <= QUIET for seconds in pauses)
    assert FileStore(path, pause=pauses.append).stat().size == len(MODEL) + 8


@pytest.mark.parametrize(("age", "waits"), [(3600, False), (QUIET + 0.1, False), (-3600, True)])
def test_only_a_young_file_is_looked_at_twice_and_one_from_the_future(tmp_path: Path, age: float, waits: bool) -> None:
    model = tmp_path / "model.tflite"
    model.write_bytes(MODEL)
    changed = time.time() - age
    os.utime(model, (changed, changed))
    pauses: list[float] = []
    store = FileStore(model, pause=pauses.append)
    assert store.stat() == store.stat()
    assert pauses == ([QUIET] if waits else [])


def test_a_new_sidecar_waits_for_the_model_that_comes_behind_it(tmp_path: Path) -> None:
    model, sidecar = tmp_path / "model.tflite", tmp_path / "model.tflite.json"
    model.write_bytes(MODEL)
    os.utime(model, (1, 1))

    def bring_model(_seconds: float) -> None:
        model.write_bytes(b"model two" * 1000)

    store = FileStore(model, pause=bring_model)
    before = store.stat()
    sidecar.write_text('{"version": "v2"}')
    with pytest.raises(StoreUnavailable, match=f"^{model} is still being written$"):
        store.stat()
    whole = FileStore(model, pause=lambda _: None).stat()
    assert (whole.version, whole.checksum != before.checksum) == ("v2", True)


def test_a_sidecar_that_comes_at_the_last_moment_is_not_taken_for_that_of_the_old_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, sidecar = tmp_path / "model.tflite", tmp_path / "model.tflite.json"
    model.write_bytes(MODEL)
    os.utime(model, (1, 1))
    store = FileStore(model)
    store.stat()
    checksum = store._checksum

    def late(status: os.stat_result) -> str:
        sidecar.write_text('{"version": "v2"}')
        return checksum(status)

    monkeypatch.setattr(store, "_checksum", late)
    with pytest.raises(StoreUnavailable, match=f"^{model} changed while it was being read$"):
        store.stat()
