"""The two ways to the values of an industrial I/O device: through its buffer, or file by file."""

import os
import select
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Protocol

import numpy as np

from edge_agent.sources.base import Pacer
from edge_agent.sources.iio_device import TIMESTAMP, Device, write
from edge_agent.sources.iio_scan import Layout, ScanType
from edge_agent.sources.windows import Scans, Times

_READ_BYTES = 65536
# So many windows' worth of scans fit the kernel's buffer, while the worker is busy.
_LENGTH_FACTOR = 4
_VALUE_BYTES = 256


class Reader(Protocol):
    """Scans of a device, from its making to `close`.

    `overrun` tells that scans were lost behind those that `read` has just returned.
    """

    overrun: bool

    def read(self, timeout: float) -> tuple[Scans, Times] | None:
        """Return what was measured, shape (scans, columns), and when; None for nothing in time.

        Raises OSError or ValueError.
        """

    def close(self) -> None:
        """Give back the device."""


class Buffered:
    """The kernel scans the channels at the device's or the trigger's beat, and delivers many scans at once."""

    def __init__(self, device: Device, channels: Sequence[str], watermark: int) -> None:
        """Set up the buffer; `watermark` scans wake us. Raises OSError or ValueError."""
        self.overrun = False
        self._device = device
        self._rest = b""
        # Whoever has the node open owns the buffer: only then may what another worker left behind be ended.
        self._descriptor = os.open(device.node, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            self._set_up(channels, watermark)
        except BaseException:
            self.close()
            raise
        self._poll = select.poll()
        self._poll.register(self._descriptor, select.POLLIN)

    def _set_up(self, channels: Sequence[str], watermark: int) -> None:
        device = self._device
        write(self._enable, "0")
        self._timed = device.element(TIMESTAMP, "en").exists() and self._on_our_clock()
        enabled = [name for name in device.scanned if name in channels]
        for name in [*device.scanned, TIMESTAMP]:
            path = device.element(name, "en")
            if path.exists():
                wanted = name in enabled or (name == TIMESTAMP and self._timed)
                device.write(path, "1" if wanted else "0")
        self._set_depth(watermark)
        order = [*enabled, *([TIMESTAMP] if self._timed else [])]
        self._layout = Layout([ScanType.parse(device.text(device.element(name, "type"))) for name in order])
        self._columns = [(order.index(name), *device.calibration(name)) for name in channels]
        device.write(self._enable, "1")

    @property
    def _enable(self) -> Path:
        return self._device.folder / "buffer" / "enable"

    def _on_our_clock(self) -> bool:
        """Whether the times are those of CLOCK_MONOTONIC; without them, the time of reading has to do."""
        path = self._device.folder / "current_timestamp_clock"
        if path.exists() and self._device.text(path) != "monotonic":
            with suppress(OSError):  # a driver with a clock of its own
                self._device.write(path, "monotonic")
        return self._device.text(path) == "monotonic"

    def _set_depth(self, watermark: int) -> None:
        """Let a whole window wake us, as far as the device lets us choose."""
        length, mark = (self._device.folder / "buffer" / name for name in ("length", "watermark"))
        wanted = watermark * _LENGTH_FACTOR
        if _writable(length) and int(self._device.text(length) or 0) < wanted:
            self._device.write(length, str(wanted))
        self._length = int(self._device.text(length) or 0)
        if _writable(mark):
            self._device.write(mark, str(min(watermark, self._length or watermark)))

    def read(self, timeout: float) -> tuple[Scans, Times] | None:
        """Return the scans that have come."""
        if not self._poll.poll(max(0.0, timeout) * 1000):
            return None
        size = self._layout.record_bytes
        self.overrun = self._is_full()
        try:
            data = os.read(self._descriptor, size * max(self._length, _READ_BYTES // size))
        except BlockingIOError:
            return None
        except OSError as error:
            error.filename = str(self._device.node)
            raise
        if not data:
            raise OSError(f"{self._device.node} has come to its end")
        data = self._rest + data
        whole = len(data) // size * size
        self._rest = data[whole:]
        return self._scans(data[:whole]) if whole else None

    def _is_full(self) -> bool:
        """Whether there was no room for new scans: the kernel then leaves them out, and tells nobody."""
        waiting = self._device.text(self._device.folder / "buffer" / "data_available")
        return bool(waiting) and 0 < self._length <= int(waiting)

    def _scans(self, data: bytes) -> tuple[Scans, Times]:
        raw = self._layout.decode(data)
        columns = [((raw[i] + offset) * scale).astype(np.float32) for i, offset, scale in self._columns]
        scans = np.concatenate(columns, axis=1)
        times = raw[-1][:, 0] if self._timed else np.full(len(scans), time.monotonic_ns(), np.int64)
        return scans, times

    def close(self) -> None:
        """Stop the buffer, and leave the device as it was."""
        with suppress(OSError):  # it was unplugged, or could not be set up
            write(self._enable, "0")
        self._device.restore()
        os.close(self._descriptor)


class Polled:
    """Reads each channel's file at a beat of our own. The channels of a scan are read one after the other."""

    def __init__(self, device: Device, channels: Sequence[str], pacer: Pacer) -> None:
        """Open the files. Raises OSError or ValueError."""
        self.overrun = False
        self._device = device
        self._pacer = pacer
        self._files: list[tuple[int, Path, float, float]] = []
        with ExitStack() as undo:
            undo.callback(self.close)
            for name in channels:
                path, raw = device.reading(name)
                offset, scale = device.calibration(name) if raw else (0.0, 1.0)
                self._files.append((os.open(path, os.O_RDONLY | os.O_CLOEXEC), path, offset, scale))
            undo.pop_all()

    def read(self, timeout: float) -> tuple[Scans, Times] | None:
        """Return one scan."""
        if not self._pacer.wait(timeout):
            return None
        self._pacer.step()
        values = [value for file in self._files for value in _read(*file)]
        return np.array([values], np.float32), np.array([time.monotonic_ns()], np.int64)

    def close(self) -> None:
        """Close the files, and leave the device as it was."""
        for descriptor, *_ in self._files:
            os.close(descriptor)
        self._files.clear()
        self._device.restore()


def _read(descriptor: int, path: Path, offset: float, scale: float) -> list[float]:
    try:
        text = os.pread(descriptor, _VALUE_BYTES, 0).decode(errors="replace")
    except OSError as error:
        error.filename = str(path)
        raise
    try:
        return [(float(value) + offset) * scale for value in text.strip("\0 \n").split()]
    except ValueError:
        raise ValueError(f"{path}: '{text.strip():.40}' is no number") from None


def _writable(path: Path) -> bool:
    """Whether the driver lets anybody write: the permission of the owner tells, whoever we are."""
    return path.exists() and bool(path.stat().st_mode & 0o200)
