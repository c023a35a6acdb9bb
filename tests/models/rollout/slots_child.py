"""Rolls out v2 and its twin over v1, again and again, and each time ends without warning one step later.

    slots_child.py DIRECTORY STORY before|after kill|power [EVERY]

A step is a call that makes or orders what is on the disk; all are counted, of which every `EVERY`th is the last one of
a process: killed, or with the power cut, for which DIRECTORY holds a small disk of its own. After each end the models
are opened, checked, and rolled out further. Prints what was found, one JSON list a line: the versions committed,
waiting, as shadow and rejected, whether the twin is there, and how often a trial has begun.
"""

import hashlib
import itertools
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import msgspec

from edge_agent.models.release.manifest import Acceptance, ObjectFile
from edge_agent.models.release.releases import GOLDEN_FILE, Release, RemoteObject, describe
from edge_agent.models.rollout.slots import Slots
from tests.telemetry.loopdisk import LoopDisk

URL = "gs://bucket/m"
DATA = {version: version.encode() * 50_000 for version in ("v1", "v2", "v3")}
TWINS = {version: data[::-1] for version, data in DATA.items()}
GOLDEN = b"golden" * 10_000
GOLDEN_OBJECT = ObjectFile(name="golden.npz", size=len(GOLDEN), sha256=hashlib.sha256(GOLDEN).hexdigest())


def _remote(version: str) -> RemoteObject:
    described = describe(URL, {"version": version}, generation="1", size=len(DATA[version]), checksum=version)
    return msgspec.structs.replace(described, acceptance=Acceptance(golden=GOLDEN_OBJECT))


def download(slots: Slots, version: str, *, shadow: bool = False) -> None:
    remote = _remote(version)
    path = slots.begin(remote)
    path.write_bytes(DATA[version])
    path.with_name(GOLDEN_FILE).write_bytes(GOLDEN)
    slots.finish(remote, path, shadow=shadow)


def download_twin(slots: Slots, version: str) -> None:
    assert slots.candidate is not None
    data = TWINS[version]
    remote = describe(f"{URL}-twin", {"version": version}, generation="1", size=len(data), checksum=f"{version} twin")
    path = slots.begin_twin(remote)
    path.write_bytes(data)
    slots.attach(slots.candidate, remote, path)


def commit(slots: Slots) -> None:
    assert slots.candidate is not None
    slots.commit(slots.candidate, previous=slots.committed)


def _committed(slots: Slots) -> None:
    """A shadow that becomes the release, gets its twin, and passes its trial."""
    slots.note(sequence=7)
    download(slots, "v2", shadow=True)
    assert slots.stored(_remote("v2")) is not None
    slots.discard_shadow()
    download_twin(slots, "v2")
    assert slots.candidate is not None
    slots.begin_trial(slots.candidate, 3)
    commit(slots)


def _rolled_back(slots: Slots) -> None:
    """A release that does not pass its trial, after one that was cut short in order."""
    download(slots, "v2")
    download_twin(slots, "v2")
    assert slots.candidate is not None
    slots.begin_trial(slots.candidate, 3)
    slots.forgive_trial()
    slots.note(generation=1)
    slots.begin_trial(slots.candidate, 3)
    slots.roll_back(slots.candidate, "it is worse")


STORIES = {"commit": _committed, "roll back": _rolled_back}


def prepare(directory: Path) -> None:
    """Have v1 in use."""
    slots = Slots(directory, URL, reserve=0)
    slots.open()
    download(slots, "v1")
    download_twin(slots, "v1")
    commit(slots)


def live(directory: Path, story: str, last_step: int, end: Callable[[], None], *, after: bool) -> bool:
    """Live through a story in a process of its own; returns whether that has come to its end."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    steps = 0

    def dying(call: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **kwargs: Any) -> Any:
            nonlocal steps
            steps += 1
            if after:
                result = call(*args, **kwargs)
            if steps == last_step:
                end()
                os.kill(os.getpid(), signal.SIGKILL)
            return result if after else call(*args, **kwargs)

        return step

    slots = Slots(directory, URL, reserve=0)
    slots.open()
    for name in ("fsync", "replace", "rename", "rmdir", "unlink", "mkdir"):
        setattr(os, name, dying(getattr(os, name)))
    STORIES[story](slots)
    os._exit(0)


def check(directory: Path) -> list[object]:
    """Open what a process has left; all must be whole, and nothing else there."""
    slots = Slots(directory, URL, reserve=0)
    slots.open()
    committed, candidate, shadow, trial = slots.committed, slots.candidate, slots.shadow, slots.trial
    assert committed is not None
    named = [one for one in (committed, slots.previous, candidate, shadow) if one is not None]
    for one in named:
        assert slots.path(one).read_bytes() == DATA[one.version]
        assert one.cpu is None or slots.twin_path(one.cpu).read_bytes() == TWINS[one.version]
        golden = slots.golden_path(one)
        assert golden is not None
        assert golden.read_bytes() == GOLDEN
    assert committed.version == "v2" or slots.previous is None
    assert trial is None or (candidate is not None and candidate.id == trial.id)
    home = slots.path(committed).parents[2]
    assert not list(home.glob("*.damaged")), "no file is ever half written"
    assert _names(home / "releases") == {one.id for one in named}
    assert _names(home / "twins") == {one.cpu.id for one in named if one.cpu}
    rejected = slots.last_rejected
    found: list[object] = [
        _version(committed),
        _version(candidate),
        _version(shadow),
        rejected.version if rejected else None,
    ]
    found += [bool(candidate and candidate.cpu), trial.begun if trial else 0]
    download(slots, "v3")
    download_twin(slots, "v3")
    commit(slots)
    return found


def _version(release: Release | None) -> str | None:
    return release.version if release is not None else None


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def main(directory: Path, story: str, when: str, how: str, every: int) -> None:
    disk = LoopDisk(directory, 16) if how == "power" else None
    if disk is None:
        os.fsync = lambda fd: None  # noqa: ARG005  what a process has written outlives it
    with disk or nullcontext():
        home = disk.path if disk is not None else directory
        for step in itertools.count(1, every):
            prepare(home / str(step))
            ended = live(home / str(step), story, step, disk.cut_power if disk else lambda: None, after=when == "after")
            if disk is not None and not ended:
                disk.restart()
            sys.stdout.write(f"{json.dumps(check(home / str(step)))}\n")
            if ended:
                return
            shutil.rmtree(home / str(step))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4], int(sys.argv[5]) if sys.argv[5:] else 1)
