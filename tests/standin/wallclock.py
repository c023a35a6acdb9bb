"""A wall clock under a test's control, for a real process: builds `wallclock.c` and sets its time."""

import struct
import subprocess
import time
from pathlib import Path

from tests.standin.build import compiler, why_not

__all__ = ["WallClock", "build", "why_not"]

SOURCE = Path(__file__).with_name("wallclock.c")
NOT_SET = 16_000_000
"""µs: what the kernel says of a clock that nobody has set, or somebody by hand."""
TENDED = 500
ASK_KERNEL = -1


def build(folder: Path) -> Path:
    """Build the library in this folder; returns its path. RuntimeError with what the compiler said."""
    library = folder / "wallclock.so"
    flags = ["-std=c11", "-O2", "-Wall", "-Wextra", "-shared", "-fPIC"]
    command = [str(compiler()), *flags, "-o", str(library), str(SOURCE), "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{SOURCE.name} cannot be built: {done.stderr}")
    return library


class WallClock:
    """The clock in the file `path`. It starts in 1970, as that of a board without a battery."""

    def __init__(self, path: Path, library: Path) -> None:
        self.environ = {"LD_PRELOAD": str(library), "WALLCLOCK": str(path)}
        self._path = path
        self.show(300.0, NOT_SET)

    def show(self, now: float, max_error: int) -> None:
        """Show the time `now` (seconds since the epoch) from now on."""
        self.move(now - time.time(), max_error)

    def move(self, by: float, max_error: int) -> None:
        """Be so many seconds ahead of this machine's clock."""
        content = struct.pack("=qq", int(by * 1e9), max_error)
        if not self._path.exists():
            self._path.write_bytes(content)
        with self._path.open("r+b") as file:  # in place: processes have mapped it
            file.write(content)
