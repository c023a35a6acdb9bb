"""A real worker, and samples that kill it each time."""

import asyncio
from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter

from edge_agent.inference.supervision import supervisor
from edge_agent.records import ModelFile
from tests.inference.conftest import DEMO_MODEL, Rig, running, settings
from tests.standin import build, models

ROWS, POISONED = 60, 23


@pytest.fixture(autouse=True)
def without_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "FIRST_DELAY", 0.02)


def quantized_sum(row: np.ndarray[tuple[int], np.dtype[np.float32]]) -> int:
    scale, zero_point = Interpreter(model_path=str(DEMO_MODEL)).get_input_details()[0]["quantization"]
    return int(np.clip(np.rint(row / scale + zero_point), 0, 255).sum())


def poison(
    row: np.ndarray[tuple[int], np.dtype[np.float32]], library: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> ModelFile:
    """A model that ends the process on this row."""
    for name, value in build.environment(library).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("EDGETPU_STANDIN_POISON", str(quantized_sum(row)))
    compiled = folder / "m_edgetpu.tflite"
    compiled.write_bytes(models.edgetpu_model(DEMO_MODEL.read_bytes()))
    return ModelFile(str(compiled), "m", "v1")


def test_a_sample_that_kills_the_model_twice_is_left_out(
    edgetpu_standin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = np.full((ROWS, 128), 0.5, np.float32)
    samples[POISONED] = 0.9
    np.save(tmp_path / "samples.npy", samples)
    compiled = poison(samples[POISONED], edgetpu_standin, tmp_path, monkeypatch)

    async def scenario() -> None:
        source = settings("recording", path=str(tmp_path / "samples.npy"), rate=0, repeat=False)
        async with running(source) as rig:
            assert (await rig.supervisor.load(compiled)).accepted
            await asyncio.wait_for(rig.supervisor.source_ended.wait(), 60)
        results = [result for batch in rig.batches for result in batch.results]
        done = {int(str(result.position).rpartition(":")[2]) for result in results}
        assert set(range(1, ROWS + 1)) - done == {POISONED + 1}
        assert rig.supervisor.status.deaths == 2
        assert rig.supervisor.status.set_aside == 1
        assert [status for status, _ in rig.ends] == ["killed by SIGABRT"] * 2
        assert all("running the model" in stage for _, stage in rig.ends)
        [told] = [detail for component, state, detail in rig.health if state == "sample_set_aside"]
        assert told.startswith(f"the sample at {POISONED + 1} has ended the worker twice: killed by SIGABRT while ")

    asyncio.run(scenario())


@pytest.mark.parametrize(("at", "what"), [(17, "the sample after 16"), (1, "the first sample")])
def test_a_sample_that_kills_the_source_twice_is_passed_over(
    faulty_plugin: str, demo_model: ModelFile, at: int, what: str
) -> None:
    async def scenario() -> None:
        # Slow enough that the samples before are done when it happens.
        async with running(settings(faulty_plugin, at=at, total=40, what="abort", pause=0.02)) as rig:
            assert (await rig.supervisor.load(demo_model)).accepted
            await asyncio.wait_for(rig.supervisor.source_ended.wait(), 60)
        assert sorted(set(rig.positions)) == [number for number in range(1, 41) if number != at]
        assert rig.supervisor.status.deaths == 2
        assert rig.supervisor.status.skipped == 1
        [told] = [detail for component, state, detail in rig.health if state == "sample_set_aside"]
        assert told.startswith(f"{what} has ended the worker twice: killed by SIGABRT while reading the source")

    asyncio.run(scenario())


def rounds(rig: Rig) -> int:
    return int(str(rig.batches[-1].results[-1].position).partition(":")[0])


def test_a_recording_that_is_repeated_pays_for_a_deadly_sample_once(
    edgetpu_standin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = np.full((ROWS, 128), 0.5, np.float32)
    samples[POISONED] = 0.9
    np.save(tmp_path / "samples.npy", samples)
    compiled = poison(samples[POISONED], edgetpu_standin, tmp_path, monkeypatch)

    async def scenario() -> None:
        async with running(settings("recording", path=str(tmp_path / "samples.npy"), rate=0, repeat=True)) as rig:
            assert (await rig.supervisor.load(compiled)).accepted
            await rig.until(lambda: rig.batches and rounds(rig) >= 5)
            assert rig.supervisor.status.deaths == 2
        # Told together, every few seconds and at the end.
        assert rig.supervisor.status.set_aside >= 5

    asyncio.run(scenario())


def test_another_source_begins_without_suspects(faulty_plugin: str, demo_model: ModelFile) -> None:
    async def scenario() -> None:
        async with running(settings(faulty_plugin, at=3, total=40, what="abort", pause=0.02)) as rig:
            assert (await rig.supervisor.load(demo_model)).accepted
            await asyncio.wait_for(rig.supervisor.source_ended.wait(), 60)
            again = settings(faulty_plugin, at=0, total=5)
            rig.supervisor.source_ended.clear()
            seen = len(rig.positions)
            assert await rig.supervisor.reconfigure(again, 10.0) is None
            await asyncio.wait_for(rig.supervisor.source_ended.wait(), 60)
            await rig.until(lambda: len(rig.positions) == seen + 5)
        assert rig.positions[seen:] == [1, 2, 3, 4, 5]

    asyncio.run(scenario())
