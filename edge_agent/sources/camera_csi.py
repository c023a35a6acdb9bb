"""Cameras on the Raspberry Pi's own connector, through picamera2 of Raspberry Pi OS.

The pictures are scaled by the Pi's image processor, which crops what it cannot fit: so they keep the proportions of
the whole picture, are just large enough for the model, and the rest is left to whoever feeds the model.
"""

import time
from math import ceil
from typing import Any

from edge_agent.records import Sample
from edge_agent.sources.base import Pacer, SourceError
from edge_agent.sources.camera_address import Address, Kind
from edge_agent.sources.video import Wanted
from edge_agent.sources.video_errors import silent

NEEDED = "a CSI camera needs picamera2, which Raspberry Pi OS has: apt install python3-picamera2"
# What picamera2 calls by the order of the bytes in a little-endian word: the array has red first.
RGB = "BGR888"

Size = tuple[int, int]


class CsiCamera:
    """An open CSI camera; `size` is the picture that was asked for, or None: all that the sensor sees."""

    def __init__(self, number: int, size: Size | None, rate: float, timeout: float) -> None:
        self._address = Address(Kind.CSI, str(number))
        self._timeout = timeout
        self._pacer = Pacer(rate)
        self._camera = self._acquire(number)
        self._size: Size = size or tuple(self._camera.sensor_resolution)
        # None until it runs; then the size the image processor makes.
        self._running: Size | None = None
        self._job: Any = None
        self._newest = time.monotonic()

    def read(self, timeout: float, wanted: Wanted | None) -> Sample | None:
        """Return the next picture. Raises SourceError."""
        give_up = time.monotonic() + timeout
        if not self._pacer.wait(timeout):
            return None
        size = scaled(self._size, wanted)
        if size != self._running:
            self._start(size)
        self._job = self._job or self._asked(self._camera.capture_request, wait=False)
        try:
            request = self._asked(self._job.get_result, timeout=max(0.0, give_up - time.monotonic()))
        except TimeoutError:
            if time.monotonic() - self._newest >= self._timeout:
                raise silent(self._address, self._timeout) from None
            return None
        self._job = None
        self._newest = time.monotonic()
        try:
            pixels, metadata = request.make_array("main"), request.get_metadata()
        finally:
            request.release()
        self._pacer.step()
        return Sample(pixels, _captured_ns(metadata), None, None if size == self._size else self._size)

    def close(self) -> None:
        """Give the camera back."""
        self._camera.close()

    def _acquire(self, number: int) -> Any:
        try:
            from picamera2 import Picamera2  # noqa: PLC0415  only where there is such a camera
        except ImportError as error:
            raise SourceError(f"{self._address.shown}: {error}", NEEDED) from error
        found = len(self._asked(Picamera2.global_camera_info))
        if number >= found:
            reason = f"{self._address.shown} is not there; there are {found}"
            raise SourceError(reason, "check its cable with the power off; rpicam-hello --list-cameras shows them")
        return self._asked(Picamera2, number)

    def _start(self, size: Size) -> None:
        if self._running is not None:
            self._asked(self._camera.stop)
            self._asked(self._camera.cancel_all_and_flush)
            self._job = None
        configuration = self._asked(self._camera.create_video_configuration, main={"size": size, "format": RGB})
        self._asked(self._camera.configure, configuration)
        self._asked(self._camera.start)
        self._running = size

    def _asked(self, call: Any, *arguments: Any, **options: Any) -> Any:
        """Call picamera2, which raises RuntimeError for nearly everything."""
        try:
            return call(*arguments, **options)
        except TimeoutError:
            raise
        except (RuntimeError, OSError, ValueError, IndexError) as error:
            remedy = "end other programs that use the camera; see the log of the service and the kernel (dmesg)"
            raise SourceError(f"{self._address.shown}: {str(error).rstrip('.')}", remedy) from error


def scaled(size: Size, wanted: Wanted | None) -> Size:
    """Return the smallest size in the same proportions that has all the pixels wanted; even, as processors like it."""
    if wanted is None:
        return size
    width, height = size
    factor = max(wanted.width / width, wanted.height / height)
    if factor >= 1:
        return size
    return 2 * ceil(width * factor / 2), 2 * ceil(height * factor / 2)


def _captured_ns(metadata: dict[str, Any]) -> int:
    """Return when the sensor began with the picture, which libcamera tells by CLOCK_BOOTTIME."""
    stamp = metadata.get("SensorTimestamp")
    now = time.monotonic_ns()
    return now if stamp is None else min(now, now - time.clock_gettime_ns(time.CLOCK_BOOTTIME) + int(stamp))
