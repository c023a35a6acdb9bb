"""Opens a queue, takes the first events, and prints what that cost as JSON.

    queue_open_child.py STATE_DIR RUNTIME_DIR

`open_s` and `take_s` are seconds, `read_bytes` what `open` has read from files, `grown_kib` by how much the memory
of the process has grown at most, both together; `depth` is the backlog, `oldest` the first event.
"""

import asyncio
import json
import sys
import time
from pathlib import Path

from edge_agent.telemetry.queue.queue import Queue


def memory_kib(field: str) -> int:
    """A line of proc(5)'s status: VmRSS is the memory now, VmHWM the most since `clear_refs` was told to forget it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def bytes_read() -> int:
    """Bytes that system calls of this process have read, from the page cache or not (proc(5), rchar)."""
    return int(Path("/proc/self/io").read_text().split()[1])


async def main(state: str, runtime: str) -> None:
    queue = Queue(Path(state), runtime_directory=Path(runtime), max_size=1 << 40, commit_interval=1, boot_id="boot-2")
    memory, before, start = memory_kib("VmRSS"), bytes_read(), time.perf_counter()
    await queue.open()
    opened, after = time.perf_counter(), bytes_read()
    batch = await queue.take(1000, 1 << 20)
    taken = time.perf_counter()
    found = {
        "open_s": opened - start,
        "take_s": taken - opened,
        "read_bytes": after - before,
        "grown_kib": memory_kib("VmHWM") - memory,
        "depth": queue.depth,
        "oldest": batch.events[0].split()[0].decode(errors="replace") if batch else "",
    }
    await queue.close(60)
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    Path("/proc/self/clear_refs").write_text("5")
    asyncio.run(main(*sys.argv[1:3]))
