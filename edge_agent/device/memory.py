"""How much memory this process may still take before the kernel ends one of its group, or of all processes.

Read are MemAvailable of /proc/meminfo (proc(5)), and for the control group of this process and each one above it the
limits memory.max and memory.high against memory.current, less the file pages that the kernel would give up first
(inactive_file of memory.stat; Documentation/admin-guide/cgroup-v2.rst). Control groups of version 1 are not read.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from edge_agent.device.kernelfiles import KernelFiles

_MEMINFO, _OWN_GROUP, _GROUPS = "proc/meminfo", "proc/self/cgroup", "sys/fs/cgroup"
_AVAILABLE = re.compile(r"^MemAvailable:\s+(\d+) kB$", re.MULTILINE)
_RECLAIMABLE = re.compile(r"^inactive_file (\d+)$", re.MULTILINE)
_OWN = re.compile(r"^0::(/.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Memory:
    """`available` bytes; `source` is the file that says so."""

    available: int
    source: str


def available_memory(files: KernelFiles | None = None) -> Memory | None:
    """Return the tightest of all limits, or None where the kernel tells of none. Waits for the kernel."""
    return min(_limits(files or KernelFiles()), key=lambda each: each.available, default=None)


def _limits(files: KernelFiles) -> Iterator[Memory]:
    if found := _AVAILABLE.search(files.text(_MEMINFO) or ""):
        yield Memory(int(found[1]) * 1024, str(Path("/") / _MEMINFO))
    if own := _OWN.search(files.text(_OWN_GROUP) or ""):
        group = PurePosixPath(own[1].lstrip("/"))
        for each in (group, *group.parents):
            yield from _limits_of(files, f"{_GROUPS}/{each}")


def _limits_of(files: KernelFiles, group: str) -> Iterator[Memory]:
    used = files.text(f"{group}/memory.current")
    if used is None or not used.isdecimal():
        return
    spare = _RECLAIMABLE.search(files.text(f"{group}/memory.stat") or "")
    for name in ("memory.max", "memory.high"):
        limit = files.text(f"{group}/{name}")
        if limit is not None and limit.isdecimal():  # "max" is none
            left = int(limit) - int(used) + (int(spare[1]) if spare else 0)
            yield Memory(max(0, left), f"/{group}/{name}")
