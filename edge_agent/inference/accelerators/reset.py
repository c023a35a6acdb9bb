"""The USB reset: what is left to do for a stick that hangs, short of a hand that plugs it in again."""

import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path

from edge_agent.inference.accelerators.devices import Device, DeviceState, list_devices
from edge_agent.inference.accelerators.lock import DeviceLocked, lock_device

# _IO('U', 20) of linux/usbdevice_fs.h.
USBDEVFS_RESET = ord("U") << 8 | 20


class ResetFailed(Exception):
    """The device was not reset; the message says why."""


def reset_usb(name: str, *, root: Path = Path("/"), ioctl: Callable[[int, int], int] = fcntl.ioctl) -> None:
    """Reset the port of the Edge TPU with this stable name. Raises ResetFailed.

    Waits for the device, which can take seconds: not for an event loop. Afterwards the device may have lost its
    firmware; it then comes back as another one in the same port, under the same name. A device that any process has
    open is left alone.
    """
    device = next((device for device in list_devices(root) if device.name == name), None)
    if device is None:
        raise ResetFailed(f"{name} is not plugged in")
    if device.bus != "usb" or device.node is None:
        raise ResetFailed(f"{name} is not on USB; only switching the machine off and on resets it")
    if device.owner is not None:
        raise ResetFailed(f"{name} is not reset while {device.owner} has it open")
    try:
        lock = lock_device(name, root, share=False)
    except DeviceLocked as error:
        raise ResetFailed(str(error)) from error
    try:
        _reset(device, device.node, ioctl)
    finally:
        lock.release()


def _reset(device: Device, node: Path, ioctl: Callable[[int, int], int]) -> None:
    try:
        opened = os.open(node, os.O_WRONLY | os.O_CLOEXEC)
    except OSError as error:
        words = device.detail if device.state is DeviceState.NO_PERMISSION else f"cannot be opened: {error.strerror}"
        raise ResetFailed(f"{device.name}: {words}") from error
    try:
        ioctl(opened, USBDEVFS_RESET)
    except OSError as error:
        # It came back as another device, the one without firmware: this is what the reset is for.
        if error.errno != errno.ENODEV:
            raise ResetFailed(f"{device.name}: the USB reset failed: {error.strerror}") from error
    finally:
        os.close(opened)
