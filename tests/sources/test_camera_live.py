"""Network cameras: a real RTSP server, an HTTP server that sends MJPEG as cameras do, and V4L2 where there is one."""

import io
import os
import socket
import threading
import time
from collections.abc import Iterator
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from edge_agent.inference.supervision.hangs import OPEN_DEADLINE
from edge_agent.records import Sample
from edge_agent.sources import video, video_live
from edge_agent.sources.base import SourceError, build
from edge_agent.sources.camera import Camera
from edge_agent.sources.camera_address import Address, Kind
from edge_agent.sources.video import Video, open_video
from edge_agent.sources.video_live import MAX_WAITING, DevicePackets, LiveVideo, StreamPackets, descriptors
from tests.servers import rtsp
from tests.servers.rtsp import RtspServer
from tests.sources.videos import make_video

ACCOUNT = ("viewer", "p@ss:w/rd %41")
PATIENCE = 60.0
ENDLESS = 1_000_000_000
WHY_NOT = rtsp.why_not()
needs_rtsp = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))


@pytest.fixture(scope="module")
def server() -> Iterator[RtspServer]:
    with RtspServer() as running:
        yield running


def camera(url: str, **options: object) -> Camera:
    source = build(Camera, {"url": url, "timeout": 5.0} | options)
    source.prefer_size(32, 24, "bilinear")
    return source


def read(source: Camera, count: int) -> list[Sample]:
    samples: list[Sample] = []
    give_up = time.monotonic() + PATIENCE
    while len(samples) < count:
        assert time.monotonic() < give_up
        sample = source.read(0.5)
        if sample is not None:
            samples.append(sample)
    return samples


def open_and_read(source: Camera) -> None:
    """Do so until it works, as the worker does: on a busy machine a good camera may be silent for a while, too."""
    give_up = time.monotonic() + PATIENCE
    while True:
        try:
            source.open(None)
            read(source, 3)
        except SourceError:
            assert time.monotonic() < give_up
        else:
            return


def trouble(source: Camera) -> str:
    """Read until the source gives up."""
    with pytest.raises(SourceError) as error:
        read(source, 1_000_000)
    return str(error.value)


def is_red(sample: Sample) -> bool:
    red, green, blue = sample.data[12, 16].tolist()
    return bool(red > 200 and green < 60 and blue < 60)


@needs_rtsp
@pytest.mark.parametrize(("path", "transport"), [("h264", "tcp"), ("h264", "udp"), ("jpeg", "tcp")])
def test_rtsp(path: str, transport: str, server: RtspServer) -> None:
    source = camera(f"rtsp://{server.address}/{path}", rtsp_transport=transport)
    assert source.live
    before = time.monotonic_ns()
    source.open(None)
    samples = read(source, 15)
    source.close()
    source.close()
    assert all(is_red(sample) for sample in samples)
    assert {(sample.data.shape, sample.size, sample.position) for sample in samples} == {
        ((24, 32, 3), (320, 240), None)
    }
    captured = [sample.captured_ns for sample in samples]
    assert captured == sorted(captured)
    assert before < captured[0]
    assert captured[-1] < time.monotonic_ns()
    assert source.skipped == 0


@needs_rtsp
def test_no_more_pictures_than_the_rate_asks_for(server: RtspServer) -> None:
    source = camera(f"rtsp://{server.address}/jpeg", rate=4)
    source.open(None)
    before = time.monotonic()
    read(source, 5)
    # The camera makes 20 in this time; a slow machine can only make it longer.
    assert time.monotonic() - before >= 4 * 0.25
    source.close()


@needs_rtsp
@pytest.mark.parametrize(
    ("path", "message"),
    [("none", r"/none has no such stream \(404\)"), ("sound", "check what follows the host in url")],
)
def test_streams_that_cannot_be_opened(path: str, message: str, server: RtspServer) -> None:
    with pytest.raises(SourceError, match=message):
        camera(f"rtsp://{server.address}/{path}").open(None)


@needs_rtsp
def test_a_live_stream_that_ends_is_trouble(server: RtspServer) -> None:
    source = camera(f"rtsp://{server.address}/short")
    source.open(None)
    assert "/short ended; nothing to do if it comes back" in trouble(source)
    source.close()


@needs_rtsp
def test_the_password_is_needed_and_is_never_shown(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    right, wrong = tmp_path / "right", tmp_path / "wrong"
    right.write_text(f"{ACCOUNT[1]}\n")
    wrong.write_text("p@ss:w/rd %42\n")
    told = []
    with RtspServer(*ACCOUNT) as server:
        source = camera(f"rtsp://{ACCOUNT[0]}@{server.address}/h264", password_file=str(right))
        source.open(None)
        assert is_red(read(source, 1)[0])
        server.kill()
        told.append(trouble(source))
        source.close()
        with pytest.raises(SourceError, match="refuses the connection") as refused:
            source.open(None)
        told.append(str(refused.value))
        server.start()
        for file in ({}, {"password_file": str(wrong)}):
            user = f"{ACCOUNT[0]}@" if file else ""
            with pytest.raises(SourceError, match=r"refuses the user or the password \(401\)") as refused:
                camera(f"rtsp://{user}{server.address}/h264", **file).open(None)
            assert refused.value.__cause__ is None
            told.append(str(refused.value))
    told += capfd.readouterr()
    assert not [text for text in told if "ss:w" in text or "%3Aw" in text]


@needs_rtsp
def test_a_server_that_is_started_again_is_read_again() -> None:
    with RtspServer() as server:
        source = camera(f"rtsp://{server.address}/h264")
        source.open(None)
        read(source, 3)
        server.kill()
        assert "/h264 ended" in trouble(source)
        source.close()
        server.start()
        source.open(None)
        assert is_red(read(source, 3)[0])
        source.close()


@needs_rtsp
@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_a_camera_that_falls_silent_is_noticed(transport: str) -> None:
    with RtspServer() as server:
        source = camera(f"rtsp://{server.address}/h264", rtsp_transport=transport, timeout=1.5)
        open_and_read(source)
        server.freeze()
        assert "/h264 sent nothing for " in trouble(source)
        source.close()


@pytest.mark.parametrize(("timeout", "limit"), [(0.3, 3600), (3600, 0.3)], ids=["silence", "opening"])
def test_a_server_that_never_answers(timeout: float, limit: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "OPEN_LIMIT", limit)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        for scheme in ("rtsp", "http"):
            with pytest.raises(SourceError, match="sent nothing for"):
                camera(f"{scheme}://127.0.0.1:{port}/", timeout=timeout).open(None)


def test_opening_a_camera_is_no_hang() -> None:
    assert 2 * video.OPEN_LIMIT < OPEN_DEADLINE


def test_a_host_that_nobody_knows() -> None:
    with pytest.raises(SourceError, match=r"the host no\.such\.invalid is not known"):
        camera("http://no.such.invalid/video").open(None)


class Mjpeg(BaseHTTPRequestHandler):
    """A camera that sends pictures of one colour until its `server.count` is used up."""

    server: Any

    def do_GET(self) -> None:
        if self.path == "/forbidden":
            self.send_error(403)
            return
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=picture")
        self.end_headers()
        jpeg = io.BytesIO()
        Image.new("RGB", (320, 240), (250, 10, 10)).save(jpeg, "JPEG")
        content = jpeg.getvalue()
        damaged = content[:2] + b"\xff" * (len(content) - 4) + content[-2:]
        for number in range(self.server.count):
            picture = damaged if number in self.server.damaged else content
            head = f"--picture\r\nContent-Type: image/jpeg\r\nContent-Length: {len(picture)}\r\n\r\n"
            try:
                self.wfile.write(head.encode() + picture + b"\r\n")
            except OSError:
                return

    def log_message(self, *_arguments: object) -> None:
        pass


@pytest.fixture
def mjpeg() -> Iterator[Any]:
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Mjpeg)
    # Closing it then waits for what still answers somebody.
    server.daemon_threads = False
    server.count, server.damaged = MAX_WAITING - 10, range(0)
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_http_mjpeg(mjpeg: Any) -> None:
    source = camera(f"{mjpeg.url}/video")
    source.open(None)
    assert is_red(read(source, 1)[0])
    assert "/video broke off; nothing to do if it comes back" in trouble(source)
    source.close()
    with pytest.raises(SourceError, match=r"/forbidden forbids it \(403\)"):
        camera(f"{mjpeg.url}/forbidden").open(None)


def test_damaged_pictures_are_counted_and_too_many_are_trouble(mjpeg: Any) -> None:
    mjpeg.damaged = range(30, 31)
    source = camera(f"{mjpeg.url}/video")
    source.open(None)
    assert "/video broke off; nothing to do if it comes back" in trouble(source)
    assert source.problems == {"a damaged picture": 1}
    source.close()
    mjpeg.count, mjpeg.damaged = ENDLESS, range(30, ENDLESS)
    source.open(None)
    assert "100 damaged pictures in a row" in trouble(source)
    source.close()


def collect(live: LiveVideo, samples: list[Sample]) -> None:
    """Gather samples until the camera gives up."""
    while True:
        sample = live.read(1, None)
        if sample is not None:
            samples.append(sample)


def opened_file(path: Path) -> Video:
    return open_video(Address(Kind.FILE, str(path)), str(path), timeout=10, options={})


def test_a_decoder_that_cannot_keep_up_costs_counted_pictures_up_to_the_next_key_frame(tmp_path: Path) -> None:
    """As a camera whose packets all come at once, before anybody takes one."""
    path = make_video(tmp_path / "a.ts", codec="mpeg4", form="mpegts", repeats=6)
    video = opened_file(path)
    packets = StreamPackets(video, Address(Kind.RTSP, "rtsp://cam/1"))
    packets._thread.join()
    skipped: list[str] = []
    live = LiveVideo(video, packets, Kind.RTSP, 0, skipped.append)
    samples: list[Sample] = []
    with pytest.raises(SourceError, match="rtsp://cam/1 ended"):
        collect(live, samples)
    live.close()
    assert packets.lost == MAX_WAITING
    assert 0 < len(samples) < MAX_WAITING
    assert len(skipped) + len(samples) == 96
    assert skipped.count("too late for the decoder") == 1
    assert skipped.count(skipped[0]) == MAX_WAITING
    assert skipped[0].startswith("the processor cannot decode as fast as the camera sends")


class Packet:
    """What a driver's packet tells."""

    time_base = Fraction(1, 1_000_000)

    def __init__(self, pts: int | None) -> None:
        self.pts = pts


def test_the_driver_tells_when_a_picture_was_taken() -> None:
    earlier = time.monotonic_ns() - 50_000_000
    stamped: Any = Packet(earlier // 1000)
    assert abs(video_live._driver_time(stamped) - earlier) < 1000
    for other in (None, time.time_ns() // 1000, 5):
        before = time.monotonic_ns()
        packet: Any = Packet(other)
        assert before <= video_live._driver_time(packet) <= time.monotonic_ns()


class Pipe:
    """A device whose pictures a test can hold back: a pipe, of which FFmpeg would have the descriptor."""

    def __init__(self, tmp_path: Path) -> None:
        self.path = tmp_path / "device"
        os.mkfifo(self.path)
        self.reading = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)
        self.writing = os.open(self.path, os.O_WRONLY)
        os.set_blocking(self.reading, True)
        self.closed = False

    def packets(self) -> Iterator[None]:
        if os.read(self.reading, 100):
            yield None

    def close(self) -> None:
        self.closed = True
        os.close(self.reading)


def test_a_device_is_never_waited_for_longer_than_asked(tmp_path: Path) -> None:
    device: Any = Pipe(tmp_path)
    assert descriptors(str(device.path)) == [device.reading, device.writing]
    address = Address(Kind.DEVICE, str(device.path))
    packets = DevicePackets(device, address, timeout=3600)
    assert not os.get_blocking(device.reading)
    assert packets.take(0) is None
    impatient = DevicePackets(device, address, timeout=0)
    with pytest.raises(SourceError, match="device sent nothing for 0s; unplug it and plug it in again"):
        impatient.take(0)
    os.close(device.writing)
    with pytest.raises(SourceError, match="device is gone; plug it in"):
        packets.take(1)
    packets.close()
    assert device.closed


@pytest.mark.skipif(not Path("/dev/video0").exists(), reason="there is no camera at /dev/video0")
def test_v4l2() -> None:
    source = camera("/dev/video0")
    source.open(None)
    samples = read(source, 10)
    source.close()
    assert {sample.data.shape for sample in samples} == {(24, 32, 3)}
    captured = [sample.captured_ns for sample in samples]
    assert captured == sorted(set(captured))
