"""The gap in the results while a model is swapped, next to the same run without a swap."""

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edge_agent.inference.accelerators.recovery import Recovery
from edge_agent.inference.protocol import Configure
from edge_agent.inference.runtime.choice import RuntimeChoice
from edge_agent.inference.supervision.status import ResultBatch
from edge_agent.inference.supervision.supervisor import Supervisor
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


def _ignore(*_: str, **__: str) -> None:
    """Nothing of this is measured."""


async def measure(folder: Path, configure: Configure, model: ModelFile) -> Gaps:
    """Run the model, swap it for itself under another version, and compare."""
    arrivals = _Arrivals()
    supervisor = Supervisor(
        configure,
        30.0,
        guard=Recovery(RuntimeChoice(folder / "runtimes.json"), on_health=_ignore, on_alarm=_ignore),
        on_results=arrivals.take,
        on_health=_ignore,
    )
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
