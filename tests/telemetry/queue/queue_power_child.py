"""A program that uses a queue as fast as it can until the power is cut, and says what a power cut may not cost.

    queue_power_child.py STATE_DIR RUNTIME_DIR|- SEED

Each run is another boot. Lines on standard output, for each event: `accepted ID`, `taken ID` (before it is
acknowledged or rejected), and `kept ID` once two ticks, which are a commit interval, have gone well since.
"""

import asyncio
import os
import random
import sys
from pathlib import Path

import structlog

from edge_agent.telemetry.events.priority import Priority
from edge_agent.telemetry.queue.queue import Queue


def say(verb: str, events: list[bytes]) -> None:
    os.write(1, b"".join(f"{verb} ".encode() + event.split()[0] + b"\n" for event in events))


def put(queue: Queue, dice: random.Random) -> list[bytes]:
    first, count = queue.next_number, dice.randint(1, 60)
    ids = [f"{queue.epoch}/{number}".encode() for number in range(first, first + count)]
    queue.put(
        first,
        [event + b" " + dice.randbytes(dice.randint(0, 200)).hex().encode() for event in ids],
        1,
        2,
        dice.choice(list(Priority)),
    )
    say("accepted", ids)
    return ids


async def finish(queue: Queue, dice: random.Random) -> None:
    batch = await queue.take(dice.randint(1, 50), 1 << 20)
    if batch is None:
        return
    say("taken", list(batch.events))
    if dice.random() < 0.1:
        queue.reject(batch, 0, "it is said to be bad")
    if dice.random() < 0.8:
        queue.ack(batch)
    else:
        queue.release(batch)


async def main(state: str, runtime: str, seed: str) -> None:
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())  # standard output is for what is said here
    dice = random.Random(seed)
    directory = None if runtime == "-" else Path(runtime)
    queue = Queue(Path(state), runtime_directory=directory, max_size=1 << 30, commit_interval=1, boot_id=f"boot-{seed}")
    await queue.open()
    aging: list[list[bytes]] = [[], [], []]  # put in this tick, in the one before, and in the one before that
    while True:
        aging[0] += put(queue, dice)
        if dice.random() < 0.4:
            await finish(queue, dice)
        if dice.random() < 0.5:
            await queue.tick()
            aging.insert(0, [])
            kept = aging.pop()
            if queue.trouble is None:
                say("kept", kept)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:4]))
