"""Each step of the queue's work on its files fails in turn, or the process ends there: nothing may be lost by that.

The slow set, which leaves out no step, is in the system tests.
"""

import errno
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from edge_agent.telemetry.queue import journal
from edge_agent.telemetry.queue.journal import JournalFile
from tests.standin.faultio import ROOT, environment
from tests.telemetry.queue import faultio_child, faultio_damage_child
from tests.telemetry.queue.queue_kit import Disk, drain, left_for_dead, lost, put, run, ticks

MEMORY = Path("/dev/shm")


def sweep(library: Path, fault: str, times: int, *, stride: int, place: str) -> tuple[int, int]:
    """Let each step fail in turn; returns how many were tried of how many. `place` is WHERE and BEFORE of the child."""
    return _sweep(library, faultio_child.__file__, fault, times, stride, *place.split())


def sweep_damage(library: Path, times: int, *, stride: int) -> tuple[int, int]:
    """Let each step of the replacement of a damaged file fail in turn."""
    return _sweep(library, faultio_damage_child.__file__, times, stride)


def _sweep(library: Path, child: str, *arguments: object) -> tuple[int, int]:
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as name:
        command = [sys.executable, child, name, *map(str, arguments)]
        files_fail = environment(library, Path(name))
        done = subprocess.run(command, env=files_fail, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    tried, _, total = done.stdout.split()
    return int(tried), int(total)


@pytest.mark.parametrize("fault", ["EIO", "ENOSPC", "SHORT", "CRASH"])
def test_a_fault_at_any_step_costs_no_event(faultio: Path, fault: str) -> None:
    tried, total = sweep(faultio, fault, 1, stride=4, place="runtime backlog")
    assert 10 < tried < total


def test_a_damaged_file_is_replaced_later_where_a_fault_has_interrupted_that(faultio: Path) -> None:
    tried, total = sweep_damage(faultio, 5, stride=10)
    assert 10 < tried < total


@pytest.mark.parametrize("failures", [3, 10**6], ids=["for a while", "for good"])
def test_a_journal_that_the_disk_does_not_give_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    """It is tried again for 200 ticks or so, and given up then: what is in the store must not wait for ever."""
    read, left = journal.read, [failures]

    def failing(number: int, path: Path) -> JournalFile:
        if left[0]:
            left[0] -= 1
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return read(number, path)

    async def body() -> None:
        disk = Disk(tmp_path)
        async with left_for_dead(disk.queue()) as queue:
            stored = put(queue, 50)
            await ticks(queue)
            journaled = put(queue, 50)
            copy = disk.copy()
        monkeypatch.setattr(journal, "read", failing)
        async with copy.queue(clock=lambda: 1_800_000_000.0) as queue:
            assert "Input/output error" in str(queue.trouble)
            new = put(queue, 10)
            await ticks(queue, 250)
            assert queue.trouble is None
            expected = stored + new if left[0] else stored + journaled + new
            assert await drain(queue) == expected

    run(body())


def test_a_kill_right_after_a_start_that_found_damage_does_not_forget_the_loss(tmp_path: Path) -> None:
    async def body() -> None:
        disk = Disk(tmp_path)
        async with disk.queue() as queue:
            events: list[bytes] = []
            for _ in range(100):
                events += put(queue, 50, noise=40)
                await ticks(queue)
        with disk.database.open("r+b") as file:
            file.seek(-3 * 4096, 2)
            file.write(os.urandom(3 * 4096))
        async with left_for_dead(disk.queue(boot_id="boot-2")) as queue:
            counted, depth = lost(queue), queue.depth
            assert counted["damaged"] == len(events) - depth > 0
        async with disk.queue(boot_id="boot-2") as queue:
            assert (lost(queue), queue.depth) == (counted, depth)

    run(body())
