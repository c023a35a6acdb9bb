"""One process per Edge TPU, with real processes."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.inference.accelerators.lock import DeviceLock, DeviceLocked, holds_lock, lock_device, lock_holder
from tests.inference.conftest import ROOT

HOLD = """
import sys
from pathlib import Path
from edge_agent.inference.accelerators.lock import lock_device
lock = lock_device(sys.argv[1], Path(sys.argv[2]))
print("locked", flush=True)
sys.stdin.read()
"""


@contextmanager
def another_process_holds(name: str, root: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", HOLD, name, str(root)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "locked\n"
        try:
            yield child
        finally:
            child.kill()


def test_another_process_cannot_have_it_and_is_told_who_has(tmp_path: Path) -> None:
    with another_process_holds("usb:1-1", tmp_path) as child:
        with pytest.raises(DeviceLocked, match=rf"usb:1-1 is in use by process {child.pid}$") as raised:
            lock_device("usb:1-1", tmp_path)
        assert raised.value.pid == child.pid == lock_holder("usb:1-1", tmp_path)
        assert not holds_lock("usb:1-1", tmp_path)
        # Another device is another lock, and so is one in another tree.
        lock_device("usb:1-2", tmp_path).release()
        lock_device("usb:1-1", tmp_path / "x").release()
    assert lock_holder("usb:1-1", tmp_path) is None


def test_it_is_free_when_its_process_was_killed(tmp_path: Path) -> None:
    with another_process_holds("usb:1-1", tmp_path) as child:
        child.kill()
        child.wait()
        lock_device("usb:1-1", tmp_path).release()


def test_within_a_process_it_is_shared_until_the_last_share_is_released(tmp_path: Path) -> None:
    first, second = lock_device("usb:1-1", tmp_path), lock_device("usb:1-1", tmp_path)
    assert lock_holder("usb:1-1", tmp_path) == os.getpid()
    first.release()
    first.release()
    assert holds_lock("usb:1-1", tmp_path)
    with pytest.raises(DeviceLocked):
        lock_device("usb:1-1", tmp_path, share=False)
    second.release()
    assert not holds_lock("usb:1-1", tmp_path)
    assert lock_holder("usb:1-1", tmp_path) is None
    lock_device("usb:1-1", tmp_path, share=False).release()


def test_who_asks_too_often_gets_no_pid_until_the_holder_looks(tmp_path: Path) -> None:
    lock = lock_device("usb:1-1", tmp_path)
    try:
        answers = [lock_holder("usb:1-1", tmp_path) for _ in range(200)]
        assert answers[0] == os.getpid()
        assert answers[-1] == 0
        lock_device("usb:1-1", tmp_path).release()
        assert lock_holder("usb:1-1", tmp_path) == os.getpid()
    finally:
        lock.release()


def test_a_name_that_is_taken_without_listening_is_somebody_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = lock_device("usb:1-1", tmp_path)
    address = lock._address
    lock.release()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as squatter:
        squatter.bind(address)
        with pytest.raises(DeviceLocked, match="usb:1-1 is in use by another program") as raised:
            lock_device("usb:1-1", tmp_path)
        assert raised.value.pid == 0
    # What has nothing to do with the name is no lock of somebody else.
    monkeypatch.setattr("edge_agent.inference.accelerators.lock._PREFIX", "\0" + "x" * 200)
    with pytest.raises(OSError, match="AF_UNIX path too long"):
        lock_device("usb:1-1", tmp_path)


def test_the_lock_of_the_machine_itself_has_the_name_that_all_releases_share() -> None:
    # Two releases on one machine, an old one still running, must not miss each other.
    lock = lock_device("usb:99-9.9")
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as visitor:
            visitor.connect("\0edge-agent/edgetpu/usb:99-9.9")
    finally:
        lock.release()


@given(steps=st.lists(st.integers(0, 3), max_size=30))
def test_it_is_held_exactly_while_a_share_is_out(steps: list[int]) -> None:
    root = Path(f"/test-{os.getpid()}")
    shares: list[DeviceLock] = []
    try:
        for step in steps:
            if step == 0 or not shares:
                shares.append(lock_device("usb:1-1", root))
            else:
                shares.pop(step % len(shares)).release()
            assert holds_lock("usb:1-1", root) is bool(shares)
            assert (lock_holder("usb:1-1", root) is not None) is bool(shares)
    finally:
        for share in shares:
            share.release()
