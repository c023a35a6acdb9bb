"""A folder that looks like the /sys and /dev of a board with industrial I/O devices; a FIFO stands for the buffer."""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

# What the driver of an ADXL345 on Linux 6.12 shows, with a trigger set.
ACCELEROMETER = {
    "name": "adxl345",
    "in_accel_x_raw": "10",
    "in_accel_y_raw": "-20",
    "in_accel_z_raw": "256",
    "in_accel_scale": "0.038",
    "in_accel_y_offset": "2",
    "in_accel_sampling_frequency": "100",
    "in_accel_sampling_frequency_available": "50 100 200 400",
    "current_timestamp_clock": "realtime",
    "trigger/current_trigger": "adxl345-dev0",
    "buffer/enable": "0",
    "buffer/length": "2",
    "buffer/watermark": "1",
    "scan_elements/in_accel_x_en": "0",
    "scan_elements/in_accel_x_index": "0",
    "scan_elements/in_accel_x_type": "le:s13/16>>0",
    "scan_elements/in_accel_y_en": "0",
    "scan_elements/in_accel_y_index": "1",
    "scan_elements/in_accel_y_type": "le:s13/16>>0",
    "scan_elements/in_accel_z_en": "0",
    "scan_elements/in_accel_z_index": "2",
    "scan_elements/in_accel_z_type": "le:s13/16>>0",
    "scan_elements/in_timestamp_en": "0",
    "scan_elements/in_timestamp_index": "3",
    "scan_elements/in_timestamp_type": "le:s64/64>>0",
}
THERMOMETER = {"name": "bmp280", "in_temp_input": "21500", "in_pressure_raw": "100", "in_pressure_scale": "0.5"}

# Three axes, two bytes of padding, and the time.
RECORD = np.dtype({"names": ["axes", "time"], "formats": ["3<i2", "<i8"], "offsets": [0, 8], "itemsize": 16})


class Board:
    """A root folder with devices."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.devices = root / "sys/bus/iio/devices"
        self.devices.mkdir(parents=True)
        (root / "dev").mkdir()

    def add(self, number: int, files: Mapping[str, str], *, node: bool = True) -> Path:
        """Plug in a device, and return its folder."""
        folder = self.devices / f"iio:device{number}"
        self.put(folder, files)
        if node:
            os.mkfifo(self.root / "dev" / folder.name)
        return folder

    @staticmethod
    def put(folder: Path, files: Mapping[str, str]) -> None:
        """Write files as the kernel shows them, with a newline."""
        for name, text in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n")

    def deliver(self, data: bytes, number: int = 0) -> None:
        """Let the device deliver; somebody has to read it already."""
        descriptor = os.open(self.root / f"dev/iio:device{number}", os.O_WRONLY | os.O_NONBLOCK)
        os.write(descriptor, data)
        # Kept open by the reader's end alone, the FIFO would come to its end, which a device never does.
        self.unplug()
        self._writer = descriptor

    _writer: int | None = None

    def unplug(self) -> None:
        """End the stream."""
        if self._writer is not None:
            os.close(self._writer)
            self._writer = None


def state(folder: Path) -> dict[str, str]:
    """What stands in all files of a device."""
    return {str(path.relative_to(folder)): path.read_text().strip() for path in folder.rglob("*") if path.is_file()}


def records(axes: list[list[int]], first_ns: int = 1000) -> bytes:
    """What the accelerometer delivers when all is enabled: one scan each, a microsecond apart."""
    made = np.zeros(len(axes), RECORD)
    made["axes"] = axes
    made["time"] = first_ns + 1000 * np.arange(len(axes))
    return made.tobytes()
