"""A program that uses a queue as fast as it can until it is killed, and says what it has done.

    queue_child.py STATE_DIR RUNTIME_DIR|- SEED

Lines on standard output: `accepted ID`, `taken ID` (before it is acknowledged), `acked ID`, for each event.
"""

import asyncio
import os
import random
import sys
from pathlib import Path

from edge_agent.telemetry.queue.queue import Priority, Queue


def say(verb: str, events: list[bytes]) -> None:
    os.write(1, b"".join(f"{verb} ".encode() + event + b"\n" for event in events))


async def main(state: str, runtime: str, seed: str) -> None:
    dice = random.Random(seed)
    directory = None if runtime == "-" else Path(runtime)
    queue = Queue(Path(state), runtime_directory=directory, max_size=1 << 30, commit_interval=0.01, boot_id="boot-1")
    await queue.open()
    ticking = asyncio.create_task(queue.run())
    while not ticking.done():
        first, count = queue.next_number, dice.randint(1, 30)
        events = [f"{queue.epoch}/{number}".encode() for number in range(first, first + count)]
        queue.put(first, events, 1, 2, dice.choices(list(Priority), (1, 1, 2, 20))[0])
        say("accepted", events)
        if dice.random() < 0.5:
            batch = await queue.take(dice.randint(1, 50), 1 << 20)
            if batch is None:
                continue
            taken = list(batch.events)
            say("taken", taken)
            await asyncio.sleep(0)
            if dice.random() < 0.8:
                queue.ack(batch)
                say("acked", taken)
            else:
                queue.release(batch)
        await asyncio.sleep(0)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:4]))
