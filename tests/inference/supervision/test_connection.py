"""A worker's process from its start to its end, when something stands in the way of either."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from edge_agent.inference.supervision import connection
from edge_agent.inference.supervision.connection import Connection


def open_files() -> list[str]:
    return [link.name for link in Path("/proc/self/fd").iterdir()]


def test_a_worker_that_cannot_be_started_leaves_nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(asyncio, "create_subprocess_exec", fail)

    async def scenario() -> None:
        before = open_files()
        with pytest.raises(BlockingIOError):
            await Connection.open()
        await asyncio.sleep(0)  # the transport closes its pipe in the loop's next round
        assert open_files() == before

    asyncio.run(scenario())


def test_who_has_inherited_the_output_does_not_keep_the_agent_from_seeing_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = tmp_path / "pid"
    script = (
        "import os, pathlib, subprocess\n"
        "helper = subprocess.Popen(['sleep', '600'], start_new_session=True)\n"
        f"pathlib.Path({str(pid)!r}).write_text(str(helper.pid))\n"
        "print('last words', flush=True)\n"
        "os.abort()\n"
    )
    monkeypatch.setattr(connection, "python_command", lambda *_: [sys.executable, "-c", script])
    monkeypatch.setattr(connection, "_LISTEN_ON", 0.2)

    async def scenario() -> None:
        worker = await Connection.open()
        try:
            assert await worker.receive() is None
            assert await worker.wait_for_exit(30) == "killed by SIGABRT"
            assert await worker.last_output() == "last words"
        finally:
            async with asyncio.timeout(30):
                await worker.close()
            os.kill(int(pid.read_text()), signal.SIGKILL)

    asyncio.run(scenario())


def test_a_worker_that_cannot_be_killed_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_KILL_DEADLINE", 0.1)

    async def scenario() -> None:
        worker = await Connection.open()
        kill = os.kill
        # As one that waits inside the kernel: it does not heed the signal, nor that the agent has hung up.
        kill(worker.pid, signal.SIGSTOP)
        monkeypatch.setattr(os, "kill", lambda *_: None)
        async with asyncio.timeout(30):
            await worker.close()
        monkeypatch.undo()
        kill(worker.pid, signal.SIGKILL)
        await worker._process.wait()

    asyncio.run(scenario())
