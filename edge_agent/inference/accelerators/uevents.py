"""Tells when an Edge TPU is plugged in, changes or goes away, so that nothing has to poll.

The kernel sends its events to group 1 of NETLINK_KOBJECT_UEVENT: "ACTION@DEVPATH", then KEY=VALUE, each ended by a zero
byte (lib/kobject_uevent.c). Once udev has applied its rules it sends the event again, to group 2, with a header of its
own (struct monitor_netlink_header of systemd). Both are wanted: a device that is gone is so at once, and one that has
come may be opened only after udev has given it to its group.
"""

import asyncio
import errno
import socket
import struct
from collections.abc import Callable
from pathlib import PurePosixPath

import msgspec

_NETLINK_KOBJECT_UEVENT = 15
_GROUPS = 0b11
_LARGEST = 64 * 1024
# prefix[8], magic (big endian), header_size, properties_off, properties_len (as on this machine)
_UDEV_PREFIX = b"libudev\0"
_UDEV_HEADER = struct.Struct("=8x4xIII")
# idVendor/idProduct/bcdDevice in hexadecimal, without leading zeros (usb_uevent of drivers/usb/core/driver.c).
_USB_PRODUCTS = ("1a6e/89a/", "18d1/9302/")
_PCI_ID = "1AC1:089A"
LOST = "lost"


class UeventsUnavailable(Exception):
    """The system's events cannot be had; the message says why. Whoever needs to know has to look by himself."""


class Uevent(msgspec.Struct, frozen=True):
    """Something happened to an Edge TPU: `action` is add, remove, change, bind or unbind, as the kernel has it.

    `name` is its stable name, where the event tells it. `settled` is whether udev has applied its rules: an added
    device may belong to root alone until then. The action "lost" stands for events that are missing: look at them all.
    """

    action: str
    name: str = ""
    settled: bool = False


def parse(message: bytes) -> tuple[dict[str, str], bool]:
    """Return the properties of an event, and whether it comes from udev; no properties when it is none."""
    from_udev = message.startswith(_UDEV_PREFIX)
    if from_udev:
        if len(message) < _UDEV_HEADER.size:
            return {}, True
        _, start, length = _UDEV_HEADER.unpack_from(message)
        message = message[start : start + length]
    fields = (field.partition(b"=") for field in message.split(b"\0"))
    properties = {
        name.decode(errors="replace"): value.decode(errors="replace") for name, found, value in fields if found
    }
    return properties, from_udev


def to_uevent(message: bytes) -> Uevent | None:
    """Return what a message of the socket says of an Edge TPU; None when it is about something else."""
    properties, settled = parse(message)
    action, path = properties.get("ACTION", ""), PurePosixPath(properties.get("DEVPATH", ""))
    subsystem = properties.get("SUBSYSTEM")
    if not action:
        return None
    if subsystem == "usb" and properties.get("DEVTYPE") == "usb_device":
        found = properties.get("PRODUCT", "").startswith(_USB_PRODUCTS)
        return Uevent(action, f"usb:{path.name}", settled) if found else None
    if subsystem == "pci" and properties.get("PCI_ID") == _PCI_ID:
        return Uevent(action, f"pci:{path.name}", settled)
    # /devices/PCI.../0000:01:00.0/apex/apex_0
    return Uevent(action, f"pci:{path.parent.parent.name}", settled) if subsystem == "apex" else None


class UeventListener:
    """Calls back for each event of an Edge TPU, from the event loop. `start` it inside one, and `stop` it."""

    def __init__(self, on_event: Callable[[Uevent], None]) -> None:
        self._on_event = on_event
        self._socket: socket.socket | None = None

    def start(self) -> None:
        """Listen from now on. Raises UeventsUnavailable."""
        self.listen_on(open_socket())

    def listen_on(self, opened: socket.socket) -> None:
        """Listen on a socket that gives one event for each datagram, and close it in the end."""
        opened.settimeout(0)
        self._socket = opened
        asyncio.get_running_loop().add_reader(opened, self._read)

    def stop(self) -> None:
        """Listen no more."""
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            self._socket = None

    def _read(self) -> None:
        while self._socket is not None:
            try:
                message = self._socket.recv(_LARGEST)
            except BlockingIOError:
                return
            except OSError as error:
                # More came than the socket, or the memory, could hold.
                if error.errno not in {errno.ENOBUFS, errno.ENOMEM}:
                    self.stop()
                    raise
                self._on_event(Uevent(LOST))
                continue
            if (event := to_uevent(message)) is not None:
                self._on_event(event)


def open_socket() -> socket.socket:
    """Return a socket that gets the events of the kernel and of udev. Raises UeventsUnavailable."""
    try:
        opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, _NETLINK_KOBJECT_UEVENT)
    except OSError as error:
        raise UeventsUnavailable(f"no socket for events of devices: {error.strerror}") from error
    try:
        opened.bind((0, _GROUPS))
    except OSError as error:
        opened.close()
        raise UeventsUnavailable(f"events of devices cannot be listened to: {error.strerror}") from error
    return opened
