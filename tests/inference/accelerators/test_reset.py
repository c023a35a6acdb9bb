"""The USB reset."""

import errno
import os
from pathlib import Path

import pytest

from edge_agent.inference.accelerators.lock import holds_lock, lock_device, lock_holder
from edge_agent.inference.accelerators.reset import USBDEVFS_RESET, ResetFailed, reset_usb
from tests.standin.sysfs import Machine


class Kernel:
    """Takes the place of ioctl(2). Notes what is reset, and answers as it is told."""

    def __init__(self, root: Path, answer: int = 0) -> None:
        self.resets: list[str] = []
        self._root = root
        self._answer = answer

    def ioctl(self, opened: int, request: int) -> int:
        assert request == USBDEVFS_RESET
        assert holds_lock("usb:1-1", self._root)
        self.resets.append(os.readlink(f"/proc/self/fd/{opened}"))  # noqa: PTH115
        if self._answer:
            raise OSError(self._answer, os.strerror(self._answer))
        return 0


def reason(name: str, root: Path, kernel: Kernel) -> str:
    with pytest.raises(ResetFailed) as raised:
        reset_usb(name, root=root, ioctl=kernel.ioctl)
    assert kernel.resets == [] or kernel._answer
    return str(raised.value)


def test_the_number_of_the_call() -> None:
    assert USBDEVFS_RESET == 0x5514


def test_a_stick_is_reset_and_let_go(machine: Machine) -> None:
    node, kernel = machine.usb("1-1"), Kernel(machine.root)
    machine.usb("1-2")
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    reset_usb("usb:1-1", root=machine.root, ioctl=kernel.ioctl)
    assert kernel.resets == [str(node)]
    assert lock_holder("usb:1-1", machine.root) is None
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_a_stick_that_loses_its_firmware_is_reset(machine: Machine) -> None:
    machine.usb("1-1")
    reset_usb("usb:1-1", root=machine.root, ioctl=Kernel(machine.root, errno.ENODEV).ioctl)


def test_a_reset_that_fails_is_told_of(machine: Machine) -> None:
    machine.usb("1-1")
    kernel = Kernel(machine.root, errno.EIO)
    assert reason("usb:1-1", machine.root, kernel) == "usb:1-1: the USB reset failed: Input/output error"
    assert lock_holder("usb:1-1", machine.root) is None


def test_what_somebody_has_is_left_alone(machine: Machine) -> None:
    kernel = Kernel(machine.root)
    machine.usb("1-1")
    lock = lock_device("usb:1-1", machine.root)
    told = reason("usb:1-1", machine.root, kernel)
    assert told == f"usb:1-1 is in use by process {os.getpid()}"
    lock.release()
    machine.process(812, "frigate", opens=machine.usb("1-1", claimed=True))
    assert reason("usb:1-1", machine.root, kernel) == ("usb:1-1 is not reset while process 812 (frigate) has it open")


def test_what_cannot_be_reset_is_told_of(machine: Machine) -> None:
    kernel = Kernel(machine.root)
    machine.apex(0, "0000:01:00.0")
    assert reason("usb:1-1", machine.root, kernel) == "usb:1-1 is not plugged in"
    assert reason("pci:0000:01:00.0", machine.root, kernel).startswith("pci:0000:01:00.0 is not on USB; ")


def test_without_permission_it_says_who_has_it(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    node = machine.usb("1-1")
    node.unlink()
    assert reason("usb:1-1", machine.root, Kernel(machine.root)) == (
        f"usb:1-1: its device file {node} is not there; a container has to be given it"
    )
    monkeypatch.setattr("os.access", lambda *_: True)
    assert reason("usb:1-1", machine.root, Kernel(machine.root)) == (
        "usb:1-1: cannot be opened: No such file or directory"
    )


def test_the_real_call_on_what_is_no_usb_device(machine: Machine) -> None:
    machine.usb("1-1")
    with pytest.raises(ResetFailed, match="usb:1-1: the USB reset failed: Inappropriate ioctl for device"):
        reset_usb("usb:1-1", root=machine.root)
