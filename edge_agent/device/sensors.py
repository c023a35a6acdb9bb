"""What the board tells of itself: heat, power, memory, disk, network. Only files are read, nothing is set.

Formats: Documentation/ABI/testing/sysfs-class-thermal, sysfs-class-hwmon and sysfs-class-power of Linux,
Documentation/hwmon/raspberrypi-hwmon.rst, proc(5), and apex_driver.c of the gasket driver. Temperatures are in
thousandths of a degree everywhere.

A Raspberry Pi's `get_throttled` is left alone: kernels since 4.19 answer a read of the file in sysfs with a warning and
a backtrace in the kernel's log, those of 2025 and later do not have it, and the firmware's mailbox is out of reach of
the service's sandbox. The driver `rpi_volt` tells of undervoltage (since it last asked the firmware, two seconds before
at most). That the firmware slows the processor down from 80 °C on is documented by its makers.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_agent.device.kernelfiles import KernelFiles
from edge_agent.device.network import list_interfaces
from edge_agent.device.storage import FileSystem, file_system, used_life_percent, written_bytes
from edge_agent.health import Battery, DeviceHealth

_THERMAL, _HWMON, _POWER, _APEX = "sys/class/thermal", "sys/class/hwmon", "sys/class/power_supply", "sys/class/apex"
# Of the processor: cpu-thermal (Raspberry Pi, i.MX 8M), cpu0-thermal, soc-thermal, x86_pkg_temp, bcm2835_thermal.
_CPU_ZONE = re.compile(r"cpu|soc|x86_pkg_temp|bcm2835_thermal|imx_thermal_zone")
_RASPBERRY_PI_LIMIT_C = 80.0
# An Edge TPU that does not answer any more reads as far below zero.
_COLDEST_C = -40.0
_MEMORY = re.compile(r"^(MemTotal|MemAvailable|VmRSS|Pss):\s+(\d+) kB$", re.MULTILINE)


@dataclass(frozen=True)
class Heat:
    """A temperature, and from which one on the part slows itself down, if that is known; in °C."""

    celsius: float
    limit: float | None


@dataclass(frozen=True)
class Readings:
    """What somebody may have to do something about. None: the device has no such sensor, or it does not answer."""

    undervoltage: bool | None = None
    throttled: bool | None = None
    cpu: Heat | None = None
    edgetpu: Heat | None = None
    disk: FileSystem | None = None
    battery: Battery | None = None


class Sensors:
    """The sensors of the board. All methods wait for the kernel, which a dying device can keep busy: use a thread.

    `root` is where /sys and /proc are looked for. `voltage_alarm` is the file that says whether the voltage is too low,
    as soon as it is found; its driver tells of changes (sysfs_notify).
    """

    def __init__(
        self,
        state_directory: Path,
        *,
        root: Path = Path("/"),
        disk: Callable[[Path], FileSystem] = file_system,
    ) -> None:
        self._state_directory = state_directory
        self._disk = disk
        self._files = KernelFiles(root)
        self.voltage_alarm: Path | None = None
        self._limits: dict[str, float | None] = {}
        self._board = self._files.text("proc/device-tree/model") or self._files.text("sys/class/dmi/id/product_name")

    def look(self) -> Readings:
        """Read what may need somebody: about a dozen files."""
        return Readings(
            undervoltage=self._undervoltage(),
            throttled=self._throttled(),
            cpu=self._cpu_heat(),
            edgetpu=self._edgetpu_heat(),
            disk=self._file_system(),
            battery=self._battery(),
        )

    def survey(self, processes: dict[str, int], *, shares: bool) -> DeviceHealth:
        """Read everything.

        `processes` are process numbers by "agent" and "worker". `shares`: also their shares of the memory, for which
        the kernel looks at each page: a millisecond for 100 MB on a PC, several on a small board.
        """
        now = self.look()
        figures: dict[str, Any] = {
            "board": self._board,
            "throttled": now.throttled,
            "undervoltage": now.undervoltage,
            "cpu_temperature_c": now.cpu and now.cpu.celsius,
            "edgetpu_temperature_c": now.edgetpu and now.edgetpu.celsius,
            "battery": now.battery,
            "network": list_interfaces(self._files) or None,
            **self._load(),
            **self._memory(processes, shares=shares),
            **self._storage(now.disk),
        }
        return DeviceHealth(**{name: value for name, value in figures.items() if value is not None})

    # -- power

    def _undervoltage(self) -> bool | None:
        for name in self._files.names(_HWMON):
            if self._files.text(f"{_HWMON}/{name}/name") == "rpi_volt":
                alarm = f"{_HWMON}/{name}/in0_lcrit_alarm"
                self.voltage_alarm = self._files.path(alarm)
                low = self._files.number(alarm)
                return None if low is None else bool(low)
        return None

    def _battery(self) -> Battery | None:
        for name in self._files.names(_POWER):
            supply = f"{_POWER}/{name}"
            # Of a mouse or a keyboard: scope "Device".
            if self._files.text(f"{supply}/type") != "Battery" or self._files.text(f"{supply}/scope") == "Device":
                continue
            charge = self._files.number(f"{supply}/capacity")
            if charge is None or self._files.text(f"{supply}/present") == "0":
                continue
            status = self._files.text(f"{supply}/status")
            known = {"status": status} if status and status != "Unknown" else {}
            return Battery(charge_percent=charge, **known)
        return None

    # -- heat

    def _cpu_heat(self) -> Heat | None:
        found = []
        for zone in self._zones():
            milli = self._files.number(f"{_THERMAL}/{zone}/temp")
            if milli is not None:
                found.append(Heat(milli / 1000, self._limit(zone)))
        return max(found, key=lambda heat: heat.celsius, default=None)

    def _zones(self) -> list[str]:
        """Return the thermal zones of the processor; when one is found by its name, not those of the whole chip."""
        kinds = {
            name: self._files.text(f"{_THERMAL}/{name}/type") or ""
            for name in self._files.names(_THERMAL)
            if name.startswith("thermal_zone")
        }
        zones = [name for name, kind in kinds.items() if _CPU_ZONE.match(kind)]
        return [name for name in zones if kinds[name].startswith("cpu")] or zones

    def _limit(self, zone: str) -> float | None:
        """Return from which temperature on the processor is slowed down. It does not change while Linux runs."""
        if zone not in self._limits:
            folder = f"{_THERMAL}/{zone}"
            passive = [
                milli / 1000
                for name in self._files.names(folder)
                if re.fullmatch(r"trip_point_\d+_type", name) and self._files.text(f"{folder}/{name}") == "passive"
                if (milli := self._files.number(f"{folder}/{name.removesuffix('type')}temp")) is not None and milli > 0
            ]
            if not passive and (self._board or "").startswith("Raspberry Pi"):
                passive = [_RASPBERRY_PI_LIMIT_C]
            self._limits[zone] = min(passive, default=None)
        return self._limits[zone]

    def _throttled(self) -> bool | None:
        """Tell whether Linux itself slows the processor down: "cpufreq-cpu0", in older kernels "thermal-cpufreq-0"."""
        states = [
            self._files.number(f"{_THERMAL}/{name}/cur_state")
            for name in self._files.names(_THERMAL)
            if name.startswith("cooling_device") and "cpufreq" in (self._files.text(f"{_THERMAL}/{name}/type") or "")
        ]
        known = [state for state in states if state is not None]
        return any(known) if known else None

    def _edgetpu_heat(self) -> Heat | None:
        found = []
        for name in self._files.names(_APEX):
            milli = self._files.number(f"{_APEX}/{name}/temp")
            limit = self._files.number(f"{_APEX}/{name}/trip_point0_temp")
            if milli is not None and milli / 1000 > _COLDEST_C:
                found.append(Heat(milli / 1000, None if limit is None else limit / 1000))
        return max(found, key=lambda heat: heat.celsius, default=None)

    # -- load, memory, disk

    def _load(self) -> dict[str, float | None]:
        return {
            "uptime_s": self._files.field("proc/uptime", 0),
            "load_5m": self._files.field("proc/loadavg", 1),
            "processors": _count(self._files.text("sys/devices/system/cpu/online") or "") or None,
        }

    def _memory(self, processes: dict[str, int], *, shares: bool) -> dict[str, int | None]:
        of_all = self._memory_in("proc/meminfo")
        figures = {
            "memory_total_bytes": of_all.get("MemTotal"),
            "memory_available_bytes": of_all.get("MemAvailable"),
        }
        for name, pid in processes.items():
            figures[f"{name}_rss_bytes"] = self._memory_in(f"proc/{pid}/status").get("VmRSS")
            if shares:
                figures[f"{name}_pss_bytes"] = self._memory_in(f"proc/{pid}/smaps_rollup").get("Pss")
        return figures

    def _memory_in(self, path: str) -> dict[str, int]:
        return {name: int(kilobytes) * 1024 for name, kilobytes in _MEMORY.findall(self._files.text(path) or "")}

    def _file_system(self) -> FileSystem | None:
        try:
            return self._disk(self._state_directory)
        except OSError:
            return None  # the queue, which writes there, says what is wrong with it

    def _storage(self, disk: FileSystem | None) -> dict[str, int | None]:
        if disk is None:
            return {}
        return {
            "disk_total_bytes": disk.total,
            "disk_free_bytes": disk.free,
            "disk_written_bytes": written_bytes(self._files, disk.device),
            "disk_life_used_percent": used_life_percent(self._files, disk.device),
        }


def _count(ranges: str) -> int:
    """Return how many numbers there are in a list such as "0-3" or "0,2-3"."""
    bounds = re.findall(r"(\d+)(?:-(\d+))?", ranges)
    return sum(int(last or first) - int(first) + 1 for first, last in bounds)
