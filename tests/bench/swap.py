"""The gap in the results while a model is swapped, next to the same run without a swap."""

import asyncio
import time
from dataclasses import dataclass

import msgspec

from edge_agent.inference.protocol import Configure
from edge_agent.inference.supervisor import ResultBatch, Supervisor
from edge_agent.records import ModelFile

WINDOW = 3.0
SWAPS = 5


@dataclass
class Gaps:
    """Longest time between two arrivals of results in the agent, in ms, and how many samples went missing."""

    without: float
    with_swap: float
    lost: int
    build_ms: str


class _Arrivals:
    def __init__(self) -> None:
        self.longest = 0.0
        self.positions: list[int] = []
        self._last: float | None = None

    def take(self, batch: ResultBatch) -> None:
        now = time.perf_counter()
        if self._last is not None:
            self.longest = max(self.longest, now - self._last)
        self._last = now
        self.positions += [int((result.position or "0").rpartition(":")[2]) for result in batch.results]

    def reset(self) -> None:
        self.longest = 0.0


async def measure(configure: Configure, model: ModelFile) -> Gaps:
    """Run the model, swap it for itself under another version, and compare."""
    arrivals = _Arrivals()
    supervisor = Supervisor(configure, 30.0, on_results=arrivals.take, on_health=lambda *_: None)
    task = asyncio.create_task(supervisor.run())
    assert (await supervisor.load(model)).accepted
    await asyncio.sleep(1.0)
    without, with_swap, detail = 0.0, 0.0, ""
    for number in range(SWAPS):
        arrivals.reset()
        await asyncio.sleep(WINDOW)
        without = max(without, arrivals.longest)
        arrivals.reset()
        # Only the worker's own swap is of interest: the check of the file before it runs in another process.
        report = await supervisor.load(msgspec.structs.replace(model, version=f"v{number}"))
        assert report.accepted, report.reason
        detail = report.detail
        await asyncio.sleep(WINDOW / 3)
        with_swap = max(with_swap, arrivals.longest)
    await supervisor.stop()
    await task
    positions = arrivals.positions
    lost = positions[-1] - positions[0] + 1 - len(positions)
    return Gaps(without * 1000, with_swap * 1000, lost, detail)
