"""Builds the parts of /sys, /dev and /proc that tell of Edge TPUs, as a Linux kernel lays them out."""

import shutil
from pathlib import Path

ALIVE = {"status": "ALIVE", "is_device_owned": "0", "device_owner": "0", "temp": "54300", "trip_point0_temp": "84800"}


class Machine:
    """A machine whose kernel shows what the test puts into it, under the folder `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._numbers: dict[str, int] = {}
        for folder in ("sys/bus/usb/devices", "sys/bus/usb/drivers/usbfs", "sys/bus/pci/devices", "dev", "proc"):
            (root / folder).mkdir(parents=True)

    def usb(
        self,
        port: str,
        *,
        firmware: bool = True,
        speed: str = "5000",
        claimed: bool = False,
        ids: tuple[str, str] | None = None,
    ) -> Path:
        """Plug a stick into a port, or the same stick with other properties; returns its device file.

        Like the kernel's, numbers of USB devices are given out anew with each plug.
        """
        self.unplug(port)
        bus = port.partition("-")[0]
        number = self._numbers[bus] = self._numbers.get(bus, 3) + 1
        vendor, product = ids or (("18d1", "9302") if firmware else ("1a6e", "089a"))
        entry = self.root / "sys/bus/usb/devices" / port
        _fill(
            entry,
            {"idVendor": vendor, "idProduct": product, "busnum": bus, "devnum": str(number), "speed": speed},
        )
        interface = entry.with_name(f"{port}:1.0")
        _fill(interface, {"bInterfaceNumber": "00"})
        if claimed:
            (interface / "driver").symlink_to("../../drivers/usbfs")
        node = self.root / f"dev/bus/usb/{int(bus):03}/{number:03}"
        node.parent.mkdir(parents=True, exist_ok=True)
        node.touch()
        return node

    def unplug(self, port: str) -> None:
        """Take the stick out of its port, if there is one."""
        entry = self.root / "sys/bus/usb/devices" / port
        if entry.exists():
            bus, number = (int((entry / name).read_text()) for name in ("busnum", "devnum"))
            (self.root / f"dev/bus/usb/{bus:03}/{number:03}").unlink()
            shutil.rmtree(entry)
            shutil.rmtree(entry.with_name(f"{port}:1.0"))

    def pci(self, address: str, *, driver: str = "", ids: tuple[str, str] = ("0x1ac1", "0x089a")) -> Path:
        """Put a card into the machine, with or without a driver; returns its folder in sysfs."""
        entry = self.root / "sys/bus/pci/devices" / address
        _fill(entry, {"vendor": ids[0], "device": ids[1]})
        if driver:
            (entry / "driver").symlink_to(f"../../drivers/{driver}")
        return entry

    def apex(self, number: int, address: str, **attributes: str | None) -> Path:
        """Put a card into the machine that the apex driver has taken; returns its device file.

        `attributes` are files of /sys/class/apex/apex_N; None leaves one away.
        """
        card = self.pci(address, driver="apex")
        entry = self.root / f"sys/class/apex/apex_{number}"
        _fill(entry, {name: text for name, text in (ALIVE | attributes).items() if text is not None})
        (entry / "device").symlink_to(card)
        node = self.root / f"dev/apex_{number}"
        node.touch()
        return node

    def process(self, pid: int, command: str, *, parent: int = 1, opens: Path | None = None) -> None:
        """Start a process, as /proc shows it to whoever may look into it."""
        entry = self.root / f"proc/{pid}"
        (entry / "fd").mkdir(parents=True)
        (entry / "cmdline").write_bytes(command.replace(" ", "\0").encode() + b"\0")
        (entry / "stat").write_text(f"{pid} (a) name (here) S {parent} 1 1 0")
        (entry / "fd/0").symlink_to("/dev/null")
        if opens is not None:
            (entry / "fd/7").symlink_to(opens)


def _fill(folder: Path, attributes: dict[str, str]) -> None:
    folder.mkdir(parents=True)
    for name, text in attributes.items():
        (folder / name).write_text(f"{text}\n")
