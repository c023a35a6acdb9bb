"""What the kernel counts of processes."""

import math
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pids: Iterable[int]) -> float:
    """Processor time that the processes have used, user and system."""
    total = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / _TICKS


def memory_mib(pids: Iterable[int | str]) -> float:
    """Memory of the processes as if they were alone on the machine.

    A page of a file counts once for all of them together. PSS would split it with whatever else runs, a test server
    with the same libraries for instance, and flatter everybody.
    """
    anonymous = 0
    files: defaultdict[str, int] = defaultdict(int)
    for pid in pids:
        for file, resident, dirty in _mappings(Path(f"/proc/{pid}/smaps").read_text()):
            if file is None:
                anonymous += resident
                continue
            anonymous += dirty
            files[file] = max(files[file], resident - dirty)
    return (anonymous + sum(files.values())) / 1024


def p99(values: Sequence[float]) -> float:
    """Return what one value in a hundred exceeds."""
    return sorted(values)[min(len(values) - 1, math.ceil(len(values) * 0.99))]


def pss_mib(pid: int) -> float:
    """Memory of a process, its shared pages split between all that share them (proportional set size)."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")) / 1024


def _mappings(smaps: str) -> Iterator[tuple[str | None, int, int]]:
    """Yield the file and place that is mapped, or None, and in KiB what is resident and what is private and dirty."""
    file: str | None = None
    resident = 0
    for line in smaps.splitlines():
        fields = line.split()
        if not fields[0].endswith(":"):
            file = f"{fields[3]} {fields[4]} {fields[2]}" if fields[4] != "0" else None
        elif fields[0] == "Rss:":
            resident = int(fields[1])
        elif fields[0] == "Private_Dirty:":
            yield file, resident, int(fields[1])
