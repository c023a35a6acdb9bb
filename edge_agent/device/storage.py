"""The file system that the state directory is on, and how worn the memory below it is."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from edge_agent.device.kernelfiles import KernelFiles

_SECTOR = 512  # also where the device has larger ones: Documentation/block/stat.rst of Linux
_WRITTEN = 6  # the place of "write sectors" in that file
# JESD84-B51, DEVICE_LIFE_TIME_EST_TYP_A and _B: 1 is up to 10 % used, 10 up to 100 %, 11 beyond; 0 is "not defined".
_PER_STEP, _FIRST_STEP, _LAST_STEP = 10, 1, 11


@dataclass(frozen=True)
class FileSystem:
    """Sizes in bytes. `free` is what is left for programs that are not root's, `device` the disk as "MAJOR:MINOR"."""

    total: int
    free: int
    read_only: bool
    device: str


def file_system(path: Path) -> FileSystem:
    """Ask for the file system that a path is on. Raises OSError."""
    figures, place = os.statvfs(path), path.stat().st_dev
    return FileSystem(
        total=figures.f_blocks * figures.f_frsize,
        free=figures.f_bavail * figures.f_frsize,
        read_only=bool(figures.f_flag & os.ST_RDONLY),
        device=f"{os.major(place)}:{os.minor(place)}",
    )


def written_bytes(files: KernelFiles, device: str) -> int | None:
    """Return how much all programs have written to a partition since the boot."""
    sectors = files.field(f"sys/dev/block/{device}/stat", _WRITTEN)
    return None if sectors is None else int(sectors) * _SECTOR


def used_life_percent(files: KernelFiles, device: str) -> int | None:
    """Return how much of its life the eMMC below a partition has behind it, in steps of 10; more than 100 is overdue.

    An SD card does not tell.
    """
    for folder in (f"sys/dev/block/{device}/device", f"sys/dev/block/{device}/../device"):
        steps = re.findall(r"\b0x[0-9a-fA-F]{2}\b", files.text(f"{folder}/life_time") or "")
        known = [step for step in (int(step, 16) for step in steps) if _FIRST_STEP <= step <= _LAST_STEP]
        if known:
            return max(known) * _PER_STEP
    return None
