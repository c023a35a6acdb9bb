"""The camera's options, its addresses, and videos in files."""

import asyncio
import os
import pty
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest

from edge_agent.inference.checks.source_check import check_source
from edge_agent.records import Sample
from edge_agent.sources import camera as camera_module
from edge_agent.sources.base import Source, SourceEnded, SourceError, build
from edge_agent.sources.camera import Camera
from edge_agent.sources.camera_address import Address, Kind, read_password
from edge_agent.sources.video import Scaler
from tests.sources.videos import COLOURS, colour_of, damage, make_video

type_of_read_all = Callable[[Source], list[Sample]]
GENEROUS = 30.0


def opened(path: Path, resume: str | None = None, size: tuple[int, int] | None = None, **options: object) -> Camera:
    source = build(Camera, {"url": str(path)} | options)
    if size:
        source.prefer_size(*size, "bilinear")
    source.open(resume)
    return source


@pytest.mark.parametrize("name", ["h264.mp4", "mpeg4.mp4", "mjpeg.avi", "h264.h264", "ffv1.mkv"])
def test_each_picture_comes_once_in_its_colour(name: str, tmp_path: Path, read_all: type_of_read_all) -> None:
    source = opened(make_video(tmp_path / name))
    samples = read_all(source)
    source.close()
    assert not source.live
    assert [colour_of(sample) for sample in samples] == COLOURS
    assert {sample.data.shape for sample in samples} == {(48, 64, 3)}
    assert {sample.size for sample in samples} == {None}
    assert source.skipped == 0


def test_pictures_are_scaled_to_the_model_and_tell_their_own_size(tmp_path: Path) -> None:
    source = opened(make_video(tmp_path / "a.mp4"), size=(101, 33))
    sample = source.read(GENEROUS)
    source.prefer_size(20, 20, "nearest")
    other = source.read(GENEROUS)
    source.close()
    assert sample is not None
    assert other is not None
    assert (sample.data.shape, sample.size) == ((33, 101, 3), (64, 48))
    assert (other.data.shape, other.size) == ((20, 20, 3), (64, 48))
    assert sample.data.flags.c_contiguous
    assert [colour_of(sample), colour_of(other)] == COLOURS[:2]


@pytest.mark.parametrize("name", ["h264.mp4", "h264.h264"])
def test_a_picture_that_kills_is_passed_over_with_those_that_need_it(
    name: str, tmp_path: Path, read_all: type_of_read_all
) -> None:
    path = make_video(tmp_path / name)  # with a key frame every four pictures
    source = opened(path)
    samples = read_all(source)
    assert source.key(samples[7].position or "") == (samples[7].position or "").partition(":")[2]
    for done, passes, goes_on in ((6, 1, 8), (6, 2, 12), (7, 1, 12), (3, 1, 8)):
        source.open(samples[done].position)
        for _ in range(passes):
            source.pass_over()
        rest = read_by_pieces(source)
        assert [colour_of(sample) for sample in rest] == COLOURS[goes_on:], (done, passes)
    source.open(None)
    source.pass_over()
    assert [colour_of(sample) for sample in read_by_pieces(source)] == COLOURS[4:]
    source.close()
    assert source.skipped == 6
    assert any("pictures up to the next key frame has ended the worker twice" in each for each in source.problems)


def test_passing_over_in_the_middle_goes_on_with_the_next_key_frame(tmp_path: Path) -> None:
    source = opened(make_video(tmp_path / "mjpeg.avi"))
    first = source.read(GENEROUS)
    assert first is not None
    source.pass_over()
    rest = read_by_pieces(source)
    source.close()
    # Each picture of this codec stands for itself; some may have been decoded already.
    assert [colour_of(sample) for sample in rest] == COLOURS[2:]


@pytest.mark.parametrize("name", ["h264.mp4", "mjpeg.avi", "h264.h264", "ffv1.mkv"])
def test_it_goes_on_behind_the_last_picture(name: str, tmp_path: Path, read_all: type_of_read_all) -> None:
    path = make_video(tmp_path / name)
    source = opened(path)
    samples = read_all(source)
    for done in (0, len(COLOURS) // 2, len(COLOURS) - 1):
        source.open(samples[done].position)
        rest = read_by_pieces(source)
        assert [sample.position for sample in rest] == [sample.position for sample in samples[done + 1 :]]
        assert [colour_of(sample) for sample in rest] == COLOURS[done + 1 :]
    source.close()


def read_by_pieces(source: Source) -> list[Sample]:
    """Read to the end; each call without a sample has come back after one picture that was left out."""
    found = []
    try:
        while True:
            sample = source.read(0)
            if sample is not None:
                found.append(sample)
    except SourceEnded:
        return found


@pytest.mark.parametrize("position", ["", "x", "0:", "0:#", "3:abc", "7:-"])
def test_a_position_without_meaning_is_the_beginning(position: str, tmp_path: Path) -> None:
    source = opened(make_video(tmp_path / "a.mp4"), position)
    sample = source.read(GENEROUS)
    source.close()
    assert sample is not None
    assert colour_of(sample) == COLOURS[0]


def test_a_file_is_repeated(tmp_path: Path) -> None:
    source = opened(make_video(tmp_path / "a.mp4"), repeat=True)
    samples = [sample for sample in (source.read(GENEROUS) for _ in range(2 * len(COLOURS) + 3)) if sample]
    source.close()
    assert [colour_of(sample) for sample in samples][: len(COLOURS) + 2] == [*COLOURS, *COLOURS[:2]]
    assert (samples[0].position, samples[len(COLOURS)].position) == ("0:0", "1:0")


@pytest.mark.parametrize("codec", ["mpeg4", "mjpeg"])
def test_a_damaged_picture_is_left_out_and_counted(codec: str, tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.avi", codec=codec)
    damage(path, 5)
    source = opened(path)
    samples = read_by_pieces(source)
    source.close()
    assert [colour_of(sample) for sample in samples] == COLOURS[:5] + COLOURS[6:]
    assert source.problems == {f"{path}: a damaged picture at 0.20 s": 1}


def test_a_picture_that_the_decoder_patched_up_is_left_out(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.avi", codec="mpeg4")
    damage(path, 5, intact=0.8)
    source = opened(path)
    assert len(read_by_pieces(source)) == len(COLOURS) - 1
    source.close()
    assert source.problems == {f"{path}: a damaged picture at 0.20 s": 1}


def test_a_truncated_file_ends_early(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.avi")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    source = opened(path)
    samples = read_by_pieces(source)
    source.close()
    assert 0 < len(samples) < len(COLOURS)


def test_a_file_without_a_usable_picture_is_not_repeated_for_ever(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.avi")
    damage(path, *range(len(COLOURS)))
    source = opened(path, repeat=True)
    with pytest.raises(SourceError, match="has no picture that can be used"):
        read_by_pieces(source)
    source.close()
    assert source.skipped == len(COLOURS)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"no video at all" * 100, "sends no video that FFmpeg can read"),
        (b"", "sends no video that FFmpeg can read"),
        (None, "is not there; see that the file is there"),
    ],
)
def test_what_cannot_be_opened_is_explained(content: bytes | None, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SourceError, match=reason):
        opened(path)


def test_a_file_does_not_make_ffmpeg_open_the_network(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        playlist = tmp_path / "list.m3u8"
        segment = f"http://127.0.0.1:{listening.getsockname()[1]}/real.ts"
        playlist.write_text("\n".join(["#EXTM3U", "#EXT-X-TARGETDURATION:1", "#EXTINF:1,", segment, "#EXT-X-ENDLIST"]))
        with pytest.raises(SourceError):
            opened(playlist, timeout=0.5)
        listening.setblocking(False)
        with pytest.raises(BlockingIOError):
            listening.accept()


def test_sound_is_no_picture(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    with pytest.raises(SourceError, match=r"a\.wav has no picture"):
        opened(path)


def test_large_pictures_without_a_matrix_have_that_of_hdtv() -> None:
    grey = av.VideoFrame(1280, 720, "yuv420p")
    for plane, value in zip(grey.planes, (120, 80, 90), strict=True):
        plane.update(bytes([value]) * plane.buffer_size)
    hdtv, _ = Scaler(Kind.RTSP).pixels(grey, None)
    television, _ = Scaler(Kind.DEVICE).pixels(grey, None)
    # ITU-R BT.709 and BT.601 for Y = 120, Cb = 80, Cr = 90.
    assert hdtv[0, 0].tolist() == pytest.approx([53, 150, 20], abs=8)
    assert television[0, 0].tolist() == pytest.approx([60, 171, 24], abs=8)
    assert hdtv[0, 0].tolist() != television[0, 0].tolist()


@pytest.mark.parametrize(
    ("url", "kind", "place"),
    [
        ("/dev/video0", Kind.DEVICE, "/dev/video0"),
        ("/dev/v4l/by-id/usb-Cam-video-index0", Kind.DEVICE, "/dev/v4l/by-id/usb-Cam-video-index0"),
        ("/srv/a.mp4", Kind.FILE, "/srv/a.mp4"),
        ("file:///srv/a%20b.mp4", Kind.FILE, "/srv/a b.mp4"),
        ("csi", Kind.CSI, "0"),
        ("csi:1", Kind.CSI, "1"),
        ("rtsp://cam/1", Kind.RTSP, "rtsp://cam/1"),
        ("RTSPS://me@cam:322/1", Kind.RTSP, "RTSPS://me@cam:322/1"),
        ("http://cam/video.mjpg", Kind.HTTP, "http://cam/video.mjpg"),
    ],
)
def test_addresses(url: str, kind: Kind, place: str) -> None:
    assert Address.of(url) == Address(kind, place)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("video.mp4", "the whole path of a video file"),
        ("ftp://cam/1", "expected a device"),
        ("rtsp:///1", "no host"),
        ("rtsp://cam:port/1", "cannot be understood"),
        ("rtsp://me:secret@cam/1", "there is a password in it; write only the user"),
        ("rtsp://cam/user=me&password=secret&channel=1", "there is a password in it"),
        ("http://cam/video?usr=me&pwd=secret", "there is a password in it"),
    ],
)
def test_addresses_that_are_refused(url: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        Address.of(url)
    assert "secret" not in str(refused.value)


def test_the_password_goes_where_it_belongs() -> None:
    account = Address.of("rtsp://me@cam:554/1?x=1")
    assert account.wants_password
    assert account.with_password("p@ss:w/rd %41") == "rtsp://me:p%40ss%3Aw%2Frd%20%2541@cam:554/1?x=1"
    assert account.shown == "rtsp://me@cam:554/1?…"
    inside = Address.of("rtsp://cam/user=me&password={password}&channel=1")
    assert inside.wants_password
    assert inside.with_password("a&b") == "rtsp://cam/user=me&password=a%26b&channel=1"
    assert inside.shown == inside.place
    beside_the_user = Address.of("rtsp://me:{password}@cam/1")
    assert beside_the_user.wants_password
    assert beside_the_user.with_password("a@b") == "rtsp://me:a%40b@cam/1"
    assert beside_the_user.shown == "rtsp://me:{password}@cam/1"

    assert not Address.of("rtsp://cam/1").wants_password


def test_the_password_is_the_first_line_of_its_file(tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.write_text("secret word \r\nmore\n")
    assert read_password(path) == "secret word "
    path.write_bytes("gehe\xefm\n".encode("latin-1"))
    assert Address.of("rtsp://me@cam/1").with_password(read_password(path)) == "rtsp://me:gehe%EFm@cam/1"
    path.write_text("\n")
    with pytest.raises(ValueError, match="is empty"):
        read_password(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"url": "/srv/a.mp4", "width": 640, "height": 480}, "width means nothing for a video file"),
        ({"url": "rtsp://cam/1", "repeat": True}, "repeat means nothing for a network camera"),
        ({"url": "csi", "format": "mjpeg"}, "format means nothing for a CSI camera"),
        ({"url": "/dev/video0", "width": 640}, "width and height belong together"),
        ({"url": "rtsp://me@cam/1"}, "password_file and a user in url belong together"),
        ({"url": "/dev/null"}, "/dev/null is no camera"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Camera.Options(**options).check()  # type: ignore[arg-type]  # as the settings give them


@pytest.mark.parametrize("url", ["/dev/video-of-nobody", "/srv/video-of-nobody.mp4"])
def test_what_is_not_there_now_may_come(url: str) -> None:
    with pytest.raises(FileNotFoundError):
        Camera.Options(url=url).check()


def test_a_password_file_without_a_user_is_refused_and_one_that_is_missing_may_come(tmp_path: Path) -> None:
    missing = tmp_path / "password"
    with pytest.raises(ValueError, match="belong together"):
        Camera.Options(url="rtsp://cam/1", password_file=missing).check()
    with pytest.raises(FileNotFoundError):
        Camera.Options(url="rtsp://me@cam/1", password_file=missing).check()


def test_without_pyav_the_check_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(camera_module, "find_spec", lambda _name: None)
    with pytest.raises(OSError, match=r"needs PyAV: apt install python3-av \(or, .* pip install av\)"):
        Camera.Options(url="rtsp://cam/1").check()
    for name in [name for name in sys.modules if name.partition(".")[0] == "av"]:
        monkeypatch.setitem(sys.modules, name, None)
    for url in ("http://127.0.0.1:9/", "/srv/video.mp4"):
        with pytest.raises(SourceError, match="needs PyAV"):
            build(Camera, {"url": url}).open(None)


def test_a_device_that_is_not_there_or_is_none_is_explained() -> None:
    with pytest.raises(SourceError, match="is not there; plug it in; ls /dev/v4l/by-id"):
        build(Camera, {"url": "/dev/video-of-nobody"}).open(None)
    ours, theirs = pty.openpty()
    try:
        with pytest.raises(SourceError, match=f"{os.ttyname(theirs)} "):
            build(Camera, {"url": os.ttyname(theirs)}).open(None)
    finally:
        os.close(ours)
        os.close(theirs)


def test_the_check_of_the_settings_finds_it_and_never_shows_a_password() -> None:
    check = asyncio.run(check_source("camera", {"url": "rtsp://me:secret@cam/1"}, Path("/")))
    (fault,) = check.faults
    assert "password_file" in fault.message
    assert "secret" not in fault.message


def test_the_check_of_the_settings_completes_the_options(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("secret")
    given = {"url": "rtsp://me@cam/1", "password_file": "password", "timeout": "500ms"}
    check = asyncio.run(check_source("camera", given, tmp_path))
    assert not check.faults
    assert build(Camera, check.options)._options == Camera.Options(
        url="rtsp://me@cam/1", password_file=tmp_path / "password", timeout=0.5
    )


def test_pyav_is_loaded_only_for_a_camera_that_is_opened() -> None:
    code = "import sys, edge_agent.sources.camera; print('av' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert told.stdout == "False\n"
