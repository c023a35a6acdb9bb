"""Which Edge TPUs are plugged in, and why one cannot be opened.

libedgetpu says `Failed to load delegate` for a missing, busy or forbidden device alike, so the reason is looked
up in sysfs: USB 1a6e:089a before the firmware is loaded, 18d1:9302 after it; PCIe devices are /dev/apex_N.
"""

import mmap
import os
from pathlib import Path

import msgspec

from edge_agent.inference.runtimes import LIBRARY

# Google's own build of 2021 (16.0) was made for TensorFlow 2.5; current runtimes crash with it.
GET_LIBRARY = (
    "install libedgetpu1-std in a build that fits the runtime: 16.0TF2.17.1 or later from "
    "https://github.com/feranick/libedgetpu/releases"
)
_LIBRARY_FOLDERS = ("usr/local/lib", "usr/lib", "usr/lib/*-linux-gnu*", "lib", "lib/*-linux-gnu*")
CUSTOM_OP = b"edgetpu-custom-op"
_USB_IDS = {("1a6e", "089a"), ("18d1", "9302")}


class Device(msgspec.Struct, frozen=True):
    """An Edge TPU as the kernel shows it. `node` is the device file that has to be opened."""

    bus: str
    name: str
    node: Path

    @property
    def accessible(self) -> bool:
        """Whether this process may open it."""
        return os.access(self.node, os.R_OK | os.W_OK)


def list_devices(root: Path = Path("/")) -> list[Device]:
    """Return the Edge TPUs that the kernel sees, PCIe first as libedgetpu tries them."""
    apex = [
        Device("pci", entry.name, root / "dev" / entry.name)
        for entry in sorted((root / "sys/class/apex").glob("apex_*"))
    ]
    usb = [_usb_device(entry, root) for entry in sorted((root / "sys/bus/usb/devices").glob("*")) if _is_usb(entry)]
    return apex + usb


def find_library(root: Path = Path("/")) -> str | None:
    """Return where the Edge TPU's library is installed, or None. The dynamic linker may know of more places."""
    found = (path for folder in _LIBRARY_FOLDERS for path in sorted(root.glob(f"{folder}/{LIBRARY}")))
    return next((str(path) for path in found), None)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""  # a device may go away while it is being read


def _is_usb(entry: Path) -> bool:
    return (_read(entry / "idVendor"), _read(entry / "idProduct")) in _USB_IDS


def _usb_device(entry: Path, root: Path) -> Device:
    bus, number = _read(entry / "busnum"), _read(entry / "devnum")
    node = root / "dev/bus/usb" / bus.zfill(3) / number.zfill(3)
    return Device("usb", entry.name, node)


def is_edgetpu_model(path: str) -> bool:
    """Tell whether the model file was compiled for the Edge TPU. Raises OSError when it cannot be read."""
    with Path(path).open("rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            return False
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(CUSTOM_OP) >= 0


def explain_failure(error: Exception, wanted: str, devices: list[Device]) -> str:
    """Say in words why the Edge TPU could not be opened, and what to do."""
    if isinstance(error, OSError) and "libusb" in str(error):
        return "libusb-1.0.so.0 is not installed; install the package libusb-1.0-0"
    if isinstance(error, OSError):
        return f"the Edge TPU's library cannot be loaded ({error}); {GET_LIBRARY}"
    if not devices:
        return "no Edge TPU is plugged in"
    bus, _, index = wanted.partition(":")
    matching = [device for device in devices if bus in {"", device.bus}]
    if not matching or (index.isdecimal() and int(index) >= len(matching)):
        seen = ", ".join(f"{device.bus} {device.name}" for device in devices)
        return f"there is no Edge TPU at {wanted!r}; there is {seen}"
    forbidden = [device for device in matching if not device.accessible]
    if forbidden:
        node = forbidden[0].node
        return f"no permission to open {node}; the user needs the group {_group(node)}"
    names = ", ".join(f"{device.bus} {device.name}" for device in matching)
    return f"{names} is plugged in but could not be opened; another process may hold it"


def _group(node: Path) -> str:
    try:
        return node.group()
    except (OSError, KeyError):
        return "apex" if "apex" in node.name else "plugdev"
