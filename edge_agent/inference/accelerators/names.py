"""From the stable name of an Edge TPU to the number under which libedgetpu knows it at this moment, and back.

libedgetpu takes "usb:N" and "pci:N". N counts in the order in which it finds the devices: on USB those still without
firmware come first, and so a device has another number once it has been used; the rest of the order is that of libusb
and of readdir(3). It tells the order itself (`edgetpu_list_devices` of edgetpu_c.h), which opens nothing.
"""

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path

from edge_agent.inference.accelerators.devices import Device
from edge_agent.inference.runtime.runtimes import LIBRARY


class _Record(ctypes.Structure):
    # struct edgetpu_device; paths are as /sys/bus/usb/devices/1-1.3 and /dev/apex_0
    _fields_ = (("type", ctypes.c_int), ("path", ctypes.c_char_p))


def list_of_driver() -> list[str]:
    """Return the last parts of the paths that libedgetpu lists, in its order; empty where it cannot be asked.

    Raises OSError when the library cannot be loaded.
    """
    library = ctypes.CDLL(LIBRARY)
    try:
        list_devices, free_devices = library.edgetpu_list_devices, library.edgetpu_free_devices
    except AttributeError:  # a build without the C interface
        return []
    list_devices.restype = ctypes.POINTER(_Record)
    free_devices.argtypes = [ctypes.POINTER(_Record)]
    free_devices.restype = None
    count = ctypes.c_size_t()
    records = list_devices(ctypes.byref(count))
    if not records:
        return []
    paths = [os.fsdecode(records[number].path) for number in range(count.value)]
    free_devices(records)
    return [path.rpartition("/")[2] for path in paths]


def in_order_of_driver(devices: Sequence[Device], listed: Sequence[str]) -> list[Device]:
    """Return the devices in the order of libedgetpu: as it `listed` them, or by what is known of its order."""

    def rank(device: Device) -> tuple[int, bool, bool]:
        path = device.address if device.bus == "usb" or device.node is None else device.node.name
        return (listed.index(path) if path in listed else len(listed), device.bus == "usb", device.firmware)

    # PCIe first, whatever the library's order: this is how it looks for a device itself.
    return sorted(sorted(devices, key=rank), key=lambda device: device.bus == "usb")


def number_of(device: Device, ordered: Sequence[Device]) -> str:
    """Return what libedgetpu calls the device now: "usb:N" or "pci:N". `ordered`: as `in_order_of_driver` has it."""
    names = [other.name for other in ordered if other.bus == device.bus and other.node is not None]
    return f"{device.bus}:{names.index(device.name)}"


def opened_here(devices: Sequence[Device]) -> set[str]:
    """Return the names of the devices whose device file this process has open."""
    targets = set()
    for link in Path("/proc/self/fd").iterdir():
        try:
            targets.add(str(link.readlink()))
        except OSError:  # that of the listing itself
            continue
    return {device.name for device in devices if str(device.node) in targets}
