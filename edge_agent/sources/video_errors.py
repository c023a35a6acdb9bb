"""What went wrong with a camera or a video, in words for whoever is to mend it.

FFmpeg's own messages are not used: they name the whole URL, with the password.
"""

import errno

from edge_agent.settings.units import format_duration
from edge_agent.sources.base import SourceError
from edge_agent.sources.camera_address import STREAMS, Address, Kind

_WAIT = "nothing to do if it comes back: it is opened anew in a moment"
_NETWORK = "check its power, the network, and host and port in url"
_ACCOUNT = "check the user in url and the password in password_file"
_FORMATS = "v4l2-ctl --list-formats-ext shows which format, width and height it has"

_DEVICE = {
    errno.ENOENT: ("is not there", "plug it in; ls /dev/v4l/by-id shows the cameras that are there"),
    errno.EACCES: ("may not be opened", "add the service's user to the group video, and restart the service"),
    errno.EPERM: ("may not be opened", "restart the service: the camera's driver came after it"),
    errno.EBUSY: ("is in use by another program", "end that program; fuser -v names it"),
    errno.ENODEV: ("is gone, or takes no pictures", "plug it in, or give another /dev/video… in url"),
    errno.ENXIO: ("is gone", "plug it in"),
    errno.EIO: ("failed", "unplug it and plug it in again; see the kernel's log (dmesg)"),
    errno.EPROTO: ("failed", "unplug it and plug it in again; see the kernel's log (dmesg)"),
    errno.ENOTTY: ("is no camera", "give another device in url; ls /dev/v4l/by-id shows the cameras"),
    errno.ENOSPC: ("gets too little of the USB", 'set format = "mjpeg", or a smaller width and height'),
    errno.EINVAL: ("does not take the format or the size that was asked for", _FORMATS),
    errno.ENOSYS: ("takes no pictures", "give another device in url; ls /dev/v4l/by-id shows the cameras"),
}
_STREAM = {
    errno.ECONNREFUSED: ("refuses the connection", _NETWORK),
    errno.EHOSTUNREACH: ("cannot be reached", _NETWORK),
    errno.ENETUNREACH: ("cannot be reached: there is no network", _NETWORK),
    errno.ETIMEDOUT: ("does not answer", _NETWORK),
    errno.ECONNRESET: ("closed the connection", _WAIT),
    errno.EPIPE: ("closed the connection", _WAIT),
    errno.EIO: ("broke off", _WAIT),
}
_FILE = {
    errno.ENOENT: ("is not there", "see that the file is there and that the service may read it"),
    errno.EACCES: ("may not be read", "see that the file is there and that the service may read it"),
    errno.EISDIR: ("is a folder", "give a video file in url"),
}
# By the names of PyAV's classes, which are the same in all its versions.
_ANYWHERE = {
    "HTTPUnauthorizedError": ("refuses the user or the password (401)", _ACCOUNT),
    "HTTPForbiddenError": ("forbids it (403)", _ACCOUNT),
    "HTTPNotFoundError": ("has no such stream (404)", "check what follows the host in url"),
    "HTTPBadRequestError": ("does not understand the request (400)", "check what follows the host in url"),
    "HTTPOtherClientError": ("refuses the request (4xx)", "check what follows the host in url, and rtsp_transport"),
    "HTTPServerError": ("has an error of its own (5xx)", "restart the camera if it lasts"),
    "InvalidDataError": ("sends no video that FFmpeg can read", "check that it is a video, and not damaged"),
    "DecoderNotFoundError": ("has a codec that FFmpeg has no decoder for", "set the camera to H.264 or MJPEG"),
    "PatchWelcomeError": ("has a codec that FFmpeg cannot decode", "set the camera to H.264 or MJPEG"),
    "ProtocolNotFoundError": ("needs a protocol that is not allowed here", "give the address of the video itself"),
    "EOFError": ("ended", _WAIT),
}
_FURTHER = ("cannot be read", "check url and the camera")


def explain(error: Exception, address: Address) -> SourceError:
    """Turn an exception of PyAV into words."""
    number = getattr(error, "errno", None)
    words = _by_number(address.kind).get(number) if number else None
    words = words or _ANYWHERE.get(type(error).__name__)
    if words is None:
        what, remedy = _FURTHER
        words = f"{what} ({type(error).__name__})", remedy
    return SourceError(f"{address.shown} {words[0]}", words[1])


def silent(address: Address, seconds: float) -> SourceError:
    """Say that nothing came in all this time."""
    remedy = "unplug it and plug it in again" if address.kind is Kind.DEVICE else _NETWORK
    return SourceError(f"{address.shown} sent nothing for {format_duration(round(seconds, 1))}", remedy)


def ended(address: Address) -> SourceError:
    """Say that a live stream has come to its end."""
    return SourceError(f"{address.shown} ended", _WAIT)


def _by_number(kind: Kind) -> dict[int, tuple[str, str]]:
    if kind in STREAMS:
        return _STREAM
    return _DEVICE if kind is Kind.DEVICE else _FILE
