"""Cameras and videos: V4L2 devices, network cameras, video files, and the Raspberry Pi's own cameras.

A camera is live: only its newest pictures matter, and each has the time at which it was taken. The pictures of a file
wait for the model. Both come as uint8 RGB of shape (height, width, 3), scaled to the model's input where the worker
says what that is. See `video_live`, `video_file` and `camera_csi` for the kinds of cameras.
"""

import os
import socket
import stat
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal, Protocol
from urllib.parse import urlsplit

from annotated_types import Ge, Gt, Le, MinLen, doc

from edge_agent.records import Sample
from edge_agent.settings.units import Duration
from edge_agent.sources.base import Pacer, Source, SourceError, describe
from edge_agent.sources.camera_address import STREAMS, Address, Kind, read_password
from edge_agent.sources.camera_csi import NEEDED as CSI_NEEDED
from edge_agent.sources.camera_csi import CsiCamera
from edge_agent.sources.video import INSTALL, NEEDED, Video, Wanted, open_video
from edge_agent.sources.video_file import FileVideo
from edge_agent.sources.video_live import DevicePackets, LiveVideo, StreamPackets

# Character devices of video4linux, see Documentation/admin-guide/devices.txt of the kernel.
V4L2_MAJOR = 81
PORTS = {"rtsp": 554, "rtsps": 322, "http": 80, "https": 443}
# What makes no sense elsewhere.
_ONLY_FOR = {
    "width": {Kind.DEVICE, Kind.CSI},
    "height": {Kind.DEVICE, Kind.CSI},
    "format": {Kind.DEVICE},
    "repeat": {Kind.FILE},
    "password_file": STREAMS,
}
_NAMES = {
    Kind.DEVICE: "a V4L2 device",
    Kind.CSI: "a CSI camera",
    Kind.RTSP: "a network camera",
    Kind.HTTP: "a network camera",
    Kind.FILE: "a video file",
}


class Feed(Protocol):
    """An open camera or video."""

    def read(self, timeout: float, wanted: Wanted | None) -> Sample | None:
        """Return the next picture, if there is one in time. Raises SourceEnded or SourceError."""
        ...

    def close(self) -> None:
        """Close it."""
        ...


class Camera(Source):
    """Pictures of a camera (live) or of a video file (each waits for the model)."""

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """Options in the [source] table."""

        url: Annotated[
            str,
            MinLen(1),
            doc(
                "The camera: /dev/v4l/by-id/…, rtsp://user@host/…, http://user@host/…, csi or csi:1 for one on the "
                "Raspberry Pi's own connector; or the whole path of a video file."
            ),
        ]
        rate: Annotated[
            float,
            Ge(0),
            Le(1000),
            doc("At most so many pictures per second; 0: all that the camera takes, or a file as fast as possible."),
        ] = 0.0
        width: Annotated[Annotated[int, Ge(1)] | None, doc("Width that a device or CSI camera is asked for.")] = None
        height: Annotated[Annotated[int, Ge(1)] | None, doc("The height that goes with it.")] = None
        format: Annotated[
            Annotated[str, MinLen(1)] | None,
            doc("How a V4L2 device is to send its pictures, in FFmpeg's words: mjpeg, yuyv422, h264 and others."),
        ] = None
        repeat: Annotated[bool, doc("Begin a file again at its end.")] = False
        password_file: Annotated[
            Path | None, doc("A file with the password that goes with the user in url, in its first line.")
        ] = None
        rtsp_transport: Annotated[Literal["tcp", "udp"], doc("How an RTSP camera sends its pictures.")] = "tcp"
        timeout: Annotated[
            Duration, Gt(0), doc("How long a camera may be silent before it is taken for lost and opened again.")
        ] = 10.0

        def address(self) -> Address:
            """Return what `url` means. Raises ValueError."""
            return Address.of(self.url)

        def password(self) -> str | None:
            """Read the password. Raises OSError or ValueError."""
            return None if self.password_file is None else read_password(self.password_file)

        def check(self) -> None:
            """Look whether the camera is there, without opening it. Raises ValueError, or OSError for what is not."""
            address = self.address()
            self._check_together(address)
            # A library may come and go with the system's packages: no reason for the service not to start.
            if address.kind is Kind.CSI:
                if find_spec("picamera2") is None:
                    raise OSError(CSI_NEEDED)
            elif find_spec("av") is None:
                raise OSError(f"{NEEDED}: {INSTALL}")
            self.password()
            if address.kind is Kind.FILE:
                Path(address.place).open("rb").close()
            if address.kind is Kind.DEVICE:
                look_for_device(address.place)

        def _check_together(self, address: Address) -> None:
            for name, kinds in _ONLY_FOR.items():
                if getattr(self, name) and address.kind not in kinds:
                    raise ValueError(f"{name} means nothing for {_NAMES[address.kind]} as in url; take it away")
            if (self.width is None) != (self.height is None):
                raise ValueError("width and height belong together: give both, or neither")
            if (self.password_file is not None) != address.wants_password:
                raise ValueError(
                    "password_file and a user in url belong together: give both, as in rtsp://user@host/…, or neither"
                )

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self._options = options
        self._address = options.address()
        self._wanted: Wanted | None = None
        self._feed: Feed | None = None
        self.live = self._address.kind is not Kind.FILE

    def prefer_size(self, width: int, height: int, resize: str) -> None:
        """Scale to this size from the next picture on."""
        self._wanted = Wanted(width, height, resize)

    def open(self, resume: str | None) -> None:
        """Open the camera, or the file behind `resume`."""
        self.close()
        match self._address.kind:
            case Kind.CSI:
                options = self._options
                size = (options.width, options.height) if options.width and options.height else None
                self._feed = CsiCamera(int(self._address.place), size, options.rate, options.timeout)
            case Kind.FILE:
                self._feed = self._open_file(resume)
            case Kind.DEVICE:
                self._feed = self._open_device()
            case _:
                self._feed = self._open_stream()

    def read(self, timeout: float) -> Sample | None:
        """Return the next picture."""
        if self._feed is None:
            raise RuntimeError("the camera is not open")
        return self._feed.read(timeout, self._wanted)

    def key(self, position: str) -> str:
        """Return the place of a picture in its file, however often that is repeated."""
        return position.partition(":")[2]

    def pass_over(self) -> None:
        """Go on behind the next picture of a file; a live camera has another one by then."""
        if isinstance(self._feed, FileVideo):
            self.skip_deadly(self._feed.pass_over())

    def close(self) -> None:
        """Close the camera."""
        if self._feed is not None:
            self._feed.close()
            self._feed = None

    def _open_file(self, resume: str | None) -> FileVideo:
        again = partial(self._open_video, self._address.place)
        pacer = Pacer(self._options.rate)
        feed = FileVideo(again, self._address, pacer=pacer, repeat=self._options.repeat, skip=self.skip)
        feed.go_on_after(resume)
        return feed

    def _open_device(self) -> LiveVideo:
        options = self._options
        asked = {"video_size": f"{options.width}x{options.height}"} if options.width else {}
        asked |= {"input_format": options.format} if options.format else {}
        video = self._open_video(self._address.place, form="v4l2", **asked)
        packets = DevicePackets(video, self._address, options.timeout)
        return LiveVideo(video, packets, Kind.DEVICE, options.rate, self.skip)

    def _open_stream(self) -> LiveVideo:
        try:
            where = self._address.with_password(self._options.password())
        except (OSError, ValueError) as error:
            reason = describe(error) if isinstance(error, OSError) else str(error)
            raise SourceError(reason, "see that password_file is there and that the service may read it") from error
        self._resolve()
        # The rate need not be known, and finding it out takes a second of pictures.
        asked = {"fpsprobesize": "0"}
        if self._address.kind is Kind.RTSP:
            asked |= {"rtsp_transport": self._options.rtsp_transport, "allowed_media_types": "video"}
        video = self._open_video(where, **asked)
        packets = StreamPackets(video, self._address)
        return LiveVideo(video, packets, self._address.kind, self._options.rate, self.skip)

    def _resolve(self) -> None:
        """Say that a host is not known; FFmpeg would only say that there was an error."""
        parts = urlsplit(self._address.place)
        try:
            socket.getaddrinfo(parts.hostname, parts.port or PORTS[parts.scheme.lower()], type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            reason = f"{self._address.shown}: the host {parts.hostname} is not known: {error}"
            raise SourceError(reason, "check the host in url, the network and its DNS") from error

    def _open_video(self, where: str, form: str | None = None, **asked: str) -> Video:
        return open_video(self._address, where, timeout=self._options.timeout, options=asked, form=form)


def look_for_device(path: str) -> None:
    """Raise OSError when there is no such device, or ValueError when it is none of video4linux."""
    status = os.stat(path)  # noqa: PTH116  its message names the path as it was written
    if not stat.S_ISCHR(status.st_mode) or os.major(status.st_rdev) != V4L2_MAJOR:
        raise ValueError(f"url: {path} is no camera; ls /dev/v4l/by-id shows those that are there")
