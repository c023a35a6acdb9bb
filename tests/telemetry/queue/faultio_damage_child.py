"""Lets the replacement of a damaged file fail at each of its steps, and checks that it is made up for later.

    faultio_damage_child.py FOLDER TIMES STRIDE

TIMES steps fail in a row with EIO, beginning at each STRIDEth step. `tests/standin/faultio.c` must be preloaded with
FAULTIO_ROOT=FOLDER. Prints how many steps were tried, or ends with what went wrong at which.
"""

import asyncio
import ctypes
import errno
import os
import random
import shutil
import sys
from pathlib import Path

import structlog

from edge_agent.telemetry.queue.queue import Queue
from tests.telemetry.queue.faultio_child import arm, disarm
from tests.telemetry.queue.queue_kit import BIG, drain, end, lost, put, ticks

PAGE = 4096
DAMAGED_PAGES = 5
BACKOFF = 80  # ticks after which a store that failed has certainly been tried again


def a_queue(folder: Path) -> Queue:
    runtime = folder / "run"
    runtime.mkdir(parents=True, exist_ok=True)
    return Queue(folder / "state", runtime_directory=runtime, max_size=BIG, commit_interval=1, boot_id="boot")


async def leave_backlog(folder: Path) -> list[bytes]:
    events: list[bytes] = []
    async with a_queue(folder) as queue:
        for _ in range(60):
            events += put(queue, 50, noise=40)
            await ticks(queue)
    return events


def damage(database: Path) -> None:
    """Write over some pages in the middle."""
    handle = os.open(database, os.O_RDWR)
    first = os.fstat(handle).st_size // PAGE // 2
    for page in range(first, first + DAMAGED_PAGES):
        os.pwrite(handle, random.Random(page).randbytes(PAGE), page * PAGE)
    os.close(handle)


async def attempt(folder: Path, events: list[bytes], after: int, times: int) -> int:
    """Meet the damage with a fault on top, then without; returns how many steps there were."""
    queue = a_queue(folder)
    await queue.open()
    damage(folder / "state/queue.db")
    arm(after, times, errno.EIO)
    delivered = await drain(queue)
    steps: int = ctypes.CDLL(None).faultio_steps()
    disarm()
    await ticks(queue, BACKOFF)
    delivered += await drain(queue)
    await ticks(queue, 3)
    if queue.trouble is not None:
        sys.exit(f"step {after}: still in trouble: {queue.trouble}")
    counted = sum(lost(queue).values())
    if not set(delivered) <= set(events) or len(set(delivered)) != len(delivered) or queue.depth:
        sys.exit(f"step {after}: wrong events, or not all that are there")
    if len(delivered) + counted != len(events) or not counted:
        sys.exit(f"step {after}: {len(events) - len(delivered)} events are lost, {counted} are counted")
    end(queue)
    return steps


def main(folder: Path, times: int, stride: int) -> None:
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    events = asyncio.run(leave_backlog(folder / "base"))

    def try_step(after: int) -> int:
        place = folder / str(after)
        shutil.copytree(folder / "base", place)
        steps = asyncio.run(attempt(place, events, after, times))
        shutil.rmtree(place)
        return steps

    total = try_step(1 << 40)
    tried = range(0, total, stride)
    for after in tried:
        try_step(after)
    sys.stdout.write(f"{len(tried)} of {total}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
