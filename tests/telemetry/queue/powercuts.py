"""Cuts the power of a real file system under a queue, and checks what is left of the events."""

import itertools
import random
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

from edge_agent.telemetry.queue.queue import Queue
from tests.telemetry.loopdisk import LoopDisk
from tests.telemetry.queue.queue_kit import drain, lost, run

CHILD = Path(__file__).with_name("queue_power_child.py")
Said = dict[str, set[bytes]]


def cut_run(card: LoopDisk, runtime: Path | None, seed: int) -> Said:
    """Run the child, cut the power in the middle of its work, and return the ids it has named, by verb.

    What it says after the cut is nothing that anybody could have relied on, except which ids it gave out.
    """
    command = [sys.executable, str(CHILD), str(card.path / "state"), str(runtime or "-"), str(seed)]
    most = (50, 6000, 600, 15_000)[seed % 4]
    lines: list[bytes] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=CHILD.parents[2]) as child:
        assert child.stdout is not None
        lines += itertools.islice(child.stdout, random.Random(seed).randrange(most))
        card.cut_power()
        child.kill()
        lines += child.stdout
    assert child.returncode == -9
    card.restart()
    for path in runtime.iterdir() if runtime is not None else ():
        path.unlink()
    said: Said = defaultdict(set)
    for line in lines:
        if line.endswith(b"\n"):  # a line that the kill has cut says nothing
            verb, event = line.split()
            said[verb.decode()].add(event)
    return said


def check_power_cuts(folder: Path, cuts: int, *, with_runtime: bool) -> None:
    """Cut the power so many times in a row, and fail where more is lost than the youngest commit interval."""
    runtime = folder / "run" if with_runtime else None
    if runtime is not None:
        runtime.mkdir()
    total: Said = defaultdict(set)
    with LoopDisk(folder / "card", 96) as card:
        for seed in range(cuts):
            said = cut_run(card, runtime, seed)
            assert not total["accepted"] & said["accepted"], "an id was given out twice"
            for verb, names in said.items():
                total[verb] |= names
        events, losses, depth = run(_left(card.path / "state", runtime))
    ids = [event.split()[0] for event in events]
    assert len(ids) == len(set(ids)) == depth, "an event is there twice, or the depth is wrong"
    assert set(ids) <= total["accepted"], "an event that nobody has put"
    missing = total["kept"] - total["taken"] - set(ids)
    assert not missing, f"{len(missing)} events older than a commit interval are lost"
    assert len(total["kept"]) > len(total["accepted"]) / 10, "hardly anything was older than a commit interval"
    assert set(losses) <= {"rejected"}, losses


async def _left(state: Path, runtime: Path | None) -> tuple[list[bytes], dict[str, int], int]:
    queue = Queue(state, runtime_directory=runtime, max_size=1 << 30, commit_interval=1, boot_id="the last boot")
    async with queue:
        assert queue.trouble is None
        depth = queue.depth
        return await drain(queue), lost(queue), depth
