"""The gap in the results while a model is swapped, next to the same run without a swap; and many swaps in a row."""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from unittest import mock

import msgspec
import numpy as np

from edge_agent.inference.accelerators.recovery import Recovery
from edge_agent.inference.evaluation import record
from edge_agent.inference.golden import write_golden
from edge_agent.inference.interpreter.model import build
from edge_agent.inference.protocol import Configure
from edge_agent.inference.runtime.choice import RuntimeChoice
from edge_agent.inference.runtime.runtimes import find_runtime
from edge_agent.inference.supervision import supervisor as supervision
from edge_agent.inference.supervision.status import ResultBatch
from edge_agent.inference.supervision.supervisor import Supervisor
from edge_agent.records import ModelFile, Terms

WINDOW = 3.0
SWAPS = 5
MANY = 200
GOLDEN = 50


@dataclass
class Gaps:
    """Longest time between two arrivals of results in the agent, in ms, and how many samples went missing.

    `with_trial` is with golden samples before, the model before kept, and a way back to it.
    """

    without: float
    with_swap: float
    with_trial: float
    lost: int
    build_ms: str


@dataclass
class Many:
    """What came of many swaps in a row, half of them trials: the worker's own memory before and after, in MiB."""

    swaps: int
    seconds: float
    lost: int
    before_mib: float
    after_mib: float


class _Arrivals:
    """`cycle` is how many samples the source has, if it repeats them."""

    def __init__(self, cycle: int | None) -> None:
        self.longest = 0.0
        self.positions: list[int] = []
        self._cycle = cycle
        self._last: float | None = None

    def take(self, batch: ResultBatch) -> None:
        now = time.perf_counter()
        if self._last is not None:
            self.longest = max(self.longest, now - self._last)
        self._last = now
        self.positions += [int(re.findall(r"\d+", result.position or "0")[-1]) for result in batch.results]

    def take_longest(self) -> float:
        """Return the longest gap in ms since the last call."""
        longest, self.longest = self.longest, 0.0
        return longest * 1000

    @property
    def lost(self) -> int:
        missing = (after - before - 1 for before, after in pairwise(self.positions))
        return sum(each % self._cycle if self._cycle else each for each in missing)


def _ignore(*_: str, **__: str) -> None:
    """Nothing of this is measured."""


@asynccontextmanager
async def _running(folder: Path, configure: Configure, arrivals: _Arrivals) -> AsyncIterator[Supervisor]:
    supervisor = Supervisor(
        configure,
        30.0,
        guard=Recovery(RuntimeChoice(folder / "runtimes.json"), on_health=_ignore, on_alarm=_ignore),
        on_results=arrivals.take,
        on_health=_ignore,
    )
    task = asyncio.create_task(supervisor.run())
    yield supervisor
    await supervisor.stop()
    await task


@contextmanager
def _without_the_check() -> Iterator[None]:
    """Only the worker's own swap is of interest: the check of the file before it runs in another process."""

    async def nothing_wrong(_: ModelFile) -> None:
        return None

    with mock.patch.object(supervision, "check_files", nothing_wrong):
        yield


def golden_samples(folder: Path, configure: Configure, model: ModelFile) -> Terms:
    """Make golden samples of the model; returns the terms of a trial with them."""
    loaded = build(find_runtime(), model, configure.model, None)
    shape = loaded.input.shape[1:]
    random = np.random.default_rng(1)
    if loaded.input.takes_images:
        samples = random.integers(0, 256, (GOLDEN, *shape), np.uint8)
    else:
        samples = random.normal(0.5, 0.1, (GOLDEN, *shape)).astype(np.float32)
    write_golden(folder / "golden.npz", record(loaded, samples))
    return Terms(golden=str(folder / "golden.npz"), max_latency_ms=10_000.0, trial=True)


async def measure(folder: Path, configure: Configure, model: ModelFile, cycle: int | None = None) -> Gaps:
    """Run the model, swap it for itself under another version, and compare."""
    terms = golden_samples(folder, configure, model)
    arrivals = _Arrivals(cycle)
    without, with_swap, with_trial, detail = 0.0, 0.0, 0.0, ""
    async with _running(folder, configure, arrivals) as supervisor:
        assert (await supervisor.load(model)).accepted
        await asyncio.sleep(1.0)
        with _without_the_check():
            for number in range(SWAPS):
                arrivals.take_longest()
                await asyncio.sleep(WINDOW)
                without = max(without, arrivals.take_longest())
                report = await supervisor.load(msgspec.structs.replace(model, version=f"v{number}"))
                assert report.accepted, report.reason
                detail = report.detail
                await asyncio.sleep(WINDOW / 3)
                with_swap = max(with_swap, arrivals.take_longest())
                report = await supervisor.load(msgspec.structs.replace(model, version=f"trial {number}"), terms)
                assert report.accepted, report.reason
                await asyncio.sleep(WINDOW / 3)
                await supervisor.revert("this is a measurement")
                await asyncio.sleep(WINDOW / 3)
                with_trial = max(with_trial, arrivals.take_longest())
    return Gaps(without, with_swap, with_trial, arrivals.lost, detail)


async def many(folder: Path, configure: Configure, model: ModelFile, cycle: int | None = None) -> Many:
    """Swap the model for itself again and again, as fast as it goes."""
    arrivals = _Arrivals(cycle)
    async with _running(folder, configure, arrivals) as supervisor:
        assert (await supervisor.load(model)).accepted
        with _without_the_check():
            await _swap(supervisor, model, MANY // 10)
            assert supervisor.worker_pid is not None
            before, start = _private_mib(supervisor.worker_pid), time.perf_counter()
            await _swap(supervisor, model, MANY)
            seconds, after = time.perf_counter() - start, _private_mib(supervisor.worker_pid)
    return Many(MANY, seconds, arrivals.lost, before, after)


async def _swap(supervisor: Supervisor, model: ModelFile, times: int) -> None:
    for number in range(times):
        report = await supervisor.load(model, Terms(trial=number % 2 == 1))
        assert report.accepted, report.reason
        if number % 4 == 1:
            await supervisor.revert("this is a measurement")
        else:
            supervisor.keep()


def _private_mib(pid: int) -> float:
    """Return the memory of a process without the files that it has in it, such as a recording."""
    [kib] = re.findall(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(kib) / 1024
