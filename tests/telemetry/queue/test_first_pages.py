"""One flipped bit where SQLite keeps what it needs to read anything at all: its header, the tables, the state."""

import shutil
from pathlib import Path

import pytest

from tests.telemetry.queue.queue_kit import Disk, drain, lost, put, run, ticks

PAGE = 4096
HEADER, STATE = 0, 2  # pages: SQLite's own, and the table `meta`


async def backlog(disk: Disk) -> list[bytes]:
    events: list[bytes] = []
    async with disk.queue() as queue:
        for _ in range(6):
            events += put(queue, 5, noise=700)
            await ticks(queue)
    return events


def flips(data: bytes, page: int, step: int) -> list[tuple[int, int]]:
    """Return places and bits of the page as far as it is in use, and of these one in `step`."""
    places = [at for at in range(page * PAGE, (page + 1) * PAGE) if data[at] or data[at - 1]]
    return [(at, bit) for at in places for bit in range(8)][::step]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("step", [pytest.param(29, id="a few"), pytest.param(5, id="many", marks=pytest.mark.system)])
@pytest.mark.parametrize(("page", "counted"), [(HEADER, [{}]), (STATE, [{}, {"damaged": 1}])], ids=["header", "state"])
def test_no_flipped_bit_hides_the_backlog(tmp_path: Path, page: int, counted: list[dict[str, int]], step: int) -> None:
    """Nothing is lost and nothing in the way. Without its state the queue counts one event too many as lost."""
    origin = Disk(tmp_path / "origin", runtime=False)
    events = run(backlog(origin))
    data = origin.database.read_bytes()

    async def look(at: int, bit: int) -> None:
        disk = Disk(tmp_path / "flipped", runtime=False)
        disk.state.mkdir(parents=True)
        disk.database.write_bytes(data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :])
        async with disk.queue(boot_id="boot-2") as queue:
            delivered = await drain(queue)
            assert delivered == events, (at, bit)
            assert lost(queue) in counted, (at, bit)
            assert (queue.depth, queue.trouble) == (0, None), (at, bit)
        shutil.rmtree(disk.root)

    async def body() -> None:
        for at, bit in flips(data, page, step):
            await look(at, bit)

    run(body())
