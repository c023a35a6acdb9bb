"""Asks the system whether the network, or somebody else who knows, has set the clock.

- systemd-timesyncd makes a file when it has set the clock; the file is gone after a boot.
- The kernel keeps the greatest error that the clock may have. It is 16 s for a clock that nobody has set, or that was
  set by hand, and grows to it within nine hours when nobody tends the clock any more (adjtimex(2)). STA_UNSYNC would
  not do, as chrony leaves it on unless it may also set the clock of the board (rtcsync).
- A sandbox may forbid to ask the kernel (`ProtectClock=`). systemd-timedated then asks in our place, over D-Bus.
"""

import asyncio
import contextlib
import ctypes
from collections.abc import Sequence
from pathlib import Path

_TIMESYNCD_FILE = "run/systemd/timesync/synchronized"
_UNSET_US = 16_000_000
_TIMEDATECTL = ("timedatectl", "show", "--property=NTPSynchronized", "--value")
_PATIENCE = 10.0


class TimeService:
    """Three ways to ask. Each says yes, no, or None for want of an answer. `root` and `command` are for tests."""

    def __init__(self, *, root: Path = Path("/"), command: Sequence[str] = _TIMEDATECTL) -> None:
        self._file = root / _TIMESYNCD_FILE
        self._command = command

    def timesyncd(self) -> bool:
        """Whether systemd-timesyncd has set the clock since the boot; others may have moved it since."""
        return self._file.exists()

    def kernel(self) -> bool | None:
        """Whether somebody tends the clock now."""
        error = kernel_max_error()
        return None if error is None else error < _UNSET_US

    async def timedated(self) -> bool | None:
        """The same by way of D-Bus. It costs a process or two, so ask rarely."""
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
            )
        except OSError:  # a system without systemd, or no process to be had
            return None
        try:
            async with asyncio.timeout(_PATIENCE):
                answer, _ = await process.communicate()
        except TimeoutError:
            return None
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        return {b"yes": True, b"no": False}.get(answer.strip())


class _Timex(ctypes.Structure):
    """The start of `struct timex`, and room for the rest of it on any machine; see adjtimex(2)."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("rest", ctypes.c_byte * 256),
    )


def kernel_max_error() -> int | None:
    """How wrong the kernel thinks the clock is at most, in µs; None where a sandbox forbids to ask."""
    answer = _Timex(modes=0)  # 0: change nothing, which needs no privilege
    status: int = ctypes.CDLL(None).adjtimex(ctypes.byref(answer))
    maximum: int = answer.maxerror
    return None if status == -1 else maximum
