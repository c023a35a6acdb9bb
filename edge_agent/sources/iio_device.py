"""One industrial I/O device as the kernel shows it: files in /sys and a node in /dev.

Documentation/ABI/testing/sysfs-bus-iio of Linux. A channel is called what stands between `in_` and `_raw`: accel_x,
voltage0, temp. What belongs to it, such as its scale, may be a file of its own, or one for all channels of its type.
"""

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from edge_agent.settings.wording import unknown

TIMESTAMP = "timestamp"
_READING = re.compile(r"in_(.+)_(?:raw|input)")
_SCANNED = re.compile(r"in_(.+)_en")


class Device:
    """Its files, and what was written to them; `restore` puts back what stood there before."""

    def __init__(self, folder: Path, root: Path) -> None:
        self.folder = folder
        self.node = root / "dev" / folder.name
        self._triggers = folder.parent
        self._before: dict[Path, str] = {}

    @classmethod
    def find(cls, root: Path, wanted: str) -> "Device":
        """Find a device by `iio:deviceN`, its name or its label.

        Raises FileNotFoundError when there is none now, ValueError when there are several of that name.
        """
        there = [cls(folder, root) for folder in sorted((root / "sys/bus/iio/devices").glob("iio:device*"))]
        found = [device for device in there if wanted in device.names]
        if len(found) > 1:
            names = " and ".join(device.folder.name for device in found)
            raise ValueError(f"{names} are both called {wanted}; name one of them")
        if not found:
            others = ", ".join("/".join(device.names) for device in there)
            raise FileNotFoundError(f"no industrial I/O device is called {wanted}; there are: {others or 'none'}")
        return found[0]

    @property
    def names(self) -> list[str]:
        """What it may be called: iio:deviceN, name, label."""
        given = (self.text(self.folder / attribute) for attribute in ("name", "label"))
        return [self.folder.name, *(name for name in given if name)]

    @property
    def buffered(self) -> bool:
        """Whether it can deliver through its buffer: it has one, and a trigger, or no need of one."""
        trigger = self.folder / "trigger" / "current_trigger"
        return bool(self.scanned) and self.node.exists() and (not trigger.exists() or bool(self.text(trigger)))

    @property
    def scanned(self) -> list[str]:
        """The channels of the buffer, without the time, in their order in a record."""
        found = _names(self.folder / "scan_elements", _SCANNED)
        return sorted(set(found) - {TIMESTAMP}, key=lambda name: int(self.text(self.element(name, "index")) or 0))

    @property
    def channels(self) -> list[str]:
        """All channels that can be read, those of the buffer first."""
        readable = sorted(set(_names(self.folder, _READING)) - {TIMESTAMP})
        scanned = self.scanned
        return scanned + [name for name in readable if name not in scanned]

    def select(self, wanted: list[str], *, buffered: bool) -> list[str]:
        """Return the channels to read, all for none wanted. Raises ValueError for one that is not there."""
        known = self.scanned if buffered else self.channels
        for name in wanted:
            if name not in known:
                raise ValueError(f"'{name}': {unknown(name, known, what='channel')}")
        if not known:
            raise ValueError(f"{self.folder.name} has no channel that can be read")
        return wanted or known

    def element(self, channel: str, what: str) -> Path:
        """Return a file of the channel's element in the buffer: en, index or type."""
        return self.folder / "scan_elements" / f"in_{channel}_{what}"

    def reading(self, channel: str) -> tuple[Path, bool]:
        """Return the file with the channel's value, and whether it is raw. Raises FileNotFoundError."""
        for what in ("raw", "input"):
            path = self.folder / f"in_{channel}_{what}"
            if path.exists():
                return path, what == "raw"
        raise FileNotFoundError(f"{self.folder.name}: '{channel}' can only be read through the buffer")

    def calibration(self, channel: str) -> tuple[float, float]:
        """Return offset and scale: the value is (raw + offset) * scale, in the unit of the ABI. Raises ValueError."""
        offset, scale = (self._number(channel, what) for what in ("offset", "scale"))
        return offset or 0.0, 1.0 if scale is None else scale

    def rate_file(self, channel: str, *, triggered: bool) -> Path | None:
        """Return the file that sets how often it measures: its own, or that of its trigger."""
        own = self._attribute(channel, "sampling_frequency")
        if own is not None or not triggered:
            return own
        current = self.text(self.folder / "trigger" / "current_trigger")
        for folder in self._triggers.glob("trigger*"):
            path = folder / "sampling_frequency"
            if current and self.text(folder / "name") == current and path.exists():
                return path
        return None

    def _number(self, channel: str, what: str) -> float | None:
        path = self._attribute(channel, what)
        text = self.text(path) if path is not None else ""
        if path is None or not text:
            return None
        try:
            return float(text)
        except ValueError:
            raise ValueError(f"{path}: '{text}' is no number") from None

    def _attribute(self, channel: str, what: str) -> Path | None:
        paths = (self.folder / f"in_{name}_{what}" for name in _shared_names(channel))
        common = (self.folder / f"in_{what}", self.folder / what)
        return next((path for path in (*paths, *common) if path.exists()), None)

    @staticmethod
    def text(path: Path) -> str:
        """Return what stands in the file, nothing if there is no such file. Raises OSError."""
        with suppress(FileNotFoundError):
            return path.read_text(encoding="utf-8", errors="replace").strip("\0 \n")
        return ""

    def write(self, path: Path, text: str) -> None:
        """Write to one of its files, and remember what stood there. Raises OSError with the file's name."""
        self._before.setdefault(path, self.text(path))
        write(path, text)

    def restore(self) -> None:
        """Put back what stood in the files, the last one first."""
        for path, text in reversed(self._before.items()):
            with suppress(OSError):  # it was unplugged: then there is nothing to put back
                write(path, text)
        self._before.clear()


def write(path: Path, text: str) -> None:
    """Write to a file of /sys. Raises OSError with the file's name, also when it is the driver that refuses."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
        try:
            os.write(descriptor, text.encode())
        finally:
            os.close(descriptor)
    except OSError as error:
        error.filename = str(path)
        raise


def _names(folder: Path, pattern: re.Pattern[str]) -> list[str]:
    with suppress(FileNotFoundError):
        return [found[1] for path in folder.iterdir() if (found := pattern.fullmatch(path.name))]
    return []


def _shared_names(channel: str) -> Iterator[str]:
    """Yield the names under which something of it may stand: accel_x, accel; or voltage0-voltage1, voltage-voltage."""
    while True:
        yield channel
        without_numbers = re.sub(r"\d+(?=-|$)", "", channel)
        if without_numbers != channel:
            yield without_numbers
        if "_" not in channel:
            return
        channel = channel.rpartition("_")[0]
