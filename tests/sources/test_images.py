import errno
import os
import threading
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from watchdog.events import FileClosedEvent, FileMovedEvent
from watchdog.observers.inotify import InotifyObserver

from edge_agent.records import Sample
from edge_agent.sources import folder as folder_module
from edge_agent.sources.base import Pacer, Source, SourceEnded, SourceError, build, describe
from edge_agent.sources.folder import Arrivals
from edge_agent.sources.images import SCAN_INTERVAL, Images
from edge_agent.testing import Clock

GENEROUS = 30.0
type_of_read_all = Callable[[Source], list[Sample]]


def picture(path: Path, colour: int = 0, size: tuple[int, int] = (6, 4), **options: object) -> Path:
    """Write an image of one grey level. A name without a known suffix becomes a PNG."""
    known = path.suffix.lower() in Image.registered_extensions()
    Image.new("RGB", size, (colour,) * 3).save(path, None if known else "PNG", **options)
    return path


def images(path: Path, resume: str | None = None, **options: object) -> Images:
    source = build(Images, {"path": str(path)} | options)
    source.open(resume)
    return source


def names(samples: list[Sample]) -> list[str | None]:
    return [sample.position for sample in samples]


@pytest.mark.parametrize("suffix", ["jpg", "JPEG", "png", "bmp", "webp", "gif", "tif", "ppm"])
def test_formats(suffix: str, tmp_path: Path, read_all: type_of_read_all) -> None:
    picture(tmp_path / f"a.{suffix}", 128)
    source = images(tmp_path, watch=False)
    (sample,) = read_all(source)
    source.close()
    assert (sample.data.dtype.name, sample.data.shape) == ("uint8", (4, 6, 3))
    assert np.abs(sample.data.astype(int) - 128).max() <= 2
    assert sample.position == f"a.{suffix}"
    assert not source.live


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_all_modes_become_rgb(mode: str, tmp_path: Path, read_all: type_of_read_all) -> None:
    white: object = {"I;16": 0xFFFF, "LA": (255, 255), "RGBA": (255,) * 4, "CMYK": (0,) * 4, "P": 215}.get(mode, 255)
    image = Image.new("RGB", (6, 4), "white").convert("P") if mode == "P" else Image.new(mode, (6, 4), white)  # type: ignore[arg-type]  # one colour per mode
    image.save(tmp_path / ("a.tif" if mode == "CMYK" else "a.png"))
    source = images(tmp_path, watch=False)
    (sample,) = read_all(source)
    assert sample.data.shape == (4, 6, 3)
    assert (sample.data == 255).all()


@pytest.mark.parametrize("suffix", ["png", "pgm", "tif"])
def test_sixteen_bits_keep_their_upper_half(suffix: str, tmp_path: Path, read_all: type_of_read_all) -> None:
    levels = np.array([[0, 0x1234, 0x80FF, 0xFFFF]], dtype=np.uint16)
    Image.fromarray(levels).save(tmp_path / f"a.{suffix}")
    (sample,) = read_all(images(tmp_path, watch=False))
    assert sample.data[0, :, 0].tolist() == [0, 0x12, 0x80, 0xFF]


def test_exif_orientation_is_applied(tmp_path: Path, read_all: type_of_read_all) -> None:
    pixels = np.zeros((16, 32, 3), dtype=np.uint8)
    pixels[:, :16] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees: what was left is now at the top
    Image.fromarray(pixels).save(tmp_path / "a.jpg", exif=exif)
    (sample,) = read_all(images(tmp_path, watch=False))
    assert sample.data.shape == (32, 16, 3)
    assert sample.data[:12].min() > 200
    assert sample.data[-12:].max() < 50


def test_a_folder_in_the_order_of_names(tmp_path: Path, read_all: type_of_read_all) -> None:
    for name in ("b.png", "a.png", "c.JPG", "10.png", "9.png"):
        picture(tmp_path / name)
    for name in ("notes.txt", ".hidden.png", "upload.png.part"):
        (tmp_path / name).write_text("no image")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "broken-link.png").symlink_to(tmp_path / "nowhere")
    source = images(tmp_path, watch=False)
    assert names(read_all(source)) == ["10.png", "9.png", "a.png", "b.png", "c.JPG"]
    assert source.skipped == 0


def test_a_pattern_and_a_single_file(tmp_path: Path, read_all: type_of_read_all) -> None:
    for name in ("cam1-a.png", "cam1-b.raw", "cam2-a.png", ".cam1-c.png", "x[1].png"):
        picture(tmp_path / name)
    assert names(read_all(images(tmp_path / "cam1-*", watch=False))) == ["cam1-a.png", "cam1-b.raw"]
    assert names(read_all(images(tmp_path / "*.png", watch=False))) == ["cam1-a.png", "cam2-a.png", "x[1].png"]
    assert names(read_all(images(tmp_path / ".c*", watch=False))) == [".cam1-c.png"]
    assert names(read_all(images(tmp_path / "cam2-a.png", watch=False))) == ["cam2-a.png"]
    assert names(read_all(images(tmp_path / "x[1].png", watch=False))) == ["x[1].png"]


def test_ends_once_all_is_read(tmp_path: Path, read_all: type_of_read_all) -> None:
    source = images(picture(tmp_path / "a.png"), watch=False)
    assert len(read_all(source)) == 1
    with pytest.raises(SourceEnded, match=r"/a\.png: all images were read"):
        source.read(1)


def test_goes_on_after_a_restart(tmp_path: Path, read_all: type_of_read_all) -> None:
    for name in "abcd":
        picture(tmp_path / f"{name}.png")
    assert names(read_all(images(tmp_path, resume="b.png", watch=False))) == ["c.png", "d.png"]
    assert names(read_all(images(tmp_path, resume="bb.png", watch=False))) == ["c.png", "d.png"]
    assert names(read_all(images(tmp_path, resume="d.png", watch=False))) == []


def test_repeats_and_goes_on_within_the_round(tmp_path: Path) -> None:
    for number, name in enumerate("abc"):
        picture(tmp_path / f"{name}.png", number)
    source = images(tmp_path, resume="b.png", repeat=True, watch=False)
    samples = [source.read(1) for _ in range(6)]
    assert [sample.position for sample in samples if sample] == ["c.png", "a.png", "b.png", "c.png", "a.png", "b.png"]
    assert [sample.data[0, 0, 0] for sample in samples if sample] == [2, 0, 1, 2, 0, 1]
    last = images(tmp_path, resume="c.png", repeat=True, watch=False).read(1)
    assert last is not None
    assert last.position == "a.png"


def test_a_repeated_file_is_decoded_again_only_when_it_changes(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png", 1)
    source = images(path, repeat=True, watch=False)
    first, second = source.read(1), source.read(1)
    picture(tmp_path / "new.png", 2).replace(path)
    third = source.read(1)
    assert first is not None
    assert second is not None
    assert third is not None
    assert second.data is first.data
    assert third.data[0, 0, 0] == 2


def damaged(tmp_path: Path, name: str) -> Path:
    """A file called `name` with the damage its stem says."""
    path = tmp_path / name
    stem = path.stem
    if stem == "truncated":
        pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        os.truncate(path, path.stat().st_size // 2)
    elif stem == "bits":
        picture(path, size=(64, 64))
        content = bytearray(path.read_bytes())
        content[40:60] = bytes(20)
        path.write_bytes(content)
    elif stem == "float":
        Image.new("F", (4, 4)).save(path)
    else:
        path.write_bytes(b"" if stem == "empty" else b"this is text")
    return path


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("truncated.jpg", "image file is truncated"),
        ("truncated.png", "image file is truncated"),
        ("bits.png", ""),
        ("empty.png", "no image in a known format (JPEG, PNG, BMP, WEBP, GIF, TIFF, PPM)"),
        ("text.jpg", "no image in a known format (JPEG, PNG, BMP, WEBP, GIF, TIFF, PPM)"),
        ("float.tif", "its pixels are 32-bit numbers; expected 8 or 16 bits"),
    ],
)
def test_a_damaged_image_is_left_out_counted_and_named(
    name: str, reason: str, tmp_path: Path, read_all: type_of_read_all
) -> None:
    damaged(tmp_path, name)
    picture(tmp_path / "zzz.png")
    source = images(tmp_path, watch=False)
    assert names(read_all(source)) == ["zzz.png"]
    assert source.skipped == 1
    (problem,) = source.problems
    assert problem.startswith(f"{name}: {reason}")


def test_only_known_formats_are_tried(tmp_path: Path, read_all: type_of_read_all) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.png")
    source = images(tmp_path, watch=False)
    assert read_all(source) == []
    assert list(source.problems) == ["a.png: no image in a known format (JPEG, PNG, BMP, WEBP, GIF, TIFF, PPM)"]


@pytest.mark.parametrize("limit", [20, 10], ids=["Pillow only warns", "Pillow refuses"])
def test_decompression_bombs_are_refused(
    limit: int, tmp_path: Path, read_all: type_of_read_all, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture(tmp_path / "bomb.png", size=(6, 4))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        source = images(tmp_path, watch=False)
        assert read_all(source) == []
    (problem,) = source.problems
    assert problem == f"bomb.png: too large: it has more than {limit} pixels"


def test_a_file_that_vanished_or_may_not_be_read(tmp_path: Path, read_all: type_of_read_all) -> None:
    for name in ("a.png", "b.png", "c.png"):
        picture(tmp_path / name)
    source = images(tmp_path, watch=False)
    (tmp_path / "a.png").unlink()
    (tmp_path / "b.png").unlink()
    os.mkfifo(tmp_path / "b.png")
    assert names(read_all(source)) == ["c.png"]
    assert source.problems == {"a.png: no file, or no longer there": 1, "b.png: no file, or no longer there": 1}


def test_a_name_that_is_no_text(tmp_path: Path, read_all: type_of_read_all) -> None:
    (tmp_path / "b\udce9.png").write_bytes(picture(tmp_path / "a.png").read_bytes())
    picture(tmp_path / "c.png")
    source = images(tmp_path, watch=False)
    assert names(read_all(source)) == ["a.png", "b\\udce9.png", "c.png"]
    assert names(read_all(images(tmp_path, resume="b\\udce9.png", watch=False))) == ["c.png"]


def test_repeating_nothing_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no image")
    source = images(tmp_path, repeat=True, watch=False)
    with pytest.raises(SourceError) as caught:
        source.read(1)
    assert str(caught.value) == (
        f"{tmp_path}: no image there can be used; put images there, or set watch = true to wait for some"
    )
    assert source.skipped == 1


def test_damaged_images_do_not_hold_up_the_reader(tmp_path: Path, clock: Clock) -> None:
    for number in range(3):
        (tmp_path / f"{number}.png").write_text("no image")
    source = Images(Images.Options(path=tmp_path, watch=False), clock=clock)
    source.open(None)
    assert [source.read(0) for _ in range(3)] == [None] * 3
    assert source.skipped == 3


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("none.png", "{0}/none.png: no such file or folder"),
        ("none/a.png", "{0}/none: no such folder"),
        ("none/*.png", "{0}/none: no such folder"),
        ("cam*/*.png", "{0}/cam*/*.png: only the file name may have wildcards, not the folders before it"),
    ],
)
def test_a_path_that_leads_nowhere(path: str, message: str, tmp_path: Path) -> None:
    with pytest.raises((FileNotFoundError, ValueError)) as fault:
        Images.Options(path=tmp_path / path).check()
    told = describe(fault.value) if isinstance(fault.value, OSError) else str(fault.value)
    assert told == message.format(tmp_path)
    with pytest.raises(SourceError) as caught:
        images(tmp_path / path)
    assert caught.value.reason == message.format(tmp_path)
    assert caught.value.remedy == "see that the folder is there and that the service may read it"


def test_check(tmp_path: Path) -> None:
    Images.Options(path=tmp_path).check()
    Images.Options(path=tmp_path / "*.jpg").check()
    with pytest.raises(FileNotFoundError, match=r"no image there, and watch = false"):
        Images.Options(path=tmp_path / "*.jpg", watch=False).check()
    picture(tmp_path / "a.jpg")
    Images.Options(path=tmp_path / "*.jpg", watch=False).check()


def test_rate(tmp_path: Path, clock: Clock) -> None:
    path = picture(tmp_path / "a.png")
    pacer = Pacer(2, clock=clock, sleep=clock.sleep)
    source = Images(Images.Options(path=path, rate=2, repeat=True, watch=False), pacer=pacer, clock=clock)
    source.open(None)
    start = clock.now
    for _ in range(5):
        assert source.read(1) is not None
    assert clock.now - start == pytest.approx(2.0)
    assert source.read(0.2) is None


# Real inotify from here on.


def test_files_that_arrive_by_writing_and_by_moving(tmp_path: Path) -> None:
    watched, elsewhere = tmp_path / "watched", tmp_path / "elsewhere"
    watched.mkdir()
    elsewhere.mkdir()
    source = images(watched)
    try:
        assert source.read(0) is None
        picture(watched / "written.png", 1)
        assert position(source) == "written.png"
        picture(elsewhere / "moved.png").rename(watched / "moved.png")
        assert position(source) == "moved.png"
        picture(watched / "renamed.tmp").rename(watched / "renamed.png")
        assert position(source) == "renamed.png"
        picture(watched / "not-wanted.raw").rename(elsewhere / "gone.png")
        (watched / "moved.png").rename(elsewhere / "moved.png")
        picture(watched / "last.png")
        assert position(source) == "last.png"
        assert source.read(0) is None
        assert source.skipped == 0
    finally:
        source.close()


def test_only_complete_files_are_taken(tmp_path: Path) -> None:
    content = picture(tmp_path / "ready.bin").read_bytes()
    source = images(tmp_path)
    try:
        with (tmp_path / "slow.png").open("wb", buffering=0) as file:
            file.write(content[:50])
            # This one is written later but complete earlier: inotify reports in order.
            picture(tmp_path / "quick.png")
            assert position(source) == "quick.png"
            assert source.read(0) is None
            file.write(content[50:])
        assert position(source) == "slow.png"
        assert source.skipped == 0
    finally:
        source.close()


def test_what_was_worked_on_and_did_not_change_is_no_new_image(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png")
    source = images(tmp_path)
    try:
        assert position(source) == "a.png"
        path.open("ab").close()
        picture(tmp_path / "b.png")
        assert position(source) == "b.png"
    finally:
        source.close()


def test_a_file_that_leaves_is_none(tmp_path: Path) -> None:
    arrivals = Arrivals(Images.Options(path=tmp_path / "*").selection())
    # What inotify tells of a file that is moved to a folder nobody watches.
    arrivals.on_moved(FileMovedEvent(str(tmp_path / "a.png"), ""))
    assert arrivals.take(0) == []
    arrivals.stop()


def test_a_file_written_again_is_a_new_image(tmp_path: Path) -> None:
    path = picture(tmp_path / "latest.png", 1)
    source = images(path)
    try:
        for level in (1, 2, 3):
            picture(tmp_path / "next.png", level).replace(path)
            sample = source.read(GENEROUS)
            assert sample is not None
            assert sample.data[0, 0, 0] == level
    finally:
        source.close()


def test_a_folder_behind_a_symbolic_link_is_watched(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    source = images(tmp_path / "link")
    try:
        picture(tmp_path / "real" / "a.png")
        assert position(source) == "a.png"
    finally:
        source.close()


def test_waiting_wakes_up_for_a_file(tmp_path: Path) -> None:
    source = images(tmp_path)
    writer = threading.Timer(0.05, picture, [tmp_path / "a.png"])
    writer.start()
    try:
        assert position(source) == "a.png"
    finally:
        writer.join()
        source.close()


def test_watching_and_repeating(tmp_path: Path) -> None:
    source = images(tmp_path, repeat=True)
    try:
        assert source.read(0) is None
        picture(tmp_path / "b.png")
        assert [position(source) for _ in range(3)] == ["b.png"] * 3
        picture(tmp_path / "a.png")
        seen = {position(source) for _ in range(6)}
        assert seen == {"a.png", "b.png"}
    finally:
        source.close()


def test_a_flood_is_bounded_and_the_rest_found_by_scanning(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_module, "MAX_ARRIVALS", 3)
    arrivals = Arrivals(Images.Options(path=tmp_path).selection())
    for number in range(10):
        arrivals.on_closed(FileClosedEvent(str(tmp_path / f"{number}.png")))
    assert arrivals.take(0) == ["0.png", "1.png", "2.png"]
    arrivals.stop()

    source = Images(Images.Options(path=tmp_path), clock=clock)
    source.open(None)
    try:
        content = picture(tmp_path / "template.bin").read_bytes()
        for number in range(10):
            (tmp_path / f"{number}.png").write_bytes(content)
        found = [position(source) for _ in range(3)]
        for _ in range(2):
            clock.now += SCAN_INTERVAL
            while (sample := source.read(0)) is not None:
                found.append(sample.position)
        assert sorted(name for name in found if name) == [f"{n}.png" for n in range(10)]
    finally:
        source.close()


def test_the_scan_finds_what_inotify_did_not_tell(tmp_path: Path, clock: Clock) -> None:
    source = Images(Images.Options(path=tmp_path), clock=clock)
    source.open(None)
    try:
        # A hard link is complete at once, and nothing is closed or moved.
        os.link(picture(tmp_path / "outside.bin"), tmp_path / "linked.png")
        assert source.read(0) is None
        clock.now += SCAN_INTERVAL
        assert source.read(0) is None  # seen for the first time: it may still be growing
        clock.now += SCAN_INTERVAL
        sample = source.read(0)
        assert sample is not None
        assert sample.position == "linked.png"
        clock.now += SCAN_INTERVAL
        assert source.read(0) is None  # not twice
    finally:
        source.close()


def test_a_folder_that_was_removed_or_replaced_is_opened_anew(tmp_path: Path, clock: Clock) -> None:
    watched = tmp_path / "watched"
    watched.mkdir()
    source = Images(Images.Options(path=watched), clock=clock)
    try:
        source.open(None)
        watched.rename(tmp_path / "away")
        clock.now += SCAN_INTERVAL
        with pytest.raises(SourceError, match="/watched: no such file or directory; see that the folder is there"):
            source.read(0)
        watched.mkdir()
        clock.now += SCAN_INTERVAL
        with pytest.raises(SourceError, match="/watched: the folder was removed or replaced; nothing to do if"):
            source.read(0)

        source.open(None)
        # The new folder often gets the inode of the old one.
        watched.rmdir()
        watched.mkdir()
        with pytest.raises(SourceError, match="/watched: the folder was removed or replaced; nothing to do if"):
            read_and_scan(source, clock)

        source.open(None)
        picture(watched / "a.png")
        assert position(source) == "a.png"
    finally:
        source.close()


def test_the_limit_of_watches_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "inotify watch limit reached")

    monkeypatch.setattr(InotifyObserver, "start", refuse)
    with pytest.raises(SourceError, match="inotify watch limit reached"):
        images(tmp_path)


def test_close_may_be_called_twice_and_after_a_failed_open(tmp_path: Path) -> None:
    source = images(tmp_path)
    source.close()
    source.close()
    never = build(Images, {"path": str(tmp_path / "none")})
    with pytest.raises(SourceError):
        never.open(None)
    never.close()


def read_and_scan(source: Images, clock: Clock) -> None:
    """Read until an image or an error comes, with a scan each time."""
    while source.read(0.1) is None:
        clock.now += SCAN_INTERVAL


def position(source: Images) -> str | None:
    """Wait for an image and return its position."""
    sample = source.read(GENEROUS)
    assert sample is not None
    return sample.position


def test_an_image_is_passed_over_without_being_touched(
    tmp_path: Path, read_all: type_of_read_all, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abcd":
        picture(tmp_path / f"{name}.png")
    # Nobody can open it: reading would count it as one that cannot be used.
    (tmp_path / "b.png").unlink()
    (tmp_path / "b.png").symlink_to("/proc/self/mem")
    source = images(tmp_path, resume="a.png", watch=False)
    source.pass_over()
    assert list(source.problems) == ["b.png has ended the worker twice and is left out"]
    source.pass_over()
    assert names(read_all(source)) == ["d.png"]
    source.pass_over()
    assert source.skipped == 2


def test_what_was_passed_over_stays_left_out_until_it_is_written_again(tmp_path: Path) -> None:
    deadly, other = picture(tmp_path / "a.png"), picture(tmp_path / "b.png")
    source = images(tmp_path, repeat=True, watch=False)
    source.pass_over()
    assert [position(source) for _ in range(3)] == [other.name] * 3
    picture(deadly, colour=9, size=(9, 9))
    assert [position(source) for _ in range(2)] == [deadly.name, other.name]
    source.close()


def test_the_next_round_begins_behind_what_is_passed_over(tmp_path: Path) -> None:
    for name in "ab":
        picture(tmp_path / f"{name}.png")
    source = images(tmp_path, resume="b.png", repeat=True, watch=False)
    source.pass_over()
    assert position(source) == "b.png"
    source.close()
