"""Rolls out v2 and its twin over v1, and kills itself without warning at the n-th step that touches the disk's order.

Usage: slots_child.py DIRECTORY STEP before|after. Exits with 0 if it got through before the step came.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edge_agent.models.releases import describe
from edge_agent.models.slots import Slots

URL = "gs://bucket/m"
DATA = {version: version.encode() * 50_000 for version in ("v1", "v2", "v3")}
TWINS = {version: data[::-1] for version, data in DATA.items()}


def download(slots: Slots, version: str) -> None:
    data = DATA[version]
    remote = describe(URL, {"version": version}, generation="1", size=len(data), checksum=version)
    path = slots.begin(remote)
    path.write_bytes(data)
    slots.finish(remote, path)


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


def main(directory: Path, last_step: int, *, after: bool) -> None:
    steps = 0

    def dying(call: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **kwargs: Any) -> Any:
            nonlocal steps
            steps += 1
            if after:
                call(*args, **kwargs)
            if steps == last_step:
                os.kill(os.getpid(), signal.SIGKILL)
            return None if after else call(*args, **kwargs)

        return step

    slots = Slots(directory, URL)
    slots.open()
    for name in ("fsync", "replace", "rename", "rmdir", "unlink"):
        setattr(os, name, dying(getattr(os, name)))
    download(slots, "v2")
    download_twin(slots, "v2")
    commit(slots)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), after=sys.argv[3] == "after")
