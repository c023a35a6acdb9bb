"""A program whose files may not grow beyond 15 kB for a while: nothing may be lost by that.

queue_limited_child.py STATE_DIR RUNTIME_DIR
"""

import asyncio
import base64
import os
import resource
import sys
from pathlib import Path

from edge_agent.telemetry.queue.queue import Queue

FREE = resource.RLIM_INFINITY


async def main(state: str, runtime: str) -> None:
    queue = Queue(Path(state), runtime_directory=Path(runtime), max_size=1 << 30, commit_interval=1, boot_id="boot-1")
    async with queue:
        resource.setrlimit(resource.RLIMIT_FSIZE, (15_000, FREE))
        troubles = []
        for _ in range(60):
            first = queue.next_number
            events = [b"%d " % (first + i) + base64.b85encode(os.urandom(2000)) for i in range(10)]
            queue.put(first, events[:5], 1, 1)
            queue.put(first + 5, events[5:], 1, 1)
            troubles.append(queue.trouble)
            await queue.tick()
            troubles.append(queue.trouble)
        if not any("journal-" in (trouble or "") for trouble in troubles):
            sys.exit(f"the journal was never in trouble: {set(troubles)}")
        if queue.trouble is None or queue.depth != 600:
            sys.exit(f"trouble {queue.trouble}, depth {queue.depth}")
        resource.setrlimit(resource.RLIMIT_FSIZE, (FREE, FREE))
        for _ in range(70):
            await queue.tick()
        if queue.trouble is not None:
            sys.exit(f"still in trouble: {queue.trouble}")
        numbers = []
        while (batch := await queue.take(100, 1 << 30)) is not None:
            numbers += [int(event.split()[0]) for event in batch.events]
            queue.ack(batch)
        if numbers != list(range(1, 601)) or queue.losses():
            sys.exit(f"lost or out of order: {len(numbers)} events, {queue.losses()}")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:3]))
