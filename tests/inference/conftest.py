"""Fixtures for tests with a real worker."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge_agent.inference.inputs import Prepared
from edge_agent.inference.protocol import Configure, ModelOptions
from edge_agent.inference.supervisor import ResultBatch, Supervisor
from edge_agent.records import ModelFile

ROOT = Path(__file__).parents[2]
DEMO_MODEL = ROOT / "edge_agent/demo/vibration_classifier.tflite"


# For tasks that do not look at the input.
NOTHING = Prepared(None, 0.0)

REFERENCES = {
    "faulty": "tests.plugins.faulty:Faulty",
    "images": "edge_agent.sources.images:Images",
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

    def __init__(self, configure: Configure, deadline: float = 10.0) -> None:
        self.batches: list[ResultBatch] = []
        self.health: list[tuple[str, str, str]] = []
        self._news = asyncio.Event()
        self.supervisor = Supervisor(configure, deadline, on_results=self._results, on_health=self._health)

    def _results(self, batch: ResultBatch) -> None:
        self.batches.append(batch)
        self._news.set()

    def _health(self, *report: str) -> None:
        self.health.append((report[0], report[1], report[2]))
        self._news.set()

    @property
    def positions(self) -> list[int]:
        """The numbers of the samples that results came for, in the order of arrival."""
        return [int(result.position or 0) for batch in self.batches for result in batch.results]

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
    rig = Rig(configure, deadline)
    task = asyncio.create_task(rig.supervisor.run())
    try:
        yield rig
    finally:
        await rig.supervisor.stop()
        async with asyncio.timeout(20):
            await task
