"""A real RTSP server on the loopback, in a process of its own: GStreamer's, from Debian's packages."""

import signal
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.servers.ports import ReservedPort

PYTHON = "/usr/bin/python3"
PROGRAM = Path(__file__).with_name("rtsp_server.py")
PACKAGES = "python3-gi gir1.2-gst-rtsp-server-1.0 gstreamer1.0-plugins-good gstreamer1.0-plugins-ugly"
_LOOK = """
import gi
for name in ("Gst", "GstRtspServer"):
    gi.require_version(name, "1.0")
from gi.repository import Gst, GstRtspServer
Gst.init(None)
missing = [name for name in ("videotestsrc", "x264enc", "rtph264pay", "jpegenc") if not Gst.ElementFactory.find(name)]
assert not missing, missing
"""


def why_not() -> str | None:
    """Return why the server cannot run here, or None."""
    try:
        subprocess.run([PYTHON, "-I", "-c", _LOOK], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return f"no RTSP server: apt install {PACKAGES}"
    return None


class RtspServer:
    """Runs while it is entered. `port` stays the same when it is started again."""

    def __init__(self, *account: str) -> None:
        """Serve everybody, or only who knows the `account`: a user and a password."""
        self._account = account
        self._reserved = ReservedPort()
        self.port = self._reserved.number

    @property
    def address(self) -> str:
        """Host and port."""
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start, and wait until it serves."""
        command = [PYTHON, "-I", str(PROGRAM), str(self.port), *self._account]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        assert int(self._process.stdout.readline()) == self.port

    def freeze(self) -> None:
        """Keep the connections, but send nothing more."""
        self._process.send_signal(signal.SIGSTOP)

    def kill(self) -> None:
        """End it at once; the kernel closes its connections."""
        self._process.kill()
        self._process.communicate()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        self._reserved.close()
