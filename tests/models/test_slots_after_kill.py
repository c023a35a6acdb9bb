"""kill -9 at each step of a fetch and a commit: the next opening finds a whole model that was committed."""

import hashlib
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from edge_agent.models.gcs import GcsStore
from edge_agent.models.slots import Slots
from tests.models import slots_child
from tests.servers.gcs import GcsServer

STEPS = 60


def _run(directory: Path, step: int, when: str) -> int:
    module = [sys.executable, "-m", "tests.models.slots_child", str(directory), str(step), when]
    return subprocess.run(module, capture_output=True, timeout=60, check=False).returncode


def _prepared(directory: Path) -> Path:
    slots = Slots(directory, slots_child.URL)
    slots.open()
    slots_child.download(slots, "v1")
    slots_child.download_twin(slots, "v1")
    slots_child.commit(slots)
    return directory


@pytest.mark.parametrize("when", ["before", "after"])
def test_kill_at_every_step_of_a_commit(tmp_path: Path, when: str) -> None:
    seen = set()
    for step in range(1, STEPS):
        directory = _prepared(tmp_path / str(step))
        ended = _run(directory, step, when)
        assert ended in {0, -signal.SIGKILL}
        slots = Slots(directory, slots_child.URL)
        slots.open()
        committed, candidate = slots.committed, slots.candidate
        assert committed is not None
        assert slots.path(committed).read_bytes() == slots_child.DATA[committed.version]
        assert committed.version == "v2" or slots.previous is None
        assert not list(slots.path(committed).parents[2].glob("*.damaged")), "no file is ever half written"
        assert committed.cpu is not None
        for one in (committed, slots.previous, candidate):
            if one is not None and one.cpu is not None:
                assert slots.twin_path(one.cpu).read_bytes() == slots_child.TWINS[one.version]
        seen.add((committed.version, candidate.version if candidate else None, bool(candidate and candidate.cpu)))
        named = [one for one in (committed, slots.previous, candidate) if one]
        assert _names(slots.path(committed).parents[1]) == {one.id for one in named}
        assert _names(slots.twin_path(committed.cpu).parents[1]) == {one.cpu.id for one in named if one.cpu}
        slots_child.download(slots, "v3")
        slots_child.download_twin(slots, "v3")
        slots_child.commit(slots)
        if ended == 0:
            break
    assert ended == 0, "the steps did not reach the end of the roll-out"
    assert seen == {("v1", None, False), ("v1", "v2", False), ("v1", "v2", True), ("v2", None, False)}


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


FETCH = """
import sys, threading
from pathlib import Path
from edge_agent.models.gcs import GcsStore
from edge_agent.models.slots import Slots
slots = Slots(Path(sys.argv[1]), "gs://bucket/m")
slots.open()
store = GcsStore("bucket", "m")
remote = store.stat()
store.fetch(remote, slots.begin(remote), threading.Event())
"""


@pytest.mark.parametrize("at", [0, 1, 50_000, 99_999])
def test_kill_in_the_middle_of_a_download(gcs_server: GcsServer, tmp_path: Path, at: int) -> None:
    _prepared(tmp_path)
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
