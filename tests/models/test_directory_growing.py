"""Files that somebody is copying at the moment."""

import os
import time
from pathlib import Path

import pytest

from edge_agent.models import directory
from edge_agent.models.directory import FileStore
from edge_agent.models.stores import StoreUnavailable

MODEL = b"model one" * 1000
QUIET = 1.0


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
