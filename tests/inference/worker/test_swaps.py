"""Many swaps under full load: no sample is lost, each result names its model, and nothing is left behind."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edge_agent.inference.evaluation import record
from edge_agent.inference.golden import write_golden
from edge_agent.inference.interpreter.model import build
from edge_agent.inference.protocol import (
    EndShadow,
    Keep,
    Load,
    Loaded,
    ModelOptions,
    Results,
    Revert,
    Reverted,
    ShadowTally,
    ToAgent,
)
from edge_agent.inference.runtime.runtimes import find_runtime
from edge_agent.records import ModelFile, Terms
from tests.inference.conftest import settings
from tests.inference.worker.kit import Agent, Process, worker
from tests.standin import build as standin
from tests.standin.models import edgetpu_model

# Both are some times the number of `ways`.
SWAPS, WARM = 360, 60
# What the allocator keeps for itself goes up and down by less. Bytes.
ROOM = 1_000_000


class Driver:
    """Tells the worker what to run, and takes what it says."""

    def __init__(self, agent: Agent, process: Process) -> None:
        self.agent = agent
        self.positions: list[int] = []
        self.shadowed = 0
        self._folder = Path(f"/proc/{process.pid}")
        self._requests = 0
        self._in_use = self._before = 0

    def until(self, wanted: type[ToAgent]) -> ToAgent:
        """Take what comes up to a message of this kind. All results must be of the model in use."""
        while True:
            message = self.agent.receive()
            assert message is not None
            if isinstance(message, Results):
                assert (message.request, message.failed) == (self._in_use, 0)
                self.positions += [int(result.position or 0) for result in message.results]
            elif isinstance(message, ShadowTally):
                assert message.agreed == message.samples
                self.shadowed += message.samples
            if isinstance(message, wanted):
                return message

    def load(self, model: ModelFile, **how: object) -> None:
        loaded = self._ask(model, **how)
        assert loaded.report.accepted, loaded.report.reason
        if how.get("role") != "shadow":
            self._before, self._in_use = self._in_use, loaded.request
        self.until(Results)

    def _ask(self, model: ModelFile, **how: object) -> Loaded:
        self._requests += 1
        self.agent.send(msgspec.convert({"request": self._requests, "model": model} | how, Load, from_attributes=True))
        loaded = self.until(Loaded)
        assert isinstance(loaded, Loaded)
        return loaded

    def revert(self) -> None:
        self.agent.send(Revert(self._before))
        self.until(Reverted)
        self._in_use = self._before
        self.keep()

    def keep(self) -> None:
        self.agent.send(Keep(self._in_use))

    def footprint(self) -> tuple[int, int, int, int]:
        """How many threads, open files, and model files in memory; and how many bytes of memory."""
        # It answers when it has closed whatever it had to close before.
        assert not self._ask(ModelFile("/none", "m", "v0")).report.accepted
        maps = (self._folder / "maps").read_text()
        resident = int((self._folder / "statm").read_text().split()[1]) * 4096
        threads, files = (len(list((self._folder / name).iterdir())) for name in ("task", "fd"))
        return threads, files, maps.count(".tflite"), resident


@pytest.fixture
def golden(demo_model: ModelFile, tmp_path: Path) -> str:
    model = build(find_runtime(), demo_model, ModelOptions(), None)
    samples = np.random.default_rng(1).uniform(0, 1, (20, 128)).astype(np.float32)
    write_golden(tmp_path / "golden.npz", record(model, samples))
    return str(tmp_path / "golden.npz")


def ways(driver: Driver, model: ModelFile, golden: str) -> Iterator[None]:
    """All that there is to do to a model, again and again; a step for each swap."""
    trial = Terms(trial=True)
    while True:
        driver.load(model)
        yield
        driver.load(model, terms=trial)
        driver.keep()
        yield
        driver.load(model, terms=trial)
        driver.revert()
        yield
        driver.load(model, terms=Terms(golden=golden, min_agreement=0.0), role="again")
        yield
        driver.load(model, role="shadow", share=0.5)
        driver.load(model, terms=trial)
        yield
        driver.agent.send(EndShadow())
        # In the middle of a trial: the one before it goes.
        driver.load(model, terms=trial)
        yield


@pytest.mark.parametrize("compiled", [False, True], ids=["cpu", "edgetpu"])
def test_hundreds_of_swaps_under_full_load_lose_nothing_and_leave_nothing(
    faulty_plugin: str, demo_model: ModelFile, golden: str, edgetpu_standin: Path, tmp_path: Path, *, compiled: bool
) -> None:
    path = tmp_path / "compiled.tflite"
    path.write_bytes(edgetpu_model(Path(demo_model.path).read_bytes()))
    model = ModelFile(str(path), "m", "v1") if compiled else demo_model
    source = settings(faulty_plugin, at=0, total=10**9)
    with worker(source, standin.environment(edgetpu_standin, log=tmp_path / "log")) as (agent, process):
        driver = Driver(agent, process)
        swaps = ways(driver, model, golden)
        for _ in range(WARM):
            next(swaps)
        *before, memory = driver.footprint()
        for _ in range(WARM, SWAPS):
            next(swaps)
        *after, grown = driver.footprint()
        assert after == before
        assert grown - memory < ROOM
        assert driver.positions == list(range(1, len(driver.positions) + 1))
        assert driver.shadowed > 0
    if compiled:
        closed = [line for line in standin.read_log(tmp_path / "log") if line["event"] == "destroy"]
        assert len(closed) >= SWAPS
        assert {line["kernels"] for line in closed} == {0}
