"""Pictures on the disk: what waits, what has to go, and what a killed process leaves."""

import tempfile
from pathlib import Path

import pytest

from edge_agent.raw_data.spool import Damaged, Picture, Spool
from tests.raw_data.kit import JPEG, hand_over, names

MEMORY = Path("/dev/shm")


def spool_in(folder: Path, destination: str = "gs://bucket/a", **limits: int) -> Spool:
    return Spool(folder / "state", folder / "run", destination, **({"min_free": 0} | limits))


def test_what_has_to_wait_goes_to_the_disk_as_it_is(tmp_path: Path) -> None:
    spool = spool_in(tmp_path)
    first, second = hand_over(spool, 1), hand_over(spool, 2, JPEG + JPEG)
    assert spool.settle() == []
    assert (names(spool.handover), names(spool.waiting)) == ([], [first, second])
    assert [(picture.size, picture.written_ms) for picture in sorted(spool.pictures(), key=lambda each: each.path)] == [
        (len(JPEG), 1000),
        (2 * len(JPEG), 2000),
    ]
    assert spool.settle() == []


@pytest.mark.skipif(
    not MEMORY.is_dir() or MEMORY.stat().st_dev == Path("/tmp").stat().st_dev,
    reason="/dev/shm and /tmp are no two file systems here",
)
def test_from_memory_to_disk_a_file_keeps_its_time(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=MEMORY) as runtime:
        spool = Spool(tmp_path, Path(runtime), "gs://bucket/a", min_free=0)
        name = hand_over(spool, 1234)
        assert spool.settle() == []
        assert (names(spool.handover), names(spool.waiting)) == ([], [name])
        [picture] = spool.pictures()
        assert picture.written_ms == 1_234_000
        assert spool.read(picture) == JPEG


def test_the_oldest_is_next_wherever_it_lies(tmp_path: Path) -> None:
    spool = spool_in(tmp_path)
    assert spool.oldest() is None
    hand_over(spool, 5)
    spool.settle()
    hand_over(spool, 6)
    name = hand_over(spool, 4)
    oldest = spool.oldest()
    assert oldest is not None
    assert oldest.path.name == name


def test_the_oldest_go_when_too_many_wait(tmp_path: Path) -> None:
    spool = spool_in(tmp_path, max_files=2)
    waiting = [hand_over(spool, number) for number in (1, 2)]
    spool.settle()
    new = hand_over(spool, 3)
    lost = spool.settle()
    assert [(each.path.name, each.written_ms) for each in lost] == [(waiting[0], 1000)]
    assert names(spool.waiting) == [waiting[1], new]


def test_the_oldest_go_when_too_many_bytes_wait(tmp_path: Path) -> None:
    spool = spool_in(tmp_path, max_bytes=3 * len(JPEG))
    kept = [hand_over(spool, 1), hand_over(spool, 2, JPEG * 2), hand_over(spool, 3)][1:]
    assert len(spool.settle()) == 1
    assert names(spool.waiting) == kept


def test_a_disk_that_is_nearly_full_takes_none(tmp_path: Path) -> None:
    spool = spool_in(tmp_path, min_free=2**62)
    hand_over(spool, 1)
    assert len(spool.settle()) == 1
    assert (names(spool.waiting), names(spool.handover)) == ([], [])


def test_pictures_for_another_place_are_given_up(tmp_path: Path) -> None:
    old, new = spool_in(tmp_path, "gs://bucket/old"), spool_in(tmp_path, "gs://bucket/new")
    hand_over(old, 1)
    old.settle()
    hand_over(old, 2)
    kept = hand_over(new, 3)
    assert sorted(each.written_ms for each in new.clean()) == [1000, 2000]
    assert (old.pictures(), names(new.handover)) == ([], [kept])
    assert new.clean() == []
    assert [each.written_ms for each in spool_in(tmp_path, "").clean()] == [3000]


def test_what_was_left_unfinished_is_removed_and_no_picture_is(tmp_path: Path) -> None:
    spool = spool_in(tmp_path)
    waiting = hand_over(spool, 1)
    spool.settle()
    handed = hand_over(spool, 2)
    (spool.waiting / "torn.new").write_bytes(b"half")
    (spool.handover / "torn.jpg.new").write_bytes(b"half")
    spool.handover.with_name("budget.json").write_text("{}")
    spool.remove_unfinished()
    assert (names(spool.waiting), names(spool.handover)) == ([waiting], [handed])
    assert spool.clean() == []
    assert spool.handover.with_name("budget.json").exists()


@pytest.mark.parametrize("content", [b"", b"\0" * 100, JPEG[:-1]])
def test_half_a_picture_is_none(tmp_path: Path, content: bytes) -> None:
    spool = spool_in(tmp_path)
    hand_over(spool, 1, content)
    [picture] = spool.pictures()
    with pytest.raises(Damaged, match="no whole picture"):
        spool.read(picture)


def test_a_picture_that_moved_while_it_was_uploaded_is_removed_all_the_same(tmp_path: Path) -> None:
    spool = spool_in(tmp_path)
    hand_over(spool, 1)
    [picture] = spool.pictures()
    spool.settle()
    spool.remove(picture)
    assert spool.pictures() == []
    spool.remove(Picture(picture.path, 1, 1))


def test_without_a_runtime_directory_all_of_it_is_in_the_state_directory(tmp_path: Path) -> None:
    spool = Spool(tmp_path, None, "gs://bucket/a", min_free=0)
    assert spool.handover.is_relative_to(tmp_path)
    assert spool.handover != spool.waiting
