"""What a newcomer does: clone, `make run`, Ctrl-C. With every Python that the project is for and the machine has."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from tests.system.conftest import ROOT, VERSIONS, find_python, fresh_clone

PATIENCE = 600.0
CTRL_C_LIMIT = 2.0

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]


@pytest.fixture
def demo(clone: tuple[Path, str]) -> Iterator[subprocess.Popen[str]]:
    """`make run` in the clone, as a terminal's foreground process group."""
    folder, python = clone
    process = subprocess.Popen(
        ["make", "run", f"PYTHON={python}"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    yield process
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def read_until(stream: IO[str], wanted: list[str]) -> str:
    """Read lines until each wanted text has come, in any order."""
    seen, missing, deadline = "", list(wanted), time.monotonic() + PATIENCE
    while missing:
        line = stream.readline()
        assert line, f"the output ended without {missing}:\n{seen}"
        assert time.monotonic() < deadline, f"no {missing} in time:\n{seen}"
        seen += line
        missing = [text for text in missing if text not in line]
    return seen


def test_make_run_shows_the_whole_pipeline(clone: tuple[Path, str], demo: subprocess.Popen[str]) -> None:
    assert demo.stdout is not None
    wanted = ["model in use", "now=normal", "now=warning", "now=failure", "alarm", "stop the machine!"]
    seen = read_until(demo.stdout, wanted)
    assert "accelerator=cpu" in seen
    assert "events.jsonl" in seen
    status = [str(clone[0] / ".venv/bin/edge-agent"), "status", "--state-dir", "build/demo"]
    told = subprocess.run(status, cwd=clone[0], capture_output=True, text=True, check=True).stdout
    assert "device demo, running for " in told

    pressed = time.monotonic()
    os.killpg(demo.pid, signal.SIGINT)
    rest = demo.stdout.read()
    demo.wait(PATIENCE)
    took = time.monotonic() - pressed
    assert "stopped" in rest
    assert f"were written to {clone[0]}/build/demo/events.jsonl; the last result:" in rest
    assert took < CTRL_C_LIMIT, f"Ctrl-C took {took:.1f} s:\n{rest}"

    lines = (clone[0] / "build/demo/events.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    results = [event for event in events if event["kind"] == "result"]
    assert {event["prediction"] for event in results} == {"normal", "warning", "failure"}
    numbers = sorted(int(event["event_id"].rpartition("/")[2]) for event in events)  # alarms come first
    assert numbers == list(range(1, len(numbers) + 1))
    assert any(event["kind"] == "alarm" for event in events)


def test_make_test_passes_on_a_fresh_clone_with_the_newest_python(tmp_path: Path) -> None:
    folder = fresh_clone(tmp_path)
    shared = ROOT.parent / "shared"
    if shared.is_dir():
        (tmp_path / "shared").symlink_to(shared)
    make = ["make", "test", f"PYTHON={find_python(VERSIONS[-1])}"]
    done = subprocess.run(make, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, done.stdout[-10000:]
