"""Which Edge TPUs there are, how each of them is, and why one cannot be opened.

All of it is read from sysfs and devtmpfs, without Google's library: that says `Failed to load delegate` for a missing,
busy or forbidden device alike. On USB an Edge TPU is 1a6e:089a until it has its firmware, and 18d1:9302 from then on.
On PCIe and on the Dev Board the drivers gasket and apex show it as /dev/apex_N, and in /sys/class/apex (their
gasket_core.c and apex_driver.c have the attributes).
"""

import enum
import mmap
import os
import re
from collections.abc import Sequence
from pathlib import Path

import msgspec

from edge_agent.inference.accelerators.owners import THIS_SERVICE, find_owner
from edge_agent.inference.runtime.runtimes import LIBRARY

# Google's own build of 2021 (16.0) was made for TensorFlow 2.5; current runtimes crash with it.
GET_LIBRARY = (
    "install libedgetpu1-std in a build that fits the runtime: 16.0TF2.17.1 or later from "
    "https://github.com/feranick/libedgetpu/releases"
)
_LIBRARY_FOLDERS = ("usr/local/lib", "usr/lib", "usr/lib/*-linux-gnu*", "lib", "lib/*-linux-gnu*")
CUSTOM_OP = "edgetpu-custom-op"
_UNRESOLVED = re.compile(r"unresolved custom op(?:: ([^\s.]+))?")
USB_WITHOUT_FIRMWARE = ("1a6e", "089a")
USB_WITH_FIRMWARE = ("18d1", "9302")
_PCI_ID = ("0x1ac1", "0x089a")
_PCI_ADDRESS = re.compile(r"[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
_SUPERSPEED = 5000
# A chip that does not answer any more reads as far below zero.
_COLDEST = -40.0
# Coral's own package is not kept up with kernels.
_GASKET = "from Linux 6.12 on that of https://github.com/feranick/gasket-driver"
_POWER_CYCLE = "switch the machine off and on; a restart alone does not cut its power"


class DeviceState(enum.StrEnum):
    """How an Edge TPU is."""

    ABSENT = "absent"
    NO_DRIVER = "no driver"
    NO_PERMISSION = "no permission"
    BUSY = "busy"
    NO_FIRMWARE = "no firmware yet"
    READY = "ready"
    THROTTLED = "throttled"
    STUCK = "stuck"


_USABLE = (DeviceState.READY, DeviceState.NO_FIRMWARE, DeviceState.THROTTLED)


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """An Edge TPU as the kernel shows it.

    `bus` is "usb" or "pci"; `address` the path of ports, as in "1-1.3", or the PCI address. `node` is the device file
    that has to be opened, None where there is none. `detail` says what it is and what to do, and is empty when all is
    well. `speed` is that of the USB link in Mbit/s, `temperature` is in °C (USB devices do not tell theirs), `owner`
    is who has it open, in words. `firmware` is whether it has its firmware.
    """

    bus: str
    address: str
    node: Path | None
    state: DeviceState
    detail: str = ""
    speed: int | None = None
    temperature: float | None = None
    owner: str | None = None
    firmware: bool = True

    @property
    def name(self) -> str:
        """The name that stays the same over restarts, and while it stays in its port: `[inference].device`."""
        return f"{self.bus}:{self.address}" if self.address else self.bus

    @property
    def usable(self) -> bool:
        """Whether a model can be put on it. One without firmware gets it then."""
        return self.state in _USABLE

    def __str__(self) -> str:
        return f"{self.name}: {self.detail}" if self.detail else f"{self.name} ({self.state})"


def list_devices(root: Path = Path("/")) -> list[Device]:
    """Return the Edge TPUs that the kernel sees, PCIe first; `root` is where /sys, /dev and /proc are looked for."""
    apex = [_apex(root / "sys/class/apex" / entry, root) for entry in _entries(root / "sys/class/apex")]
    driven = {device.address for device in apex}
    bare = [
        _without_driver(root / "sys/bus/pci/devices" / entry)
        for entry in _entries(root / "sys/bus/pci/devices")
        if entry not in driven and _is_edgetpu_on_pci(root / "sys/bus/pci/devices" / entry)
    ]
    usb = [_usb(root / "sys/bus/usb/devices" / entry, root) for entry in _entries(root / "sys/bus/usb/devices")]
    return [*apex, *bare, *(device for device in usb if device is not None)]


def matching(wanted: str, devices: Sequence[Device]) -> list[Device]:
    """Return the devices that `[inference].device` means; numbers count in the order of `devices`, as in libedgetpu."""
    bus, _, place = wanted.partition(":")
    of_bus = [device for device in devices if bus in {"", device.bus}]
    if not place:
        return of_bus
    if place.isdecimal():
        numbered = [device for device in of_bus if device.node is not None]
        return numbered[int(place) : int(place) + 1]
    return [device for device in of_bus if device.address == _full_address(bus, place)]


def absent(wanted: str, devices: Sequence[Device]) -> Device:
    """Return what is to be said of a device that the settings name, and that is not there."""
    bus, _, place = wanted.partition(":")
    there = ", ".join(device.name for device in devices)
    detail = f"it is not plugged in; there is {there}" if there else "no Edge TPU is plugged in"
    address = _full_address(bus, place)
    return Device(bus=bus, address=address, node=None, state=DeviceState.ABSENT, detail=detail)


def _full_address(bus: str, place: str) -> str:
    return f"0000:{place}" if bus == "pci" and place.count(":") == 1 else place


def _entries(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in folder.iterdir())
    except OSError:
        return []


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""  # a device may go away while it is being read


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


# -- USB


def _usb(entry: Path, root: Path) -> Device | None:
    ids = (_read(entry / "idVendor"), _read(entry / "idProduct"))
    bus, number = _read(entry / "busnum"), _read(entry / "devnum")
    if ids not in {USB_WITHOUT_FIRMWARE, USB_WITH_FIRMWARE} or not bus or not number:
        return None
    speed = _number(_read(entry / "speed"))
    device = Device(
        bus="usb",
        address=entry.name,
        node=root / "dev/bus/usb" / bus.zfill(3) / number.zfill(3),
        state=DeviceState.READY,
        speed=None if speed is None else int(speed),
        firmware=ids == USB_WITH_FIRMWARE,
    )
    if _is_claimed(entry):
        assert device.node is not None  # noqa: S101  set above
        return _owned(device, find_owner(device.name, device.node, root))
    return _judged(device)


def _is_claimed(entry: Path) -> bool:
    """Tell whether a program has claimed an interface of the USB device: the kernel then shows usbfs as its driver."""
    for interface in entry.parent.glob(f"{entry.name}:*"):
        try:
            if (interface / "driver").readlink().name == "usbfs":
                return True
        except OSError:  # no driver
            continue
    return False


# -- PCIe


def _apex(entry: Path, root: Path) -> Device:
    address = (entry / "device").resolve().name
    temperature = _number(_read(entry / "temp"))
    celsius = None if temperature is None else temperature / 1000
    device = Device(
        bus="pci",
        # Without the link it cannot be named in the settings, but told of.
        address=address if _PCI_ADDRESS.fullmatch(address) else entry.name,
        node=root / "dev" / entry.name,
        state=DeviceState.READY,
        # What a dead chip reads is no temperature.
        temperature=None if celsius is None or celsius < _COLDEST else celsius,
    )
    trouble = _trouble(entry, celsius)
    if trouble:
        return _with(device, DeviceState.STUCK, f"{trouble}; {_POWER_CYCLE}")
    if _read(entry / "is_device_owned") == "1":
        assert device.node is not None  # noqa: S101  set above
        owner = _number(_read(entry / "device_owner"))
        device = _owned(device, find_owner(device.name, device.node, root, told=int(owner or 0)))
    limit = _number(_read(entry / "trip_point0_temp"))
    if device.state is DeviceState.READY and celsius is not None and limit is not None and celsius >= limit / 1000:
        detail = f"it slows itself down from {limit / 1000:.0f} °C on; it needs better cooling"
        device = _with(device, DeviceState.THROTTLED, detail)
    return _judged(device)


def _trouble(entry: Path, celsius: float | None) -> str:
    try:
        status = (entry / "status").read_text(encoding="ascii").strip()
    except FileNotFoundError:  # a driver that does not tell
        status = "ALIVE"
    except (OSError, UnicodeDecodeError) as error:
        return f"it does not answer: its status cannot be read ({error})"
    if status != "ALIVE":
        return f"it does not work: its driver says {status}"
    return f"it does not answer, and reads {celsius:.0f} °C" if celsius is not None and celsius < _COLDEST else ""


def _is_edgetpu_on_pci(entry: Path) -> bool:
    return (_read(entry / "vendor"), _read(entry / "device")) == _PCI_ID


def _without_driver(entry: Path) -> Device:
    try:
        driver = (entry / "driver").readlink().name
    except OSError:
        driver = ""
    what = {
        "": f"no driver has taken it; install gasket-dkms ({_GASKET}), then run modprobe apex",
        "apex": "its driver, apex, could not start it; see dmesg, and switch the machine off and on",
    }
    detail = what.get(driver, f"the driver {driver} has it, most likely for a virtual machine; give it to apex")
    return Device(bus="pci", address=entry.name, node=None, state=DeviceState.NO_DRIVER, detail=detail)


# -- what is to be said of them


def _with(device: Device, state: DeviceState, detail: str) -> Device:
    return msgspec.structs.replace(device, state=state, detail=detail)


def _owned(device: Device, owner: str) -> Device:
    device = msgspec.structs.replace(device, owner=owner)
    if owner == THIS_SERVICE:
        return device
    return _with(
        device, DeviceState.BUSY, f"{owner} has it open; stop that, or name another Edge TPU in [inference].device"
    )


def _judged(device: Device) -> Device:
    if device.state is not DeviceState.READY:
        return device
    if forbidden := _forbidden(device):
        return _with(device, DeviceState.NO_PERMISSION, forbidden)
    if not device.firmware:
        return _with(device, DeviceState.NO_FIRMWARE, "it gets its firmware when a model is put on it")
    return msgspec.structs.replace(device, detail=slow_link(device))


def _forbidden(device: Device) -> str:
    """Say why this process may not open the device, or return an empty string."""
    node = device.node
    if node is None or os.access(node, os.R_OK | os.W_OK):
        return ""
    if not os.path.exists(node):  # noqa: PTH110  Path.exists raises where a folder may not be looked into
        return f"its device file {node} is not there; a container has to be given it"
    group = _group(node)
    if group == "root":
        return (
            f"no permission to open {node}: no udev rule gives it to a group; install the rules of the package "
            "edge-agent or libedgetpu1-std, then plug it in again"
        )
    return f"no permission to open {node}; the user needs the group {group}"


def _group(node: Path) -> str:
    try:
        return node.group()
    except (OSError, KeyError):
        return "apex" if "apex" in node.name else "plugdev"


def slow_link(device: Device) -> str:
    """Say that the device hangs on a slow USB link, or return an empty string. It counts once it has its firmware."""
    if device.speed is None or device.speed >= _SUPERSPEED or not device.firmware:
        return ""
    return f"at {device.speed} Mbit/s it is about 4 times slower than with USB 3; use a USB 3 port and cable"


# -- the library, and the model


def find_library(root: Path = Path("/")) -> str | None:
    """Return where the Edge TPU's library is installed, or None. The dynamic linker may know of more places."""
    found = (path for folder in _LIBRARY_FOLDERS for path in sorted(root.glob(f"{folder}/{LIBRARY}")))
    return next((str(path) for path in found), None)


def is_edgetpu_model(path: str) -> bool:
    """Tell whether the model file was compiled for the Edge TPU. Raises OSError when it cannot be read."""
    with Path(path).open("rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            return False
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(CUSTOM_OP.encode()) >= 0


def unresolved_op(error: str) -> str | None:
    """Return the custom operation that nobody runs, as a runtime's error tells it; None where it tells something else.

    If it is `CUSTOM_OP`, the library has not taken it over: it was built for another runtime. Then the error may leave
    the name out. Any other is the model's own, which this runtime does not know.
    """
    found = _UNRESOLVED.search(error)
    return None if found is None else found[1] or CUSTOM_OP


def explain_failure(error: Exception, wanted: str, devices: Sequence[Device]) -> str:
    """Say in words why the Edge TPU that `[inference].device` means could not be opened, and what to do."""
    if isinstance(error, OSError) and "libusb" in str(error):
        return "libusb-1.0.so.0 is not installed; install the package libusb-1.0-0"
    if isinstance(error, OSError):
        return f"the Edge TPU's library cannot be loaded ({error}); {GET_LIBRARY}"
    if not devices:
        return "no Edge TPU is plugged in"
    meant = matching(wanted, devices)
    if not meant:
        return f"there is no Edge TPU at {wanted!r}; there is {', '.join(device.name for device in devices)}"
    unusable = [str(device) for device in meant if not device.usable]
    if len(unusable) == len(meant):
        return "; ".join(unusable)
    names = ", ".join(device.name for device in meant if device.usable)
    return (
        f"{names} is there, but libedgetpu could not open it; plug it in again, or switch the machine off and on; "
        "a container or a sandbox may also keep its device file shut"
    )
