"""Uploading as long as it takes: what arrives, what waits, and what is counted."""

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import structlog

from edge_agent.models.stores.base import Forbidden, StoreError, StoreUnavailable
from edge_agent.raw_data.destinations import Destination
from edge_agent.raw_data.spool import Spool
from edge_agent.raw_data.uploads import Uploads
from edge_agent.records import Chosen, Result
from edge_agent.telemetry.sending.backoff import Backoff
from tests.raw_data.kit import JPEG, hand_over, names

CHOSEN = [Result(1, 1, [], 0.0, chosen=Chosen("one_in", "gs://bucket/a/x.jpg"))]
UNAVAILABLE = StoreUnavailable("gs://bucket/a/: no data in time")
FORBIDDEN = Forbidden("gs://bucket/a/: no right", "grant it")


class Place:
    """A destination that does what the test says."""

    def __init__(self) -> None:
        self.pictures: dict[str, bytes] = {}
        self.error: StoreError | None = None
        self.tries = 0
        self.asked = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()

    def put(self, name: str, data: bytes) -> None:
        self.tries += 1
        self.asked.set()
        assert self.go_on.wait(30)
        if self.error is not None:
            raise self.error
        self.pictures[name] = data


class Watched(Uploads):
    """Tells when it has nothing to do but to wait."""

    resting: asyncio.Event

    async def _until_something_is_to_do(self) -> None:
        if not self._news.is_set():
            self.resting.set()
        await super()._until_something_is_to_do()


class Rig:
    """An uploader with its place, its clock and its losses."""

    def __init__(self, folder: Path, **limits: int) -> None:
        self.now = 100.0
        self.losses: list[tuple[str, int, int, int]] = []
        self.place = Place()
        self.folder = folder
        self.spool = self.make_spool("gs://bucket/a", **limits)
        self.uploads = Watched(
            lambda *loss: self.losses.append(loss),
            retry=Backoff(10.0, 40.0, jitter=0.0),
            ask=Backoff(100.0, 400.0, jitter=0.0),
            clock=lambda: self.now,
        )
        self.uploads.resting = asyncio.Event()
        self.uploads.use(self.spool, self.place)

    def make_spool(self, destination: str, **limits: int) -> Spool:
        return Spool(self.folder / "state", self.folder / "run", destination, **({"min_free": 0} | limits))

    async def rests(self) -> None:
        """Wait until it has done what there was to do."""
        async with asyncio.timeout(30):
            await self.uploads.resting.wait()

    async def news(self, results: Sequence[Result] = CHOSEN) -> None:
        """Tell it of results, and wait until it has looked."""
        self.uploads.resting.clear()
        self.uploads.note(results)
        await self.rests()

    async def use(self, spool: Spool, place: Destination | None) -> None:
        """Give it other settings, and wait until it works with them."""
        self.uploads.resting.clear()
        self.uploads.use(spool, place)
        await self.rests()


@asynccontextmanager
async def running(rig: Rig) -> AsyncIterator[None]:
    task = asyncio.create_task(rig.uploads.run())
    try:
        await rig.rests()
        yield
    finally:
        await rig.uploads.stop(30.0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def test_a_picture_is_uploaded_from_memory_and_never_reaches_the_disk(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = Rig(tmp_path)
        async with running(rig):
            name = hand_over(rig.spool, 1)
            await rig.news()
            assert rig.place.pictures == {name.replace(",", "/"): JPEG}
            assert rig.uploads.state.uploaded == 1
            assert rig.spool.pictures() == []
        assert not rig.spool.waiting.exists()
        assert rig.losses == []

    asyncio.run(scenario())


def test_results_without_a_picture_are_no_news(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = Rig(tmp_path)
        async with running(rig):
            rig.uploads.note([Result(1, 1, [], 0.0), Result(1, 1, [], 0.0, chosen=Chosen("one_in"))])
            assert not rig.uploads._news.is_set()

    asyncio.run(scenario())


def test_what_a_start_finds_is_uploaded_oldest_first(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = Rig(tmp_path)
        hand_over(rig.spool, 7)
        rig.spool.settle()
        hand_over(rig.spool, 8)
        hand_over(rig.spool, 6)
        async with running(rig):
            assert [name[-5:] for name in rig.place.pictures] == ["6.jpg", "7.jpg", "8.jpg"]

    asyncio.run(scenario())


def test_out_of_reach_pictures_wait_on_the_disk_and_are_tried_ever_more_rarely(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = Rig(tmp_path)
        rig.place.error = UNAVAILABLE
        hand_over(rig.spool, 1)
        async with running(rig):
            for tries, pause in enumerate((10, 20, 40, 40), start=1):
                assert (rig.place.tries, rig.uploads.state.waiting) == (tries, tries)
                rig.now += pause - 1
                hand_over(rig.spool, 1 + tries)
                await rig.news()
                assert (rig.place.tries, names(rig.spool.handover)) == (tries, [])
                rig.now += 1
                await rig.news()
            rig.place.error = None
            rig.now += 40
            await rig.news()
            assert (rig.uploads.state.uploaded, rig.uploads.state.waiting, rig.uploads.state.trouble) == (5, 0, "")
        assert rig.losses == []

    with structlog.testing.capture_logs() as lines:
        asyncio.run(scenario())
    assert [line["event"] for line in lines] == ["pictures cannot be uploaded and wait", "pictures are uploaded again"]


def test_missing_rights_are_told_once_and_tried_at_once_after_a_reload(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = Rig(tmp_path)
        rig.place.error = FORBIDDEN
        hand_over(rig.spool, 1)
        async with running(rig):
            assert rig.uploads.state.trouble == "gs://bucket/a/: no right; grant it"
            rig.now += 99
            await rig.news()
            assert rig.place.tries == 1
            rig.now += 1
            await rig.news()
            assert rig.place.tries == 2
            rig.place.error = None
            await rig.use(rig.make_spool("gs://bucket/a"), rig.place)
            assert rig.uploads.state.uploaded == 1

    with structlog.testing.capture_logs() as lines:
        asyncio.run(scenario())
    assert [line["log_level"] for line in lines] == ["warning", "info"]


def test_what_cannot_wait_any_longer_is_counted_with_its_times(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = Rig(tmp_path, max_files=2)
        rig.place.error = UNAVAILABLE
        for number in range(1, 5):
            hand_over(rig.spool, number)
        async with running(rig):
            assert (rig.uploads.state.dropped, rig.uploads.state.waiting) == (2, 2)
        assert rig.losses == [("raw_data_dropped", 2, 1000, 2000)]

    asyncio.run(scenario())


def test_trouble_ends_when_nothing_waits_any_more(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = Rig(tmp_path, max_files=0)
        rig.place.error = UNAVAILABLE
        hand_over(rig.spool, 1)
        async with running(rig):
            assert rig.uploads.state.dropped == 1
            rig.now += 10
            await rig.news()
            assert (rig.uploads.state.trouble, rig.place.tries) == ("", 1)

    asyncio.run(scenario())


def test_a_damaged_picture_is_counted_and_holds_up_no_other(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = Rig(tmp_path)
        hand_over(rig.spool, 1, b"")
        hand_over(rig.spool, 2)
        async with running(rig):
            assert (rig.uploads.state.uploaded, rig.spool.pictures()) == (1, [])
        assert rig.losses == [("raw_data_dropped", 1, 1000, 1000)]

    asyncio.run(scenario())


def test_another_place_gives_up_what_waits_for_the_old_one(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = Rig(tmp_path)
        rig.place.error = UNAVAILABLE
        hand_over(rig.spool, 1)
        async with running(rig):
            place, spool = Place(), rig.make_spool("gs://bucket/b")
            hand_over(spool, 2)
            await rig.use(spool, place)
            assert list(place.pictures) == ["edge-001/2026-05-01/000002.000-2.jpg"]
            assert rig.uploads.state.trouble == ""
        assert rig.losses == [("raw_data_dropped", 1, 1000, 1000)]

    asyncio.run(scenario())


def test_without_a_place_what_waits_is_given_up_and_nothing_is_looked_for(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = Rig(tmp_path)
        hand_over(rig.spool, 1)
        rig.uploads.use(rig.make_spool(""), None)
        async with running(rig):
            rig.uploads.note(CHOSEN)
            assert not rig.uploads._news.is_set()
        assert rig.losses == [("raw_data_dropped", 1, 1000, 1000)]

    asyncio.run(scenario())


def test_a_stop_brings_to_the_disk_what_is_in_memory_though_an_upload_hangs(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = Rig(tmp_path)
        rig.place.go_on.clear()
        hand_over(rig.spool, 1)
        task = asyncio.create_task(rig.uploads.run())
        await asyncio.to_thread(rig.place.asked.wait)
        name = hand_over(rig.spool, 2)
        try:
            await rig.uploads.stop(30.0)
            await asyncio.wait_for(task, 30)
        finally:
            rig.place.go_on.set()
        assert name in names(rig.spool.waiting)
        assert names(rig.spool.handover) == []

    asyncio.run(scenario())


def test_a_disk_that_takes_nothing_is_told_and_loses_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = Rig(tmp_path)
        rig.place.error = UNAVAILABLE
        (tmp_path / "state").mkdir()
        (tmp_path / "state" / "raw-data").write_text("a file where the folder should be")
        name = hand_over(rig.spool, 1)
        async with running(rig):
            assert rig.uploads.state.trouble.startswith("cannot read or write ")
            assert names(rig.spool.handover) == [name]
            rig.place.error = None
            rig.now += 10
            await rig.news()
            assert rig.uploads.state.uploaded == 1
        assert rig.losses == []

    asyncio.run(scenario())
