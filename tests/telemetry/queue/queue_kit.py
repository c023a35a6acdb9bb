"""What the tests of the queue share: a queue on a folder that can be killed or lose its power."""

import asyncio
import base64
import math
import os
import shutil
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

from edge_agent.telemetry.queue.queue import Loss, Priority, Queue

T = TypeVar("T")
MB = 1024 * 1024
BIG = 1 << 30


def run(coroutine: Coroutine[object, object, T]) -> T:
    return asyncio.run(coroutine)


class Disk:
    """Folders of one device. `copy` takes what a dead agent (or, without `runtime`, a dead machine) leaves."""

    def __init__(self, root: Path, *, runtime: bool = True) -> None:
        self.root = root
        self.state = root / "state"
        self.runtime = root / "run" if runtime else None
        self._copies = 0
        if self.runtime is not None:
            self.runtime.mkdir(parents=True, exist_ok=True)

    def queue(
        self,
        *,
        boot_id: str = "boot-1",
        max_size: int = 256 * MB,
        reserve: int = 0,
        max_age: float = math.inf,
        clock: Callable[[], float] = lambda: 1_700_000_000.0,
        monotonic: Callable[[], float] = lambda: 0.0,
    ) -> Queue:
        return Queue(
            self.state,
            runtime_directory=self.runtime,
            max_size=max_size,
            commit_interval=1.0,
            reserve=reserve,
            max_age=max_age,
            boot_id=boot_id,
            clock=clock,
            monotonic=monotonic,
        )

    def copy(self, *, journals: bool = True) -> "Disk":
        self._copies += 1
        other = Disk(self.root / f"copy-{self._copies}", runtime=self.runtime is not None)
        if self.state.is_dir():
            shutil.copytree(self.state, other.state)
        if self.runtime is not None:
            shutil.copytree(self.runtime, other.root / "run", dirs_exist_ok=True)
        if not journals:
            for path in other.journals():
                path.unlink()
        return other

    def journals(self) -> list[Path]:
        folders = [folder for folder in (self.state, self.runtime) if folder is not None]
        found = [path for folder in folders for path in folder.glob("journal-*")]
        return sorted(found, key=lambda path: int(path.name.split("-")[1]))

    @property
    def database(self) -> Path:
        return self.state / "queue.db"


def end(queue: Queue) -> None:
    """Let go of the files of a queue that was left for dead (after `Disk.copy`), without saving anything."""
    queue._closed = True
    queue._keeper.abandon()
    queue._keeper._thread.shutdown(wait=True)


@asynccontextmanager
async def left_for_dead(queue: Queue) -> AsyncIterator[Queue]:
    """Open a queue that is never closed."""
    await queue.open()
    try:
        yield queue
    finally:
        end(queue)


def put(
    queue: Queue,
    count: int,
    *,
    ms: int = 1000,
    size: int = 0,
    noise: int = 0,
    priority: Priority = Priority.RESULT,
) -> list[bytes]:
    """Put events that begin with their id, and return them. `noise` bytes of it cannot be compressed."""
    first = queue.next_number
    ids = [f"{queue.epoch}/{first + i}".encode() for i in range(count)]
    events = [(event + base64.b85encode(os.urandom(noise * 4 // 5))).ljust(size, b".") for event in ids]
    queue.put(first, events, ms, ms, priority)
    return events


async def drain(queue: Queue, max_events: int = 1000) -> list[bytes]:
    """Take and acknowledge everything."""
    events: list[bytes] = []
    while (batch := await queue.take(max_events, 9 * MB)) is not None:
        events += batch.events
        queue.ack(batch)
    return events


async def ticks(queue: Queue, count: int = 2) -> None:
    for _ in range(count):
        await queue.tick()


def lost(queue: Queue) -> dict[str, int]:
    return {loss.cause: loss.count for loss in queue.losses()}


def tell(number: int, losses: Sequence[Loss]) -> list[bytes]:
    """Build what `report_losses` asks for."""
    return [f"{number + i} {loss.cause} {loss.count}".encode() for i, loss in enumerate(losses)]
