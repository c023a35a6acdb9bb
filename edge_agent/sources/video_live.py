"""Cameras as they see: only the newest pictures matter.

A network camera is read by a thread that takes packets off the network as they come; so whatever the decoder does,
they do not pile up where nobody counts them. A V4L2 device needs none: the kernel says when there is a picture, and
leaves out those that nobody fetches.
"""

import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from edge_agent.records import Sample
from edge_agent.sources.base import Pacer, SourceError
from edge_agent.sources.camera_address import Address, Kind
from edge_agent.sources.video import Scaler, Video, Wanted
from edge_agent.sources.video_errors import ended, silent

if TYPE_CHECKING:
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

    Arrived = tuple[Packet[VideoStream], int]

# Two seconds of most cameras. What is older is of no use, and without it the decoder catches up.
MAX_WAITING = 64
# So many in a row, and it is no accident: opening the camera again may help.
MAX_DAMAGED = 100
# A time stamp that is older comes from another clock.
_CREDIBLE_NS = 10_000_000_000
_GONE = select.POLLERR | select.POLLHUP | select.POLLNVAL


class Packets(Protocol):
    """Where the packets of a live camera come from. `lost` counts those that were dropped before `take`."""

    lost: int

    def take(self, timeout: float) -> "Arrived | None":
        """Return the next packet and when it came (CLOCK_MONOTONIC in ns), or None. Raises SourceError."""
        ...

    def close(self) -> None:
        """Close the camera."""
        ...


class StreamPackets:
    """The packets of a network camera, taken by a thread."""

    def __init__(self, video: Video, address: Address) -> None:
        self.lost = 0
        self._video = video
        self._address = address
        self._waiting: deque[Arrived] = deque()
        self._arrived = threading.Condition()
        self._failure: BaseException | None = None
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="camera", daemon=True)
        self._thread.start()

    def take(self, timeout: float) -> "Arrived | None":
        """Return the next packet; those that came before an error come before it here, too."""
        with self._arrived:
            self._arrived.wait_for(lambda: self._waiting or self._failure, timeout)
            if self._waiting:
                return self._waiting.popleft()
            if self._failure is not None:
                raise self._failure
        return None

    def close(self) -> None:
        """End the thread, which waits for the network no longer than FFmpeg was told, and close the camera."""
        self._stopping = True
        self._thread.join()
        self._video.close()

    def _run(self) -> None:
        failure: BaseException = ended(self._address)
        try:
            for packet in self._video.packets():
                if self._stopping:
                    return
                if packet.size:  # an empty one stands for the end
                    self._put((packet, time.monotonic_ns()))
        except BaseException as error:  # noqa: BLE001  raised again by `take`, in the thread that reads
            failure = error
        with self._arrived:
            self._failure = failure
            self._arrived.notify()

    def _put(self, arrived: "Arrived") -> None:
        with self._arrived:
            if len(self._waiting) >= MAX_WAITING:
                self.lost += len(self._waiting)
                self._waiting.clear()
            self._waiting.append(arrived)
            self._arrived.notify()


class DevicePackets:
    """The packets of a V4L2 device, when the kernel says that there is one."""

    def __init__(self, video: Video, address: Address, timeout: float) -> None:
        self.lost = 0
        self._video = video
        self._address = address
        self._timeout = timeout
        self._newest = time.monotonic()
        self._poll = select.poll()
        # FFmpeg does not tell its descriptor. It reads with it as it is: from here on without waiting.
        for descriptor in descriptors(address.place):
            os.set_blocking(descriptor, False)
            self._poll.register(descriptor, select.POLLIN)

    def take(self, timeout: float) -> "Arrived | None":
        """Return the next packet, with the time that the driver gave it."""
        events = self._poll.poll(timeout * 1000)
        try:
            packet = next(self._video.packets(), None) if events else None
        except BlockingIOError:
            packet = None
        if packet is not None and packet.size:  # an empty one is what the driver could not fill
            self._newest = time.monotonic()
            return packet, _driver_time(packet)
        if any(event & _GONE for _, event in events):
            raise SourceError(f"{self._address.shown} is gone", "plug it in")
        if time.monotonic() - self._newest >= self._timeout:
            raise silent(self._address, self._timeout)
        return None

    def close(self) -> None:
        """Close the device."""
        self._video.close()


def descriptors(path: str) -> list[int]:
    """Return the descriptors under which this process has a file open."""
    real, found = os.path.realpath(path), []
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the folder's own
            if str(entry.readlink()) == real:
                found.append(int(entry.name))
    return found


def _driver_time(packet: "Packet[VideoStream]") -> int:
    """Return when the picture was taken: nearly all drivers stamp with CLOCK_MONOTONIC, which FFmpeg passes on."""
    now = time.monotonic_ns()
    if packet.pts is None or packet.time_base is None:
        return now
    stamp = int(packet.pts * packet.time_base * 1_000_000_000)
    return stamp if now - _CREDIBLE_NS < stamp <= now else now


class LiveVideo:
    """Pictures of a camera, at most so many per second as are wanted; `skip` counts those that cannot be used."""

    def __init__(self, video: Video, packets: Packets, kind: Kind, rate: float, skip: Callable[[str], None]) -> None:
        self._video = video
        self._packets = packets
        self._scaler = Scaler(kind)
        self._pacer = Pacer(rate)
        self._skip = skip
        self._lost = 0
        self._damaged = 0
        # The next packet must be a picture of its own: the ones before it are missing.
        self._needs_key = False
        # When the packets came whose pictures are still in the decoder, by their time stamps.
        self._times: dict[int, int] = {}

    def read(self, timeout: float, wanted: Wanted | None) -> Sample | None:
        """Return the next picture that is due. Raises SourceError."""
        give_up = time.monotonic() + timeout
        while True:
            arrived = self._packets.take(max(0.0, give_up - time.monotonic()))
            self._count_lost()
            if arrived is None:
                return None
            # What was too much for the rate need not be decoded, unless other pictures build on it.
            if not self._video.alone or self._pacer.wait(0):
                sample = self._work(*arrived, wanted)
                if sample is not None:
                    return sample
            if time.monotonic() >= give_up:
                return None

    def close(self) -> None:
        """Close the camera."""
        self._packets.close()

    def _work(self, packet: "Packet[VideoStream]", arrived_ns: int, wanted: Wanted | None) -> Sample | None:
        if self._needs_key and not packet.is_keyframe:
            self._skip("too late for the decoder")
            return None
        self._needs_key = False
        frames = self._decode(packet, arrived_ns)
        if not frames or not self._pacer.wait(0):
            return None
        frame = frames[-1]
        pixels, size = self._scaler.pixels(frame, wanted)
        self._pacer.step()
        captured_ns = self._times.pop(frame.pts, arrived_ns) if frame.pts is not None else arrived_ns
        return Sample(pixels, captured_ns, None, size)

    def _decode(self, packet: "Packet[VideoStream]", arrived_ns: int) -> "list[VideoFrame]":
        if packet.pts is not None:
            if len(self._times) > MAX_WAITING:
                self._times.clear()
            self._times[packet.pts] = arrived_ns
        try:
            frames = self._video.decode(packet)
        except ValueError as error:
            self._count_damaged(str(error))
            return []
        good = [frame for frame in frames if not frame.is_corrupt]
        for _ in frames[len(good) :]:
            self._count_damaged("a damaged picture")
        if good:
            self._damaged = 0
        return good

    def _count_damaged(self, reason: str) -> None:
        self._skip(reason)
        self._damaged += 1
        if self._damaged >= MAX_DAMAGED:
            raise SourceError(
                f"{MAX_DAMAGED} damaged pictures in a row", "check cable, network and power of the camera"
            )

    def _count_lost(self) -> None:
        lost = self._packets.lost
        if lost == self._lost:
            return
        for _ in range(lost - self._lost):
            self._skip("the processor cannot decode as fast as the camera sends: set it to a smaller picture or rate")
        self._lost = lost
        self._needs_key = True
