"""Edge TPUs in a machine that has none: the driver's stand-in as a package of Debian's kind, and a USB port.

    install_library(machine, build.build(folder), "16.0TF2.17.1-1")
    port = UsbPort(machine, "1-1.3")
    port.plug()

Real are the service's sandbox, the package, the dynamic linker, the messages of the kernel and of udev on their netlink
socket, and the rights of the device file. The device file itself is an ordinary file, so neither `DeviceAllow=` nor a
USB reset can be seen at work.
"""

import subprocess
from pathlib import Path

from tests.standin import sysfs
from tests.system.machine import Machine

PACKAGE = "libedgetpu1-std"
LIBRARY = "/usr/lib/x86_64-linux-gnu/libedgetpu.so.1"
_CONTROL = """Package: {package}
Version: {version}
Architecture: amd64
Depends: libc6, libusb-1.0-0
Maintainer: nobody <nobody@example.com>
Description: stand-in for the driver of the Edge TPU
"""
# As the real package has it, by way of debhelper.
_TRIGGERS = "activate-noawait ldconfig\n"
_KERNEL = "/srv/kernel"
# What the stand-in opens: a link to the device file, which has another name each time.
STICK = "/srv/stick"
# Argument: ACTION@DEVPATH of a stick. The first message is the kernel's, to group 1, the second that of udev, which has
# given the device to its group by then, to group 2 (struct monitor_netlink_header of systemd).
_EVENT = """
import os, shutil, socket, struct, sys
from pathlib import Path
event, node = sys.argv[1:]
action, _, path = event.partition("@")
fields = f"ACTION={action}|DEVPATH={path}|SUBSYSTEM=usb|DEVTYPE=usb_device|PRODUCT=18d1/9302/100|".replace("|", "\\0")
with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 15) as netlink:
    netlink.bind((0, 0))
    netlink.sendto(f"{event}\\0{fields}".encode(), (0, 1))
    if node:
        shutil.chown(node, "root", "plugdev")
        os.chmod(node, 0o664)
    header = struct.pack("=8sIIIIIIII", b"libudev", 0xCAFE1DEA, 40, 40, len(fields), 0, 0, 0, 0)
    netlink.sendto(header + fields.encode(), (0, 2))
"""


def install_library(machine: Machine, library: Path, version: str) -> None:
    """Install the stand-in as the package libedgetpu1-std of this version, or put it in the place of another one."""
    tree = library.with_name(f"{PACKAGE}-{version}")
    target = tree / LIBRARY[1:]
    target.parent.mkdir(parents=True)
    target.write_bytes(library.read_bytes())
    (tree / "DEBIAN").mkdir()
    (tree / "DEBIAN/control").write_text(_CONTROL.format(package=PACKAGE, version=version))
    (tree / "DEBIAN/triggers").write_text(_TRIGGERS)
    deb = tree.with_suffix(".deb")
    subprocess.run(["dpkg-deb", "-Znone", "--root-owner-group", "--build", tree, deb], check=True, capture_output=True)
    machine.copy_in(deb, "/root/libedgetpu.deb")
    machine.run("dpkg", "--install", "/root/libedgetpu.deb")


class UsbPort:
    """A USB port of the machine, empty at first: what is plugged in is shown below /sys and /dev, and announced.

    Make it before the service starts, whose namespace has to get the mounts.
    """

    def __init__(self, machine: Machine, port: str) -> None:
        self._machine = machine
        self._port = port
        self._kernel = sysfs.Machine(machine.root / _KERNEL[1:])
        machine.run(f"mkdir -p {_KERNEL}/dev/bus /dev/bus && mount --bind {_KERNEL}/dev/bus /dev/bus")
        machine.run(f"mount --bind {_KERNEL}/sys/bus /sys/bus")

    @property
    def name(self) -> str:
        """The name of what is plugged in, in edge-agent's words."""
        return f"usb:{self._port}"

    def plug(self) -> None:
        """Plug in a stick that has its firmware. It is root's alone until udev has seen it."""
        node = self._kernel.usb(self._port)
        path = f"/dev/{node.relative_to(self._kernel.root / 'dev')}"
        self._machine.run("ln", "-sfn", path, STICK)
        self._announce("add", path)

    def unplug(self) -> None:
        """Take it out."""
        self._kernel.unplug(self._port)
        self._announce("remove", "")

    def _announce(self, action: str, node: str) -> None:
        event = f"{action}@/devices/platform/usb/usb1/1-1/{self._port}"
        self._machine.run("python3", "-I", "-c", _EVENT, event, node)
