"""Each step of the queue's work on its files fails in turn, or the process ends there: nothing may be lost by that.

The slow set, which leaves out no step, is in the system tests.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.standin.faultio import ROOT, environment
from tests.telemetry import faultio_child

MEMORY = Path("/dev/shm")


def sweep(library: Path, fault: str, times: int, *, stride: int, place: str) -> tuple[int, int]:
    """Let the child try the steps; returns how many of how many. `place` is its WHERE and its BEFORE."""
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as name:
        folder = Path(name)
        command = [sys.executable, faultio_child.__file__, name, fault, str(times), str(stride), *place.split()]
        child_environment = environment(library, folder)
        done = subprocess.run(command, env=child_environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    tried, _, total = done.stdout.split()
    return int(tried), int(total)


@pytest.mark.parametrize("fault", ["EIO", "ENOSPC", "SHORT", "CRASH"])
def test_a_fault_at_any_step_costs_no_event(faultio: Path, fault: str) -> None:
    tried, total = sweep(faultio, fault, 1, stride=4, place="runtime backlog")
    assert 10 < tried < total
