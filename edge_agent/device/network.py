"""The network interfaces of the device: those that are hardware, not those of containers, bridges and tunnels."""

import re

from edge_agent.device.kernelfiles import KernelFiles
from edge_agent.health import Link, NetworkInterface

_FOLDER = "sys/class/net"
_ETHERNET = 1  # ARPHRD_ETHER of linux/if_arp.h
# A line of /proc/net/wireless: name, status, quality, and the level in dBm (positive where a driver has other units).
_LEVEL = re.compile(r"^\s*(\S+):\s+\S+\s+\S+\s+(-\d+)\.?\s", re.MULTILINE)
_MOST = 16


def list_interfaces(files: KernelFiles) -> list[NetworkInterface]:
    """Return the interfaces that have a device of their own, at most 16."""
    names = [name for name in files.names(_FOLDER) if files.exists(f"{_FOLDER}/{name}/device")]
    levels = _levels(files) if names else {}
    return [_interface(files, name, levels.get(name)) for name in names[:_MOST]]


def _levels(files: KernelFiles) -> dict[str, int]:
    return {name: int(level) for name, level in _LEVEL.findall(files.text("proc/net/wireless") or "")}


def _interface(files: KernelFiles, name: str, level: int | None) -> NetworkInterface:
    folder = f"{_FOLDER}/{name}"
    kind = _kind(files, folder)
    # A modem's driver does not tell: Documentation/networking/operstates.rst has "unknown" for one that may be used.
    up = files.text(f"{folder}/operstate") in {"up", "unknown"}
    speed = files.number(f"{folder}/speed") if kind == "ethernet" and up else None
    figures = {
        "speed_mbps": speed if speed is not None and speed > 0 else None,
        "signal_dbm": level if up else None,
        "received_bytes": files.number(f"{folder}/statistics/rx_bytes"),
        "sent_bytes": files.number(f"{folder}/statistics/tx_bytes"),
    }
    known = {figure: value for figure, value in figures.items() if value is not None}
    return NetworkInterface(name=name, type=kind, up=up, **known)


def _kind(files: KernelFiles, folder: str) -> Link:
    if files.exists(f"{folder}/phy80211") or files.exists(f"{folder}/wireless"):
        return "wifi"
    if "DEVTYPE=wwan" in (files.text(f"{folder}/uevent") or ""):
        return "cellular"
    return "ethernet" if files.number(f"{folder}/type") == _ETHERNET else "other"
