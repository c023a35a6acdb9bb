"""Videos through PyAV, which is FFmpeg: opening, decoding, and scaling to RGB in C.

It works with PyAV 10 (Debian 12) and all later ones, and is imported only when a camera is opened: it takes memory
that a worker on a sensor need not carry.
"""

import time
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from edge_agent.sources.base import SourceError
from edge_agent.sources.camera_address import STREAMS, Address, Kind
from edge_agent.sources.video_errors import explain, silent

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

Pixels = npt.NDArray[np.uint8]

NEEDED = "the camera source needs PyAV"
INSTALL = "apt install python3-av (or, in a virtual environment, pip install av)"
# From FFmpeg's scaler; each averages over all pixels that fall into one, as Pillow does.
_WAYS = {"nearest": "POINT", "bilinear": "BILINEAR", "lanczos": "LANCZOS"}
# A file that is opened is not to make FFmpeg open others, or the network.
_PROTOCOLS = {
    Kind.FILE: "file",
    Kind.HTTP: "http,https,tcp,tls,crypto,httpproxy",
    Kind.RTSP: "rtsp,rtsps,rtp,srtp,udp,tcp,tls,http,https,crypto",
}
# H.273: what a video says of its matrix when it says nothing.
_UNSPECIFIED = 2
_LARGEST_SD = (1279, 576)
# An answer and a first picture are waited for so long each (seconds), however long silence may last later on: together
# that stays below what the agent takes for a hang (supervision.hangs.OPEN_DEADLINE).
OPEN_LIMIT = 20.0


class Wanted(NamedTuple):
    """The size that pictures are to have, and the way there."""

    width: int
    height: int
    resize: str


def load() -> ModuleType:
    """Import PyAV, and keep FFmpeg from writing to the log: it names URLs with their passwords. Raises SourceError."""
    try:
        import av  # noqa: PLC0415  see above
        import av.logging  # noqa: PLC0415
    except ImportError as error:
        raise SourceError(f"{NEEDED}: {error}", INSTALL) from error
    if hasattr(av.logging, "set_libav_level"):
        # FFmpeg's own logging. PyAV's needs the interpreter's lock in the threads of the decoder.
        av.logging.restore_default_callback()
        av.logging.set_libav_level(av.logging.PANIC)
    else:
        av.logging.set_level(av.logging.PANIC)
    return av


class Video:
    """One opened video, and the decoder of its pictures. `alone`: each packet is a picture that needs no other."""

    def __init__(self, container: "InputContainer", address: Address, errors: tuple[type[Exception], ...]) -> None:
        self._container = container
        self._address = address
        self._errors = errors
        if not container.streams.video:
            raise SourceError(f"{address.shown} has no picture", "check url")
        self.stream: VideoStream = container.streams.video[0]
        codec = self.stream.codec_context
        if codec is None:
            raise SourceError(f"{address.shown} has a codec that FFmpeg cannot decode", "set it to H.264 or MJPEG")
        self.alone = bool(codec.codec.intra_only)

    def packets(self) -> "Iterator[Packet[VideoStream]]":
        """Yield what comes, until the end. Raises SourceError, and BlockingIOError where a device has nothing yet."""
        begin = time.monotonic()
        try:
            for packet in self._container.demux(self.stream):
                yield packet
                begin = time.monotonic()
        except BlockingIOError:
            raise
        except self._errors as error:
            # Not "from error": that names the URL with its password.
            raise self._explained(error, time.monotonic() - begin) from None

    def _explained(self, error: Exception, waited: float) -> SourceError:
        limit = self._container.read_timeout
        return silent(self._address, waited) if limit and waited >= limit else explain(error, self._address)

    def decode(self, packet: "Packet[VideoStream]") -> "list[VideoFrame]":
        """Return the pictures that are complete with this packet. Raises ValueError: it is damaged."""
        try:
            return packet.decode()
        except EOFError:
            return []
        except self._errors:
            raise ValueError("a damaged picture") from None

    def seek(self, pts: int) -> bool:
        """Go to the key frame before `pts`; False where the video cannot be sought in."""
        try:
            self._container.seek(pts, stream=self.stream)
        except self._errors:
            return False
        return True

    def close(self) -> None:
        """Close it."""
        self._container.close()


def open_video(
    address: Address, where: str, *, timeout: float, options: Mapping[str, str], form: str | None = None
) -> Video:
    """Open a device, a stream or a file. `where` is for FFmpeg, and may hold a password. Raises SourceError."""
    av = load()
    protocols = {"protocol_whitelist": _PROTOCOLS[address.kind]} if address.kind in _PROTOCOLS else {}
    errors = (av.error.FFmpegError,)
    patience = min(timeout, OPEN_LIMIT)
    begin = time.monotonic()
    try:
        container = av.open(where, format=form, options={**protocols, **options}, timeout=(patience, timeout))
    except errors as error:
        if address.kind in STREAMS and time.monotonic() - begin >= patience:
            raise silent(address, time.monotonic() - begin) from None
        raise explain(error, address) from None
    try:
        return Video(container, address, errors)
    except SourceError:
        container.close()
        raise


class Scaler:
    """Turns pictures of a video into RGB arrays of shape (height, width, 3), scaled on the way."""

    def __init__(self, kind: Kind) -> None:
        load()
        from av.video.reformatter import VideoReformatter  # noqa: PLC0415  see above

        # Its stubs tell what the newest PyAV takes.
        self._reformatter: Any = VideoReformatter()
        self._device = kind is Kind.DEVICE

    def pixels(self, frame: "VideoFrame", wanted: Wanted | None) -> tuple[Pixels, tuple[int, int] | None]:
        """Return the pixels, and the picture's own width and height if the pixels have another."""
        size = (frame.width, frame.height)
        width, height, resize = wanted or (*size, "bilinear")
        picture = self._reformatter.reformat(
            frame, width, height, "rgb24", src_colorspace=self._matrix(frame), interpolation=_WAYS[resize]
        )
        lines = np.frombuffer(memoryview(picture.planes[0]), np.uint8).reshape(height, picture.planes[0].line_size)
        # Lines may be padded; where they are not, nothing is copied.
        pixels = np.ascontiguousarray(lines[:, : width * 3]).reshape(height, width, 3)
        return pixels, None if (width, height) == size else size

    def _matrix(self, frame: Any) -> str | None:
        """Return the matrix between YUV and RGB, or None: the picture tells it itself.

        Where it does not, or PyAV cannot say, large pictures have that of HDTV, as players take it; FFmpeg alone would
        take the one of old television for all. That is what JPEG and cameras on USB have, at any size.
        """
        if getattr(frame, "colorspace", _UNSPECIFIED) != _UNSPECIFIED or frame.format.name.startswith("yuvj"):
            return None
        width, height = _LARGEST_SD
        large = frame.width > width or frame.height > height
        return "ITU709" if large and not self._device else "ITU601"
