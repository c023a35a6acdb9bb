"""Accelerometers, gyroscopes, converters and whatever else Linux drives as industrial I/O.

Values are (raw + offset) * scale in the units of the kernel's ABI: m/s², rad/s, Gauss, mV, mA, m°C, kPa, lux. Through
the buffer every scan of the device arrives; where it has none, the files of the channels are read one by one, which
does for slow sensors.
"""

import errno
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, MinLen, doc

from edge_agent.records import Sample
from edge_agent.sources.base import Pacer, Source, SourceError, describe
from edge_agent.sources.iio_device import Device
from edge_agent.sources.iio_readers import Buffered, Polled, Reader
from edge_agent.sources.windows import Windows

ROOT = Path("/")
POLL_RATE = 10.0
# A rate this close to the one asked for is that rate: drivers round.
_TOLERANCE = 0.01
_RANGE = 3
_SANDBOX = 'open the sandbox and the files to the service as sandbox.md shows, or set mode = "sysfs", which only reads'
_REMEDIES = {
    errno.EACCES: _SANDBOX,
    errno.EPERM: _SANDBOX,
    errno.EROFS: _SANDBOX,
    errno.EBUSY: "end the program that reads it (fuser -v tells which); a device gives its samples to one",
    errno.EINVAL: "the driver does not take that; a device that needs a trigger has trigger/current_trigger to be set",
}
_GONE = "see that it is connected and that its driver is loaded (dmesg tells)"


class IndustrialIO(Source):
    """Windows of scans: float32 arrays of shape (window, channels). Always live."""

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """Options in the [source] table."""

        device: Annotated[str, MinLen(1), doc("Its name, its label, or iio:deviceN.")]
        channels: Annotated[list[str], doc("The channels, for instance accel_x; without this all of them.")] = field(
            default_factory=list
        )
        window: Annotated[int, Ge(1), Le(100_000), doc("How many scans of the channels make a sample.")] = 1
        step: Annotated[
            Annotated[int, Ge(1), Le(100_000)] | None,
            doc("After how many scans the next sample begins; without this they do not overlap."),
        ] = None
        rate: Annotated[
            Annotated[float, Gt(0), Le(1_000_000)] | None,
            doc("Scans per second; without this, as the device is set, and 10 when files are read."),
        ] = None
        mode: Annotated[
            Literal["auto", "buffer", "sysfs"],
            doc(
                "Through its buffer, or file by file; auto is the buffer if it has one and needs no trigger or has it."
            ),
        ] = "auto"

        def check(self) -> None:
            """Look for the device and its channels. Raises ValueError, or OSError where there is none now."""
            device = Device.find(ROOT, self.device)
            device.select(self.channels, buffered=self.through_buffer(device))

        def through_buffer(self, device: Device) -> bool:
            """Whether the buffer is to be used. A refusal by the system is no reason to take another way, silently."""
            return self.mode == "buffer" or (self.mode == "auto" and device.buffered)

    def __init__(self, options: Options, *, root: Path | None = None, pacer: Pacer | None = None) -> None:
        super().__init__(options)
        self.live = True
        self._options = options
        self._root = root or ROOT
        self._pacer = pacer or Pacer(options.rate or POLL_RATE)
        self._reader: Reader | None = None

    def open(self, resume: str | None) -> None:  # noqa: ARG002  a live source goes on with what is now
        """Set up the device, and begin."""
        self.close()
        self.remarks.clear()
        step = self._options.step or self._options.window
        self._windows = Windows(self._options.window, step)
        try:
            device = Device.find(self._root, self._options.device)
            self._reader = self._start(device, step)
        except (OSError, ValueError) as error:
            raise self._trouble(error) from error

    def read(self, timeout: float) -> Sample | None:
        """Return the next window."""
        if self._reader is None:
            raise RuntimeError("the device is not open")
        give_up = self._pacer.now() + timeout
        while (window := self._windows.take()) is None:
            try:
                scans = self._reader.read(max(0.0, give_up - self._pacer.now()))
            except (OSError, ValueError) as error:
                raise self._trouble(error) from error
            if scans is None:
                return None
            self._windows.add(*scans)
            if self._reader.overrun:
                self._windows.interrupt()
                self.skip("the kernel's buffer was full: scans were lost, and with them the window they belong to")
        return Sample(*window)

    def close(self) -> None:
        """Stop the device, and leave it as it was."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def _start(self, device: Device, step: int) -> Reader:
        buffered = self._options.through_buffer(device)
        channels = device.select(self._options.channels, buffered=buffered)
        try:
            self._set_rate(device, channels[0], buffered=buffered)
            if buffered:
                return Buffered(device, channels, step)
            return Polled(device, channels, self._pacer)
        except BaseException:
            device.restore()
            raise

    def _set_rate(self, device: Device, channel: str, *, buffered: bool) -> None:
        wanted = self._options.rate
        if wanted is None:
            return
        path = device.rate_file(channel, triggered=buffered)
        if path is None:
            if buffered:
                self.remark(f"{device.folder.name} has no sampling_frequency; what gives its beat decides the rate")
            return
        offered = device.text(path.with_name(f"{path.name}_available"))
        try:
            device.write(path, _decimal(nearest(wanted, offered)))
        except OSError as error:
            if buffered or error.errno not in {errno.EACCES, errno.EPERM, errno.EROFS}:
                raise
            self.remark(f"the device itself goes on with {device.text(path)} scans per second: {describe(error)}")
            return
        real = float(device.text(path))
        if abs(real - wanted) > wanted * _TOLERANCE:
            self.remark(f"asked for {wanted:g} scans per second, {device.folder.name} makes {real:g}")

    def _trouble(self, error: OSError | ValueError) -> SourceError:
        name = self._options.device
        if not isinstance(error, OSError):
            return SourceError(f"{name}: {error}", "correct the options of the source")
        reason = describe(error) if error.errno else str(error)
        return SourceError(f"{name}: {reason}", _REMEDIES.get(error.errno or 0, _GONE))


def nearest(wanted: float, offered: str) -> float:
    """Return what comes nearest to a rate of those that the driver offers: "50 100 200", or "[least step most]"."""
    ranged = offered.startswith("[")
    try:
        rates = [float(rate) for rate in offered.strip("[]").split()]
    except ValueError:
        return wanted
    if ranged and len(rates) == _RANGE:
        least, step, most = rates
        steps = round((min(max(wanted, least), most) - least) / step) if step else 0
        return least + steps * step if step else min(max(wanted, least), most)
    return min(rates, key=lambda rate: abs(rate - wanted)) if rates and not ranged else wanted


def _decimal(rate: float) -> str:
    """Return it as the kernel reads numbers: without an exponent, and to a millionth, as drivers compare them."""
    return f"{rate:.6f}".rstrip("0").rstrip(".")
