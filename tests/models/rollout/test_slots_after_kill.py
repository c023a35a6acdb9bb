"""The process or the power ends at each step of a roll-out: the next opening finds a whole model that was committed."""

import hashlib
import itertools
import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from edge_agent.models.rollout.slots import Slots
from edge_agent.models.stores.gcs import GcsStore
from tests.models.rollout import slots_child
from tests.servers.gcs import GcsServer
from tests.telemetry.loopdisk import why_not

V1, V2, WAITS = ["v1", None, None, None, False, 0], ["v2", None, None, None, False, 0], ["v1", "v2", None, None]
FOUND = {
    "commit": [
        V1,
        ["v1", None, "v2", None, False, 0],
        ["v1", "v2", "v2", None, False, 0],
        [*WAITS, False, 0],
        [*WAITS, True, 0],
        [*WAITS, True, 1],
        V2,
    ],
    "roll back": [
        V1,
        [*WAITS, False, 0],
        [*WAITS, True, 0],
        [*WAITS, True, 1],
        ["v1", None, None, "v2", False, 0],
    ],
}


def _found(directory: Path, *arguments: str) -> list[list[object]]:
    """What was there after each end, without what was there after the one before it."""
    module = [sys.executable, "-m", "tests.models.rollout.slots_child", str(directory), *arguments]
    child = subprocess.run(module, capture_output=True, text=True, timeout=600, check=False)
    assert child.returncode == 0, child.stderr
    return [json.loads(line) for line in child.stdout.splitlines()]


@pytest.mark.parametrize(
    ("story", "when"),
    [
        ("commit", "after"),
        pytest.param("commit", "before", marks=pytest.mark.system),
        ("roll back", "before"),
        pytest.param("roll back", "after", marks=pytest.mark.system),
    ],
)
def test_kill_at_every_step_of_a_story(tmp_path: Path, story: str, when: str) -> None:
    found = _found(tmp_path, story, when, "kill")
    assert len(found) > 50, "hardly any step was counted"
    assert [each for each, _ in itertools.groupby(found) if each in FOUND[story]] == _in_order(story, found)
    assert [each for each in found if each not in FOUND[story]] == []


def _in_order(story: str, found: list[list[object]]) -> list[list[object]]:
    seen = [each for each, _ in itertools.groupby(found)]
    assert [each for each in FOUND[story] if each in seen] == FOUND[story], "a state was never left behind"
    assert seen[0] == FOUND[story][0]
    assert seen[-1] == FOUND[story][-1]
    return seen


needs_disk = pytest.mark.skipif(why_not() is not None, reason=why_not() or "")


@needs_disk
@pytest.mark.parametrize("story", FOUND)
def test_power_cuts_here_and_there_in_a_story(tmp_path: Path, story: str) -> None:
    found = _found(tmp_path, story, "after", "power", "11")
    assert len(found) > 5
    assert [each for each in found if each not in FOUND[story]] == []
    assert (found[0], found[-1]) == (V1, FOUND[story][-1])


@needs_disk
@pytest.mark.system
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("story", FOUND)
def test_power_cut_at_every_step_of_a_story(tmp_path: Path, story: str, when: str) -> None:
    found = _found(tmp_path, story, when, "power")
    assert len(found) > 50
    assert [each for each in found if each not in FOUND[story]] == []
    assert [each for each, _ in itertools.groupby(found)] == _in_order(story, found)


FETCH = """
import sys, threading
from pathlib import Path
from edge_agent.models.stores.gcs import GcsStore
from edge_agent.models.rollout.slots import Slots
slots = Slots(Path(sys.argv[1]), "gs://bucket/m")
slots.open()
store = GcsStore("bucket", "m")
remote = store.stat()
store.fetch(remote, slots.begin(remote), threading.Event())
"""


@pytest.mark.parametrize("at", [0, 1, 50_000, 99_999])
def test_kill_in_the_middle_of_a_download(gcs_server: GcsServer, tmp_path: Path, at: int) -> None:
    slots_child.prepare(tmp_path)
    data = slots_child.DATA["v2"]
    gcs_server.upload("bucket", "m", data, {"version": "v2"})
    gcs_server.fault("stall", "media", at=at)
    with subprocess.Popen([sys.executable, "-c", FETCH, str(tmp_path)]) as child:
        assert gcs_server.stalled.wait(60)
        child.kill()
    gcs_server.resume()
    slots = Slots(tmp_path, slots_child.URL)
    slots.open()
    assert slots.committed is not None
    assert (slots.committed.version, slots.candidate) == ("v1", None)
    assert len(list(slots.path(slots.committed).parents[1].glob("*.part"))) == 1
    store = GcsStore("bucket", "m")
    remote = store.stat()
    path = slots.begin(remote)
    held = path.stat().st_size
    assert held <= at
    store.fetch(remote, path, threading.Event())
    asked = gcs_server.requests[-1].headers
    assert asked.get("range", "bytes=0-") == f"bytes={held}-"
    release = slots.finish(remote, path)
    assert release.sha256 == hashlib.sha256(data).hexdigest()
    assert [file.name for file in slots.path(release).parent.iterdir()] == ["model.tflite"]
