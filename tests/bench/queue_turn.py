"""One turn of a queue in a process of its own: `python -m tests.bench.queue_turn WAY WHAT FOLDER ...` prints JSON.

Ways to keep events until the cloud has them:

- `ours`: the agent's queue; its runtime directory is in memory, as on a device.
- `sqlite`: SQLite in WAL mode with `synchronous=FULL`, one row for each event, one commit for each row.
- `persist-queue`: `SQLiteAckQueue` of the library of that name.
- `guide`: no queue; each event waits for `publish(...).result()`.

They do not promise the same: a commit for each event loses nothing in a power cut, ours at most a commit interval
(1 s), the guides' loop everything while there is no network.

What is done: `burst SECONDS` puts events as fast as they can be made safe, `paced SECONDS online|offline` puts 50 a
second, `drain COUNT` sends a backlog, `puts CONDITION` times single puts while the disk is bad.
"""

import asyncio
import contextlib
import json
import os
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from edge_agent.telemetry.queue.queue import Queue
from edge_agent.telemetry.sending.pubsub import PubSubSink
from edge_agent.telemetry.sending.sender import Sender
from tests.bench.processes import memory_mib

BATCH = 1000
PER_SECOND = 50
LINGER = 0.25
TOPIC = "projects/project/topics/topic"
MEMORY = Path("/dev/shm")
EVENT = {
    "event_id": "edge-001/1700000000000/%07d",
    "kind": "result",
    "device_id": "edge-001",
    "timestamp": 1700000000000,
    "time_source": "synchronized",
    "results": [{"label": "normal", "score": 0.97}],
    "prediction": "normal",
    "confidence": 0.97265625,
    "inference_time_ms": 0.046,
    "model_name": "vibration",
    "model_version": "v1.2",
}


def an_event(number: int) -> bytes:
    """Return an event of 300 bytes. What differs from one to the next is what differs in reality."""
    noise = (number * 2654435761) % 1000
    event = EVENT | {
        "event_id": f"edge-001/1700000000000/{number:07}",
        "timestamp": 1700000000000 + 20 * number + noise % 7,
        "confidence": 0.9 + noise / 10_000,
        "inference_time_ms": (40 + noise % 30) / 1000,
    }
    return json.dumps(event, separators=(",", ":")).encode().ljust(300)


class Way(Protocol):
    """How events are kept."""

    async def put(self, event: bytes) -> None:
        """Return when the event is as safe as this way makes it."""
        ...

    async def finish(self, most: int) -> int:
        """Take the oldest events and forget them, as if they had been sent; returns how many."""
        ...


class Ours:
    """The agent's queue. Its ticks run beside."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue

    async def put(self, event: bytes) -> None:
        """Put one event."""
        self._queue.put(self._queue.next_number, [event], 1, 1)

    async def finish(self, most: int) -> int:
        """Take a batch and acknowledge it."""
        batch = await self._queue.take(most, 9_000_000)
        if batch is None:
            return 0
        self._queue.ack(batch)
        return len(batch.events)


class RowPerCommit:
    """SQLite as one would use it at first."""

    def __init__(self, folder: Path) -> None:
        self._db = sqlite3.connect(folder / "rows.db", isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL").fetchall()
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.execute("CREATE TABLE IF NOT EXISTS events (id INTEGER PRIMARY KEY, event BLOB NOT NULL)")

    async def put(self, event: bytes) -> None:
        """Insert a row and commit."""
        self._db.execute("INSERT INTO events (event) VALUES (?)", (event,))

    async def finish(self, most: int) -> int:
        """Read rows, and delete them in one commit."""
        rows = self._db.execute("SELECT id, event FROM events ORDER BY id LIMIT ?", (most,)).fetchall()
        if rows:
            self._db.execute("DELETE FROM events WHERE id <= ?", (rows[-1][0],))
        return len(rows)


class PersistQueue:
    """The library persist-queue, in the variant that acknowledges."""

    def __init__(self, folder: Path) -> None:
        import persistqueue  # noqa: PLC0415  only for this comparison

        self._queue = persistqueue.SQLiteAckQueue(str(folder / "persist"), auto_commit=True)
        self._empty = persistqueue.Empty

    async def put(self, event: bytes) -> None:
        """Put one event."""
        self._queue.put(event)

    async def finish(self, most: int) -> int:
        """Get events and acknowledge each."""
        count = 0
        with contextlib.suppress(self._empty):
            while count < most:
                self._queue.ack(self._queue.get(block=False))
                count += 1
        return count


class Guide:
    """The loop of the public guides."""

    def __init__(self) -> None:
        from google.cloud import pubsub_v1  # noqa: PLC0415  only for this comparison

        self._publisher = pubsub_v1.PublisherClient()

    async def put(self, event: bytes) -> None:
        """Publish one event and wait for the answer."""
        self._publisher.publish(TOPIC, data=event, device_id="edge-001").result()

    async def finish(self, most: int) -> int:
        """Nothing is kept."""
        return 0


@contextlib.contextmanager
def runtime_directory() -> Iterator[Path]:
    """A folder in memory."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        yield Path(name)


@contextlib.asynccontextmanager
async def opened(name: str, folder: Path) -> Any:
    """Open one of the ways in a folder."""
    others = {"sqlite": lambda: RowPerCommit(folder), "persist-queue": lambda: PersistQueue(folder), "guide": Guide}
    if name != "ours":
        yield others[name]()
        return
    with runtime_directory() as runtime:
        async with Queue(
            folder / "state", runtime_directory=runtime, max_size=1 << 40, commit_interval=1, boot_id="boot"
        ) as queue:
            ticking = asyncio.create_task(queue.run())
            yield Ours(queue)
            ticking.cancel()


async def burst(name: str, folder: Path, seconds: str) -> dict[str, float]:
    """Put events as fast as it goes."""
    events = [an_event(number) for number in range(10_000)]
    async with opened(name, folder) as way:
        await way.put(events[0])
        cpu, start, count = time.process_time(), time.perf_counter(), 0
        end = start + float(seconds)
        while time.perf_counter() < end:
            await way.put(events[count % len(events)])
            count += 1
            if count % 50 == 0:
                await asyncio.sleep(0)
        elapsed, used = time.perf_counter() - start, time.process_time() - cpu
        memory = memory_mib(["self"])
    return {"events": count, "rate": count / elapsed, "cpu_us": used / count * 1e6, "memory_mib": memory}


async def paced(name: str, folder: Path, seconds: str, network: str) -> dict[str, float]:
    """Put 50 events a second. Online they are sent after a quarter of a second."""
    async with opened(name, folder) as way:
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        start = time.perf_counter()
        count, sent_at = 0, start
        while (now := time.perf_counter()) < start + float(seconds):
            while count < (now - start) * PER_SECOND:
                await way.put(an_event(count))
                count += 1
            if network == "online" and now >= sent_at + LINGER:
                await way.finish(BATCH)
                sent_at = now
            await asyncio.sleep(1 / PER_SECOND)
        if network == "online":
            await way.finish(BATCH)
    return {"events": count}


async def drain(name: str, folder: Path, count: str) -> dict[str, float]:
    """Send a backlog: our queue and sender, or bare requests of 1000 messages in one of two ways."""
    address = os.environ["PUBSUB_EMULATOR_HOST"]
    events = [an_event(number) for number in range(int(count))]
    if name == "ours":
        return await _drain_ours(folder, address, events)
    import grpc  # noqa: PLC0415  only for this comparison
    from google.pubsub_v1 import PublisherClient  # noqa: PLC0415
    from google.pubsub_v1.services.publisher.transports import PublisherGrpcTransport  # noqa: PLC0415
    from google.pubsub_v1.types import PublishRequest  # noqa: PLC0415

    options = [("grpc.max_send_message_length", -1)]
    transport: Any = PublisherGrpcTransport(channel=grpc.insecure_channel(address, options=options))
    client, new_request = PublisherClient(transport=transport), PublishRequest.pb()
    attributes = {"device_id": "edge-001", "kind": "result", "prediction": "normal", "model_version": "v1.2"}
    cpu, start = time.process_time(), time.perf_counter()
    for first in range(0, len(events), BATCH):
        messages: Any = [{"data": event, "attributes": attributes} for event in events[first : first + BATCH]]
        if name == "client":
            client.publish(topic=TOPIC, messages=messages, retry=None, timeout=30)
        else:
            transport.publish(new_request(topic=TOPIC, messages=messages), timeout=30)
    return _drained(len(events), cpu, start)


async def _drain_ours(folder: Path, address: str, events: list[bytes]) -> dict[str, float]:
    with runtime_directory() as runtime:
        queue = Queue(folder / "state", runtime_directory=runtime, max_size=1 << 40, commit_interval=1, boot_id="boot")
        async with queue:
            for first in range(0, len(events), 50):
                queue.put(queue.next_number, events[first : first + 50], 1, 1)
                if first % 10_000 == 0:
                    await queue.tick()
            await queue.tick()
            await queue.tick()
            ticking = asyncio.create_task(queue.run())
            sink = PubSubSink("project", "topic", emulator=address)
            await sink.send([an_event(0)])  # imports the library, and connects
            sender: Sender[Any] = Sender(queue, sink, linger=LINGER)
            cpu, start = time.process_time(), time.perf_counter()
            sending = asyncio.create_task(sender.run())
            while queue.depth:  # noqa: ASYNC110  the queue does not tell when it is empty
                await asyncio.sleep(0.002)
            found = _drained(len(events), cpu, start)
            await sender.stop(5)
            await sending
            ticking.cancel()
    return found


def _drained(count: int, cpu: float, start: float) -> dict[str, float]:
    elapsed, used = time.perf_counter() - start, time.process_time() - cpu
    return {"rate": count / elapsed, "cpu_us": used / count * 1e6, "memory_mib": memory_mib(["self"])}


async def puts(name: str, folder: Path, where: str, count: str) -> dict[str, Any]:
    """Time single puts, the next one half a millisecond after the last. Begins when a line comes, and says so."""
    events = [an_event(number) for number in range(int(count))]
    times: list[int] = []
    with runtime_directory() as runtime:
        queue = Queue(
            folder / "state",
            runtime_directory=runtime if where == "memory" else None,
            max_size=1 << 30,
            commit_interval=1,
            boot_id="boot",
        )
        await queue.open()
        ticking = asyncio.create_task(queue.run())
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        sys.stdin.readline()
        for event in events:
            number = queue.next_number
            start = time.perf_counter_ns()
            queue.put(number, [event], 1, 1)
            times.append(time.perf_counter_ns() - start)
            await asyncio.sleep(0.0005)
        times.sort()
        found = {
            "p50_us": times[len(times) // 2] / 1e3,
            "p99_us": times[len(times) * 99 // 100] / 1e3,
            "max_us": times[-1] / 1e3,
            "depth": queue.depth,
            "trouble": queue.trouble or "",
        }
        ticking.cancel()
        sys.stdout.write(json.dumps(found) + "\n")
        sys.stdout.flush()
        sys.stdin.readline()  # the disk is mended
        await queue.close(60)
    return {}


def main() -> None:
    """Do what the arguments say."""
    import structlog  # noqa: PLC0415  only to keep its lines out of the answer

    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    name, what, folder, *arguments = sys.argv[1:]
    work: Any = {"burst": burst, "paced": paced, "drain": drain, "puts": puts}[what]
    found = asyncio.run(work(name, Path(folder), *arguments))
    if found:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
