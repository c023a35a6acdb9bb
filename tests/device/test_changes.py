"""The kernel tells of a change; a socket with urgent data takes the part of a file in sysfs."""

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_agent.device.changes import ChangeListener


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as driver:
        file, _ = server.accept()
        with file:
            yield driver, file


def test_each_change_is_heard_once(ends: tuple[socket.socket, socket.socket]) -> None:
    driver, file = ends
    read: list[bytes] = []

    def read_again(_descriptor: int) -> None:
        if listening:
            read.append(file.recv(1, socket.MSG_OOB))

    async def listen() -> None:
        changes: asyncio.Queue[int] = asyncio.Queue()
        listener = ChangeListener(os.dup(file.fileno()), lambda: changes.put_nowait(len(read)), read_again=read_again)
        listening.append(True)
        for number in range(1, 4):
            driver.send(b"!", socket.MSG_OOB)
            assert await changes.get() == number
        driver.send(b"ordinary data is no change")
        listener.close()
        driver.send(b"!", socket.MSG_OOB)
        await asyncio.sleep(0)
        assert changes.empty()

    listening: list[bool] = []
    asyncio.run(listen())
    assert read == [b"!"] * 3


def test_a_device_that_goes_away_is_a_change(ends: tuple[socket.socket, socket.socket]) -> None:
    driver, file = ends

    def read_again(_descriptor: int) -> None:
        if gone:
            raise OSError("no such device")

    async def listen() -> None:
        heard = asyncio.Event()
        listener = ChangeListener(os.dup(file.fileno()), heard.set, read_again=read_again)
        gone.append(True)
        driver.send(b"!", socket.MSG_OOB)
        await heard.wait()
        listener.close()

    gone: list[bool] = []
    asyncio.run(listen())


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_an_ordinary_file_tells_nothing(tmp_path: Path) -> None:
    (tmp_path / "alarm").write_text("0\n")

    async def listen() -> None:
        before = open_files()
        with pytest.raises(PermissionError):
            ChangeListener.open(tmp_path / "alarm", lambda: None)
        assert open_files() == before

    asyncio.run(listen())
