import asyncio
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from edge_agent.models.release.releases import RemoteObject, describe
from edge_agent.models.stores.base import FetchFailed, StoreUnavailable
from edge_agent.models.stores.calls import Calls
from edge_agent.models.stores.download import note_of


def test_result_and_error_come_back() -> None:
    async def main() -> None:
        calls = Calls()
        assert await calls.run(lambda _: threading.current_thread().daemon)
        with pytest.raises(ZeroDivisionError):
            await calls.run(lambda _: 1 // 0)

    asyncio.run(main())


def test_a_call_over_its_limit_is_told_and_left_behind() -> None:
    told = threading.Event()
    go_on = threading.Event()

    def hang(stop: threading.Event) -> None:
        stop.wait()
        told.set()
        go_on.wait()

    async def main() -> None:
        calls = Calls()
        with pytest.raises(StoreUnavailable, match="did not finish within 0 s"):
            await calls.run(hang, limit=0.01)
        assert told.wait(30)
        with pytest.raises(StoreUnavailable, match="still hangs"):
            await calls.run(lambda _: 1, limit=10)
        assert await calls.run(lambda _: 1) == 1, "calls on the disk go on"
        go_on.set()
        for thread in threading.enumerate():
            if thread.name == "model-store":
                thread.join(30)
        assert await calls.run(lambda _: 2, limit=10) == 2

    asyncio.run(main())


def test_cancelling_sets_stop() -> None:
    started = threading.Event()
    told = threading.Event()

    def hang(stop: threading.Event) -> None:
        started.set()
        stop.wait()
        told.set()

    async def main() -> None:
        task = asyncio.create_task(Calls().run(hang))
        await asyncio.to_thread(started.wait, 30)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(told.wait, 30)

    asyncio.run(main())


def test_the_end_of_the_process_waits_for_no_call() -> None:
    code = (
        "import asyncio, threading\n"
        "from edge_agent.models.stores.calls import Calls\n"
        "async def main():\n"
        "    task = asyncio.create_task(Calls().run(lambda _: threading.Event().wait()))\n"
        "    await asyncio.sleep(0)\n"
        "asyncio.run(main())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=True)
    assert done.stderr == b""


def _wait_for_store_threads() -> None:
    for thread in threading.enumerate():
        if thread.name == "model-store":
            thread.join(30)


def test_a_download_that_gains_goes_on_however_slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It gains a byte between any two looks at it, and ends after the fifth look."""
    path, ended, looks = tmp_path / "part", threading.Event(), 0

    def look(_: Path | None) -> int:
        nonlocal looks
        looks += 1
        if looks == 5:
            ended.set()
        return looks

    monkeypatch.setattr("edge_agent.models.stores.calls._size", look)

    def fetch(_: threading.Event) -> None:
        assert ended.wait(30)

    asyncio.run(Calls(stall_limit=0.01).fetch_file(fetch, path))
    assert looks >= 5


def test_a_download_that_gains_nothing_is_given_up_and_what_has_come_stays(tmp_path: Path) -> None:
    path, told = tmp_path / "part", threading.Event()

    def stall(stop: threading.Event) -> None:
        path.write_bytes(b"some")
        stop.wait()
        told.set()

    async def main() -> None:
        with pytest.raises(StoreUnavailable, match="the model store sent nothing more within 0 s"):
            await Calls(stall_limit=0.05).fetch_file(stall, path)

    asyncio.run(main())
    assert told.wait(30)
    assert path.read_bytes() == b"some"
    _wait_for_store_threads()


def test_what_is_not_as_announced_is_thrown_away(tmp_path: Path) -> None:
    path = tmp_path / "part"

    def fetch(_: threading.Event) -> None:
        path.write_bytes(b"other")
        note_of(path).write_bytes(b"{}")
        raise FetchFailed("its SHA-256 is another")

    with pytest.raises(FetchFailed):
        asyncio.run(Calls().fetch_file(fetch, path))
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_asks_to_be_left_alone_is_left_alone(tmp_path: Path) -> None:
    now, asked = 100.0, 0

    class Store:
        url = "gs://bucket/m"

        def stat(self) -> RemoteObject:
            nonlocal asked
            asked += 1
            raise StoreUnavailable("the server answers 429", rest=30)

        def fetch(self, remote: RemoteObject, destination: Path, stop: threading.Event) -> None:
            raise AssertionError

    async def main() -> None:
        nonlocal now
        calls = Calls(clock=lambda: now)
        remote = describe(Store.url, {}, generation="1", size=1, checksum="x")
        for at, expected in ((100.0, 1), (129.0, 1), (130.0, 2)):
            now = at
            with pytest.raises(StoreUnavailable, match=r"^the server answers 429$"):
                await calls.stat(Store())
            assert asked == expected
        with pytest.raises(StoreUnavailable, match=r"^the server answers 429$"):
            await calls.fetch(Store(), remote, tmp_path / "m")
        assert await calls.run(lambda _: 1) == 1, "calls on the disk go on"

    asyncio.run(main())
