"""kill -9 at random moments: what was accepted is there afterwards, and nothing has the same id twice."""

import itertools
import random
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from edge_agent.telemetry.queue.queue import Queue
from tests.telemetry.queue.queue_kit import drain, lost, run

KILLS = 12
CHILD = Path(__file__).with_name("queue_child.py")


def killed_run(state: Path, runtime: Path | None, seed: int) -> dict[str, set[bytes]]:
    """Run the child, kill it in the middle of its work, and return the ids it has named, by verb."""
    command = [sys.executable, str(CHILD), str(state), str(runtime or "-"), str(seed)]
    lines: list[bytes] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=CHILD.parents[2]) as child:
        assert child.stdout is not None
        lines += itertools.islice(child.stdout, random.Random(seed).choice((1, 50, 500, 5000)))
        child.kill()
        lines += child.stdout
    assert child.returncode == -9
    said = defaultdict(set)
    for line in lines:
        if line.endswith(b"\n"):  # a line that the kill has cut says nothing
            verb, event = line.split()
            said[verb.decode()].add(event)
    return said


@pytest.mark.parametrize("with_runtime", [True, False], ids=["runtime directory", "state directory"])
def test_kill_loses_nothing(tmp_path: Path, with_runtime: bool) -> None:
    assert check_kills(tmp_path, KILLS, with_runtime=with_runtime) > KILLS


def check_kills(folder: Path, kills: int, *, with_runtime: bool) -> int:
    """Kill so many times in a row, fail where anything is lost, and return how many events were accepted."""
    runtime = folder / "run" if with_runtime else None
    if runtime is not None:
        runtime.mkdir()
    accepted: set[bytes] = set()
    taken: set[bytes] = set()
    acked: set[bytes] = set()
    for seed in range(kills):
        said = killed_run(folder / "state", runtime, seed)
        assert not accepted & said["accepted"], "an id was given out twice"
        assert not acked & said["taken"], "an acknowledged event came back"
        accepted |= said["accepted"]
        taken |= said["taken"]
        acked |= said["acked"]

    async def left() -> tuple[list[bytes], dict[str, int], int]:
        queue = Queue(
            folder / "state",
            runtime_directory=runtime,
            max_size=1 << 30,
            commit_interval=1,
            boot_id="boot-1",
        )
        async with queue:
            depth = queue.depth
            return await drain(queue), lost(queue), depth

    events, losses, depth = run(left())
    assert len(events) == len(set(events)) == depth
    assert accepted - taken <= set(events)
    assert not acked & set(events)
    assert losses == {}
    return len(accepted)
