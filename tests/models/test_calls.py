import asyncio
import subprocess
import sys
import threading

import pytest

from edge_agent.models.calls import Calls
from edge_agent.models.stores import StoreUnavailable


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
        "from edge_agent.models.calls import Calls\n"
        "async def main():\n"
        "    task = asyncio.create_task(Calls().run(lambda _: threading.Event().wait()))\n"
        "    await asyncio.sleep(0)\n"
        "asyncio.run(main())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=True)
    assert done.stderr == b""
