"""Where a camera is: what `url` in the settings means, and how it is opened without showing a password to anybody.

Passwords come from a file. They are put into a URL only to hand it to FFmpeg, and whatever is told to people names
the camera by `Address.shown`.
"""

import re
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

PLACEHOLDER = "{password}"
_PASSWORD = re.compile(r"(?:^|[?&/;])(?:password|passwd|pass|pwd)=(?!\{password\})[^&;/]", re.IGNORECASE)
_CSI = re.compile(r"csi(?::(\d))?")
_ADVICE = 'write only the user, as in "rtsp://user@host/…", and the password into a file that password_file names'


class Kind(Enum):
    """What is at the other end."""

    DEVICE = auto()
    CSI = auto()
    RTSP = auto()
    HTTP = auto()
    FILE = auto()


SCHEMES = {"rtsp": Kind.RTSP, "rtsps": Kind.RTSP, "http": Kind.HTTP, "https": Kind.HTTP, "file": Kind.FILE}
STREAMS = {Kind.RTSP, Kind.HTTP}


@dataclass(frozen=True)
class Address:
    """A camera or a video. `place` is a path, a URL without password, or the number of a CSI camera."""

    kind: Kind
    place: str

    @classmethod
    def of(cls, url: str) -> "Address":
        """Understand `url`. Raises ValueError; the message shows nothing of a URL that holds a password."""
        if csi := _CSI.fullmatch(url):
            return cls(Kind.CSI, csi[1] or "0")
        if url.startswith("/"):
            return cls(Kind.DEVICE if url.startswith("/dev/") else Kind.FILE, url)
        scheme, divider, _ = url.partition("://")
        kind = SCHEMES.get(scheme.lower()) if divider else None
        if kind is None:
            raise ValueError(
                'url: expected a device ("/dev/v4l/by-id/…"), "rtsp://…", "http://…", the whole path of a video file, '
                'or "csi"'
            )
        try:
            parts = urlsplit(url)
            host, _ = parts.hostname, parts.port
        except ValueError:
            raise ValueError("url: the host or the port in it cannot be understood") from None
        if kind is Kind.FILE:
            return cls(kind, unquote(parts.path))
        if parts.password not in {None, PLACEHOLDER} or _PASSWORD.search(f"{parts.path}?{parts.query}"):
            raise ValueError(f"url: there is a password in it; {_ADVICE}")
        if not host:
            raise ValueError("url: there is no host in it")
        return cls(kind, url)

    @property
    def wants_password(self) -> bool:
        """Whether there is a place for one: behind a user, or the placeholder."""
        return self.kind in STREAMS and (PLACEHOLDER in self.place or urlsplit(self.place).username is not None)

    @property
    def host(self) -> str:
        """Host of a stream."""
        return urlsplit(self.place).hostname or ""

    @property
    def shown(self) -> str:
        """The address for people: without what follows "?", which may be as good as a password."""
        if self.kind is Kind.CSI:
            return f"CSI camera {self.place}"
        if self.kind not in STREAMS:
            return self.place
        plain, query, _ = self.place.partition("?")
        return f"{plain}{query and '?…'}"

    def with_password(self, password: str | None) -> str:
        """Return what FFmpeg opens. Not for logs."""
        if password is None or self.kind not in STREAMS:
            return self.place
        # Its bytes as they stand in the file: many a camera knows no UTF-8.
        secret = quote(password, safe="", errors="surrogateescape")
        if PLACEHOLDER in self.place:
            return self.place.replace(PLACEHOLDER, secret)
        parts = urlsplit(self.place)
        user, _, host = parts.netloc.rpartition("@")
        return parts._replace(netloc=f"{user}:{secret}@{host}").geturl()


def read_password(path: Path) -> str:
    """Return the first line of a file. Raises OSError, or ValueError when there is nothing in it."""
    with path.open(encoding="utf-8", errors="surrogateescape") as file:
        password = file.readline().rstrip("\r\n")
    if not password:
        raise ValueError(f"password_file: the first line of {path} is empty; write the password there")
    return password
