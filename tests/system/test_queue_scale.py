"""The queue with a backlog of weeks: what it costs to open, and what damage leaves of it."""

import asyncio
import json
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edge_agent.telemetry.queue.queue import Queue
from tests.telemetry.queue import queue_open_child
from tests.telemetry.queue.queue_kit import drain, lost, put, run

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

MILLION = 1_000_000
GROUPS, EVENTS = 6_000, 20
# Share of the events that must survive so many flipped bits; at 500 pages that lead to many others are hit, too.
KEPT_AT = {5: 0.998, 50: 0.99, 500: 0.9}


def opened(state: Path, runtime: Path) -> dict[str, Any]:
    """Open the queue in a process of its own, and return what that cost."""
    command = [sys.executable, queue_open_child.__file__, str(state), str(runtime)]
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])
    found: dict[str, Any] = json.loads(answer.stdout)
    return found


def a_queue(state: Path, runtime: Path | None, boot_id: str = "boot-1") -> Queue:
    return Queue(state, runtime_directory=runtime, max_size=1 << 40, commit_interval=1, boot_id=boot_id)


def test_a_million_events_open_like_none(tmp_path: Path) -> None:
    """No figure may grow with the backlog: neither what is read at the start, nor the memory."""
    runtime = tmp_path / "run"
    runtime.mkdir()

    async def fill(count: int) -> Path:
        state = tmp_path / f"{count} events"
        async with a_queue(state, runtime) as queue:
            for _ in range(0, count, 10_000):
                put(queue, 10_000, size=300)
                await queue.tick()
        return state

    few, many = run(fill(10_000)), run(fill(MILLION))
    empty, full = opened(few, runtime), opened(many, runtime)
    assert (full["depth"], full["oldest"].rstrip(".").split("/")[1]) == (MILLION, "1")
    assert full["read_bytes"] <= empty["read_bytes"] + 100_000
    assert full["grown_kib"] <= empty["grown_kib"] + 1024
    assert full["grown_kib"] <= 20 * 1024


@pytest.fixture(scope="module")
def backlog(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[bytes]]:
    """A state directory with many groups, as hours offline leave them, and its events."""
    folder = tmp_path_factory.mktemp("backlog")
    runtime = folder / "run"
    runtime.mkdir()

    async def fill() -> list[bytes]:
        events: list[bytes] = []
        async with a_queue(folder / "state", runtime) as queue:
            for _ in range(GROUPS):
                events += put(queue, EVENTS, noise=100)
                await queue.tick()
                await queue.tick()
        return events

    return folder / "state", asyncio.run(fill())


@pytest.mark.parametrize("flips", KEPT_AT)
@pytest.mark.parametrize("seed", range(5))
def test_flipped_bits_cost_little_of_a_large_file(
    tmp_path: Path, backlog: tuple[Path, list[bytes]], flips: int, seed: int
) -> None:
    source, events = backlog
    state = tmp_path / "state"
    shutil.copytree(source, state)
    dice = random.Random(seed * 1000 + flips)
    with (state / "queue.db").open("r+b") as file:
        size = file.seek(0, 2)
        for _ in range(flips):
            position = dice.randrange(size)
            file.seek(position)
            (byte,) = file.read(1)
            file.seek(position)
            file.write(bytes([byte ^ 1 << dice.randrange(8)]))

    async def body() -> None:
        async with a_queue(state, None, "boot-2") as queue:
            delivered = await drain(queue)
            assert not set(delivered) - set(events), "an event that was never put"
            assert len(delivered) == len(set(delivered))
            assert sum(lost(queue).values()) == len(events) - len(delivered)
            assert len(delivered) >= KEPT_AT[flips] * len(events)
            assert (queue.depth, queue.trouble) == (0, None)

    run(body())
