"""The file sink, and the thread that all sinks work in."""

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from edge_agent.settings.location import Destination
from edge_agent.telemetry.sending.filesink import FileSink
from edge_agent.telemetry.sending.open import open_sink
from edge_agent.telemetry.sending.sinks import DaemonThread, SinkError, SinkNeedsPerson, SinkUnavailable


def _send(path: Path, *batches: list[bytes]) -> None:
    async def work() -> None:
        sink = FileSink(path)
        try:
            for batch in batches:
                await sink.send(batch)
        finally:
            await sink.close()

    asyncio.run(work())


def _refused(path: Path) -> SinkError:
    with pytest.raises(SinkError) as caught:
        _send(path, [b"{}"])
    return caught.value


@pytest.mark.parametrize(
    ("destination", "url"),
    [
        (Destination("file", path="/var/log/events.jsonl"), "file:///var/log/events.jsonl"),
        (Destination("pubsub", project="p", topic="t"), "pubsub://p/t"),
    ],
)
def test_open_sink(destination: Destination, url: str) -> None:
    assert open_sink(destination, {}).description == url


def test_appends_lines_and_makes_the_folder(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "events.jsonl"
    _send(path, [b'{"a":1}', b'{"a":2}'], [b'{"a":3}'])

    assert path.read_bytes() == b'{"a":1}\n{"a":2}\n{"a":3}\n'


def test_ends_a_torn_line_first(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"a":1}\n{"a":')
    _send(path, [b'{"a":2}'])

    assert path.read_bytes() == b'{"a":1}\n{"a":\n{"a":2}\n'


def test_file_may_be_rotated_between_batches(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"

    async def work() -> None:
        sink = FileSink(path)
        await sink.send([b"1"])
        path.rename(tmp_path / "events.jsonl.1")
        await sink.send([b"2"])
        await sink.close()

    asyncio.run(work())

    assert (path.read_bytes(), (tmp_path / "events.jsonl.1").read_bytes()) == (b"2\n", b"1\n")


def test_folder_in_place_of_the_file(tmp_path: Path) -> None:
    error = _refused(tmp_path)

    assert isinstance(error, SinkNeedsPerson)
    assert str(error) == (f"cannot write {tmp_path}: Is a directory; name a file in [telemetry] sink, not a folder")


def test_file_in_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    error = _refused(tmp_path / "file" / "events.jsonl")

    assert isinstance(error, SinkNeedsPerson)
    assert str(error).endswith("; correct the path in [telemetry] sink")


def test_fifo_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    error = _refused(tmp_path / "fifo")

    assert str(error) == f"{tmp_path}/fifo is not a regular file; name another file in [telemetry] sink"


def test_full_disk() -> None:
    error = FileSink(Path("/f"))._explain(OSError(28, "No space left on device"))

    assert isinstance(error, SinkNeedsPerson)
    assert str(error) == (
        "cannot write /f: the disk is full; free some space, or name another file in [telemetry] sink"
    )


def test_unknown_trouble_is_tried_again() -> None:
    error = FileSink(Path("/f"))._explain(OSError(5, "Input/output error"))

    assert isinstance(error, SinkUnavailable)
    assert str(error) == "cannot write /f: Input/output error"


_IN_A_FULL_FILE = """
import asyncio, pathlib, resource, signal, sys
from edge_agent.telemetry.sending.filesink import FileSink
from edge_agent.telemetry.sending.sinks import SinkError

async def main():
    path = pathlib.Path(sys.argv[1])
    sink = FileSink(path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    try:
        await sink.send([b"12345678", b"abcdefgh"])
    except SinkError as error:
        print(type(error).__name__)
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    await sink.send([b"12345678", b"abcdefgh"])
    await sink.close()

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
asyncio.run(main())
"""


def test_short_write_is_a_failure_and_is_repeated_whole(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    child = subprocess.run(
        [sys.executable, "-c", _IN_A_FULL_FILE, str(path)], capture_output=True, text=True, check=False
    )

    assert (child.stdout, child.stderr) == ("SinkNeedsPerson\n", "")
    assert path.read_bytes() == b"12345678\na\n12345678\nabcdefgh\n"


_AS_NOBODY = """
import asyncio, os, pathlib, sys
from edge_agent.telemetry.sending.filesink import FileSink
from edge_agent.telemetry.sending.sinks import SinkError

async def work():
    sink = FileSink(pathlib.Path(sys.argv[1]))
    try:
        await sink.send([b"{}"])
    except SinkError as error:
        print(type(error).__name__, error, sep=": ")
    await sink.close()

if os.geteuid() == 0:  # who may write everywhere
    os.setuid(65534)
asyncio.run(work())
"""


def test_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    path = tmp_path / "events.jsonl"
    child = subprocess.run([sys.executable, "-c", _AS_NOBODY, str(path)], capture_output=True, text=True, check=False)

    assert (child.stdout, child.stderr) == (
        (
            f"SinkNeedsPerson: cannot write {path}: Permission denied; "
            "let the service's user write there, or name another file in [telemetry] sink\n"
        ),
        "",
    )


def _with_thread(work: Callable[[DaemonThread], Coroutine[Any, Any, None]]) -> None:
    async def run() -> None:
        thread = DaemonThread("test-sink")
        try:
            await work(thread)
        finally:
            await thread.close(30)

    asyncio.run(run())
    assert "test-sink" not in {thread.name for thread in threading.enumerate()}


def test_thread_gives_results_and_errors() -> None:
    async def work(thread: DaemonThread) -> None:
        assert await thread.run(divmod, 7, 2) == (3, 1)
        with pytest.raises(ZeroDivisionError):
            await thread.run(divmod, 7, 0)
        names = {await thread.run(lambda: threading.current_thread().name) for _ in range(3)}
        assert names == {"test-sink"}

    _with_thread(work)


def test_closing_the_thread_frees_those_who_wait() -> None:
    async def work(thread: DaemonThread) -> None:
        hung, release = threading.Event(), threading.Event()

        def hang() -> None:
            hung.set()
            release.wait()

        waiting = [asyncio.create_task(thread.run(hang)), asyncio.create_task(thread.run(hang))]
        await asyncio.to_thread(hung.wait)
        await thread.close(0)
        for each in waiting:
            with pytest.raises(SinkUnavailable, match="sending has ended"):
                await each
        with pytest.raises(SinkUnavailable, match="sending has ended"):
            await thread.run(hang)
        release.set()

    _with_thread(work)


def test_cancelled_caller_leaves_the_thread_alive() -> None:
    async def work(thread: DaemonThread) -> None:
        release = threading.Event()
        waiting = asyncio.create_task(thread.run(release.wait))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        release.set()
        assert await thread.run(int, "7") == 7

    _with_thread(work)


def test_process_ends_while_a_call_hangs() -> None:
    program = (
        "import asyncio, threading\n"
        "from edge_agent.telemetry.sending.sinks import DaemonThread\n"
        "async def main():\n"
        "    asyncio.create_task(DaemonThread('x').run(threading.Event().wait))\n"
        "    await asyncio.sleep(0)\n"
        "asyncio.run(main())\n"
    )
    child = subprocess.run([sys.executable, "-c", program], timeout=60, capture_output=True, check=False)

    assert (child.returncode, child.stderr) == (0, b"")
