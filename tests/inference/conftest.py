"""Fixtures for tests with a real worker."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import pytest

from edge_agent.inference.accelerators.devices import list_devices
from edge_agent.inference.accelerators.recovery import Recovery
from edge_agent.inference.accelerators.reset import reset_usb
from edge_agent.inference.interpreter.inputs import Prepared
from edge_agent.inference.protocol import Configure, ModelOptions
from edge_agent.inference.runtime.choice import RuntimeChoice
from edge_agent.inference.runtime.probe import try_pair
from edge_agent.inference.supervision.status import ResultBatch
from edge_agent.inference.supervision.supervisor import Supervisor
from edge_agent.records import ModelFile

ROOT = Path(__file__).parents[2]
DEMO_MODEL = ROOT / "edge_agent/demo/vibration_classifier.tflite"


# For tasks that do not look at the input.
NOTHING = Prepared(None, 0.0)

REFERENCES = {
    "faulty": "tests.plugins.faulty:Faulty",
    "images": "edge_agent.sources.images:Images",
    "marked": "tests.plugins.marked:Marked",
    "recording": "edge_agent.sources.recording:Recording",
    "vibration": "edge_agent.sources.vibration:Vibration",
}


@pytest.fixture
def faulty_plugin(monkeypatch: pytest.MonkeyPatch) -> str:
    """Let the worker of this test import the plugin `faulty`."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return "faulty"


@pytest.fixture
def demo_model() -> ModelFile:
    """The model that comes with the agent."""
    return ModelFile(str(DEMO_MODEL), "vibration", "v1", ["normal", "warning", "failure"])


def settings(plugin: str = "vibration", **options: Any) -> Configure:
    """Return a worker's settings; `options` are the source's."""
    model = ModelOptions(
        accelerator="auto",
        device="",
        top_k=3,
        resize="nearest",
        image_mean=127.5,
        image_std=127.5,
        labels=None,
        raw_data=0,
    )
    return Configure(plugin=REFERENCES[plugin], options=options, model=model)


def with_model(configure: Configure, **changes: Any) -> Configure:
    """Return the settings with some of the model's options changed."""
    return msgspec.structs.replace(configure, model=msgspec.structs.replace(configure.model, **changes))


class Rig:
    """A supervisor with a real worker, and everything it reported."""

    def __init__(self, configure: Configure, deadline: float, folder: Path) -> None:
        self.batches: list[ResultBatch] = []
        self.health: list[tuple[str, str, str]] = []
        self.ends: list[tuple[str, str]] = []
        self.alarms: list[str] = []
        self.reverts: list[str] = []
        self.shadow_ends: list[str] = []
        self.ahead = 0.0
        self.folder = folder
        self._news = asyncio.Event()
        root = Path(configure.root)
        self.recovery = Recovery(
            RuntimeChoice(folder / "runtimes.json", trying=partial(try_pair, root=root)),
            on_health=self._health,
            on_alarm=self._alarm,
            devices=lambda: list_devices(root),
            reset=lambda name: reset_usb(name, root=root, ioctl=lambda *_: 0),
            clock=lambda: time.monotonic() + self.ahead,
        )
        self.supervisor = Supervisor(
            configure, deadline, guard=self.recovery, on_results=self._results, on_health=self._health
        )
        self.supervisor.on_revert = self._note(self.reverts)
        self.supervisor.on_shadow_end = self._note(self.shadow_ends)

    def _results(self, batch: ResultBatch) -> None:
        self.batches.append(batch)
        self._news.set()

    def _health(self, component: str, state: str, detail: str, *, exit_status: str = "", stage: str = "") -> None:
        self.health.append((component, state, detail))
        if exit_status:
            self.ends.append((exit_status, stage))
        self._news.set()

    def _alarm(self, detail: str) -> None:
        self.alarms.append(detail)
        self._news.set()

    def _note(self, where: list[str]) -> Callable[[str], None]:
        def note(reason: str) -> None:
            where.append(reason)
            self._news.set()

        return note

    @property
    def versions(self) -> list[str]:
        """The versions that results came from, each as often as it took over."""
        return [version for version, _ in groupby(batch.model.version for batch in self.batches if batch.results)]

    @property
    def positions(self) -> list[int]:
        """The numbers of the samples that results came for, in the order of arrival."""
        return [int(result.position or 0) for batch in self.batches for result in batch.results]

    async def more(self, count: int = 20) -> None:
        """Wait for so many further results."""
        wanted = len(self.positions) + count
        await self.until(lambda: len(self.positions) >= wanted)

    def lost_nothing(self) -> bool:
        """Whether each sample so far has become one result, in order."""
        return self.positions == list(range(1, len(self.positions) + 1))

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait for something reported to make the condition true."""
        async with asyncio.timeout(60):
            while not condition():
                self._news.clear()
                await self._news.wait()

    def replace(self, **changes: Any) -> Configure:
        """Return the settings with some of the model's options changed."""
        return with_model(self.supervisor._configure, **changes)


@asynccontextmanager
async def running(configure: Configure, deadline: float = 10.0) -> AsyncIterator[Rig]:
    """Run a supervisor for the length of the block."""
    with TemporaryDirectory() as folder:
        rig = Rig(configure, deadline, Path(folder))
        task = asyncio.create_task(rig.supervisor.run())
        try:
            yield rig
        finally:
            await rig.supervisor.stop()
            async with asyncio.timeout(20):
                await task
