"""Lets each step of a queue's work on its files fail once, in turn, and checks after each what came of the events.

    faultio_child.py FOLDER FAULT TIMES STRIDE WHERE BEFORE

FAULT is the name of an errno, SHORT or CRASH, and TIMES how many steps fail in a row; STRIDE 3 tries every third
step; WHERE is "runtime" or "state", the place of the journal; BEFORE is "nothing" or "backlog", what was there at the
start. `tests/standin/faultio.c` must be preloaded with FAULTIO_ROOT=FOLDER. Prints how many steps were tried, or ends
with what went wrong at which.
"""

import asyncio
import ctypes
import errno
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from edge_agent.telemetry.queue.queue import Queue
from tests.telemetry.queue.queue_kit import end

FAULTS = {"SHORT": -1, "CRASH": -2}
CRASHED = 86
BIG = 1 << 30


@dataclass(frozen=True)
class Trial:
    where: str
    before: str
    times: int


class Log:
    """What whoever used the queue was told, in a pipe: a crash leaves it readable."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()

    def put(self, queue: Queue, count: int) -> None:
        """Put events, then say so."""
        first = queue.next_number
        events = [b"%d/%d " % (queue.epoch, first + i) + b"x" * 50 for i in range(count)]
        self.say(b"putting", events)
        queue.put(first, events, 1, 1)
        self.say(b"accepted", events)

    def say(self, verb: bytes, events: Sequence[bytes]) -> None:
        os.write(self._writer, b"".join(verb + b" " + event.split()[0] + b"\n" for event in events))

    def read(self) -> dict[str, list[bytes]]:
        """Return the ids by verb."""
        os.close(self._writer)
        said: dict[str, list[bytes]] = {"putting": [], "accepted": [], "finished": []}
        with os.fdopen(self._reader, "rb") as file:
            for line in file:
                verb, event = line.split()
                said[verb.decode()].append(event)
        return said


def a_queue(folder: Path, runtime: Path | None) -> Queue:
    return Queue(folder / "state", runtime_directory=runtime, max_size=BIG, commit_interval=1, boot_id="boot-1")


async def leave_backlog(folder: Path, runtime: Path | None, log: Log) -> None:
    """Be killed with events in the store and in the journal."""
    queue = a_queue(folder, runtime)
    await queue.open()
    log.put(queue, 30)
    await queue.tick()
    await queue.tick()
    log.put(queue, 7)
    end(queue)


async def life(folder: Path, runtime: Path | None, log: Log, heal: Callable[[], None]) -> None:
    """Everything that a queue does, once. `heal` ends the faults before the end, if they are to be over by then."""
    queue = a_queue(folder, runtime)
    await queue.open()
    log.put(queue, 20)
    await queue.tick()
    await queue.tick()
    log.put(queue, 10)
    if (batch := await queue.take(12, BIG)) is not None:
        log.say(b"finished", batch.events)  # first, for a kill may come in between
        queue.reject(batch, 0, "bad")
        queue.ack(batch)
    await queue.tick()
    log.put(queue, 5)
    await queue.tick()
    if (batch := await queue.take(3, BIG)) is not None:
        queue.release(batch)
    await queue.tick()
    heal()
    log.put(queue, 5)
    await queue.close(60)


async def left(folder: Path, runtime: Path | None) -> tuple[list[bytes], dict[str, int]]:
    events: list[bytes] = []
    async with a_queue(folder, runtime) as queue:
        losses = {loss.cause: loss.count for loss in queue.losses()}
        while (batch := await queue.take(1000, BIG)) is not None:
            events += [event.split()[0] for event in batch.events]
            queue.ack(batch)
        if queue.trouble is not None:
            sys.exit(f"still in trouble: {queue.trouble}")
    return events, losses


def attempt(folder: Path, trial: Trial, after: int, fault: int) -> int:
    """Live with a fault at one step, look at what is left, and return how many steps there were; 0 after a crash."""
    runtime = folder / "run" if trial.where == "runtime" else None
    (folder / "run").mkdir(parents=True)
    log = Log()
    if trial.before == "backlog":
        asyncio.run(leave_backlog(folder, runtime, log))
    crash = fault == FAULTS["CRASH"]
    child = os.fork() if crash else 0
    steps = 0
    if child == 0:
        arm(after, trial.times, fault)
        asyncio.run(life(folder, runtime, log, disarm if trial.times > 1 and fault else _nothing))
        steps = ctypes.CDLL(None).faultio_steps()
        if crash:
            os._exit(0)
    elif os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) not in {0, CRASHED}:
        sys.exit(f"step {after}: the program has ended otherwise")
    disarm()
    said = log.read()
    events, losses = asyncio.run(left(folder, runtime))
    # Where a file is unreadable when it is made, it cannot be known that nothing was in it.
    excused = 1 if trial.before == "nothing" and fault == errno.EIO else 0
    if losses.pop("damaged", 0) > excused or set(losses) - {"rejected"}:
        sys.exit(f"step {after}: losses are told of that there were not: {losses}")
    check(after, said, events)
    shutil.rmtree(folder)
    return steps


def arm(after: int, times: int, fault: int) -> None:
    ctypes.CDLL(None).faultio_arm(ctypes.c_long(after), ctypes.c_long(times), fault)


def disarm() -> None:
    arm(0, 0, 0)


def _nothing() -> None:
    pass


def check(after: int, said: dict[str, list[bytes]], events: list[bytes]) -> None:
    if missing := set(said["accepted"]) - set(said["finished"]) - set(events):
        sys.exit(f"step {after}: {len(missing)} accepted events are gone")
    if strange := set(events) - set(said["putting"]):
        sys.exit(f"step {after}: {len(strange)} events that nobody has put")
    if len(events) != len(set(events)) or len(said["putting"]) != len(set(said["putting"])):
        sys.exit(f"step {after}: an event is there twice")


def main(folder: Path, fault: str, stride: int, trial: Trial) -> None:
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    number = FAULTS.get(fault) or getattr(errno, fault)
    total = attempt(folder / "none", trial, 1 << 40, 0)
    tried = range(0, total, stride)
    for after in tried:
        attempt(folder / str(after), trial, after, number)
    sys.stdout.write(f"{len(tried)} of {total}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[4]), Trial(sys.argv[5], sys.argv[6], int(sys.argv[3])))
