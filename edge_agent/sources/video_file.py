"""Videos in files, picture by picture: each waits for the model.

A position is `CYCLE:PLACE`: how often the file was played to its end, and the time stamp of a picture in the units of
the file, or "#" and its number where the file has no time stamps.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any

from edge_agent.records import Sample
from edge_agent.sources.base import Pacer, SourceEnded, SourceError
from edge_agent.sources.camera_address import Address
from edge_agent.sources.video import Scaler, Video, Wanted

if TYPE_CHECKING:
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream


class FileVideo:
    """The pictures of a file; `skip` counts those that cannot be used."""

    def __init__(
        self,
        open_again: Callable[[], Video],
        address: Address,
        *,
        pacer: Pacer,
        repeat: bool,
        skip: Callable[[str], None],
    ) -> None:
        self._open = open_again
        self._address = address
        self._pacer = pacer
        self._repeat = repeat
        self._skip = skip
        self._scaler = Scaler(address.kind)
        self._cycle = 0
        self._done_pts: int | None = None
        self._begin()

    def go_on_after(self, position: str | None) -> None:
        """Leave out what was worked on before. A position that means nothing is the beginning."""
        cycle, _, place = (position or "").partition(":")
        self._cycle = int(cycle) if cycle.isdecimal() else 0
        number = place.removeprefix("#")
        if not number.removeprefix("-").isdecimal():
            return
        if place != number:
            self._done_number = int(number)
            return
        done_pts = int(number)
        if not self._video.seek(done_pts):
            self._video.close()
            self._begin()
        self._done_pts = done_pts

    def read(self, timeout: float, wanted: Wanted | None) -> Sample | None:
        """Return the next picture, in the rhythm of the rate. Raises SourceEnded or SourceError."""
        give_up = time.monotonic() + timeout
        if not self._pacer.wait(timeout):
            return None
        while True:
            frame = self._next_frame()
            if frame is not None:
                pixels, size = self._scaler.pixels(frame, wanted)
                self._pacer.step()
                place = f"#{self._number}" if frame.pts is None else f"{frame.pts}"
                return Sample(pixels, time.monotonic_ns(), f"{self._cycle}:{place}", size)
            if time.monotonic() >= give_up:
                return None

    def close(self) -> None:
        """Close the file."""
        self._video.close()

    def _begin(self) -> None:
        self._video = self._open()
        self._packets: Iterator[Any] = self._video.packets()
        self._frames: deque[VideoFrame] = deque()
        self._done_pts = None
        self._last_pts: int | None = None
        self._done_number = 0
        self._number = 0
        self._packet_number = 0
        # A round through the file without any picture must not be repeated at once.
        self._fruitful = False

    def pass_over(self) -> str:
        """Go on with the next key frame behind the picture that would come next; returns what is left out, in words.

        The pictures in between cannot be made without the one that is passed over. Nothing of it is decoded.
        """
        passed = 0
        while (packet := self._next_packet()) is not None:
            if not self._is_new(packet):
                continue
            if passed and packet.is_keyframe:
                self._packets = chain([packet], self._packets)
                self._packet_number -= 1
                self._number = self._packet_number
                break
            passed += 1
        # It was left out on purpose, so the file is not one without pictures.
        self._fruitful = True
        return f"{self._address.shown}: {passed} pictures up to the next key frame"

    def _next_frame(self) -> "VideoFrame | None":
        """Return the next new picture, or None: look again."""
        while not self._frames:
            packet = self._next_packet()
            if packet is None:
                self._end()
                return None
            self._decode(packet)
            if not self._frames:
                return None
        frame = self._frames.popleft()
        self._number += 1
        self._last_pts = frame.pts
        self._fruitful = True
        return None if self._was_done(frame) else frame

    def _next_packet(self) -> "Packet[VideoStream] | None":
        packet: Packet[VideoStream] | None = next(self._packets, None)
        self._packet_number += packet is not None
        return packet

    def _is_new(self, packet: "Packet[VideoStream]") -> bool:
        if packet.pts is None:
            return self._packet_number > max(self._done_number, self._number)
        pts: int = packet.pts
        return all(pts > done for done in (self._done_pts, self._last_pts) if done is not None)

    def _was_done(self, frame: "VideoFrame") -> bool:
        if frame.pts is None:
            return self._number <= self._done_number
        return self._done_pts is not None and frame.pts <= self._done_pts

    def _decode(self, packet: "Packet[VideoStream]") -> None:
        if not packet.size and packet.pts is not None:
            return  # empty, but not the end, which an empty one would tell the decoder
        try:
            frames = self._video.decode(packet)
        except ValueError as error:
            self._count_damaged(str(error), packet)
            return
        for frame in frames:
            if frame.is_corrupt:
                self._count_damaged("a damaged picture", frame)
            else:
                self._frames.append(frame)

    def _count_damaged(self, what: str, item: "Packet[VideoStream] | VideoFrame") -> None:
        unit = item.time_base
        place = "" if item.pts is None or unit is None else f" at {float(item.pts * unit):.2f} s"
        self._skip(f"{self._address.shown}: {what}{place}")

    def _end(self) -> None:
        if not self._repeat:
            raise SourceEnded(f"{self._address.shown} was played to its end")
        if not self._fruitful:
            raise SourceError(f"{self._address.shown} has no picture that can be used", "give another file in url")
        self._video.close()
        self._cycle += 1
        self._begin()
