"""Golden samples that a model has to pass before it is taken into use, in a real worker."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edge_agent.inference.evaluation import record
from edge_agent.inference.golden import Golden, write_golden
from edge_agent.inference.interpreter.model import build
from edge_agent.inference.progress import Stage, Track
from edge_agent.inference.protocol import Configure, ModelOptions
from edge_agent.inference.runtime.runtimes import find_runtime
from edge_agent.records import ModelFile, Terms
from tests.inference.conftest import running
from tests.inference.supervision.trial_kit import VALUES, Use, mapped, on_device, pid

pytestmark = pytest.mark.usefixtures("quick")


def golden_of(model: ModelFile, folder: Path, **changes: Any) -> Golden:
    loaded = build(find_runtime(), model, ModelOptions(), None)
    samples = np.random.default_rng(1).uniform(0, 1, (10, VALUES)).astype(np.float32)
    golden = record(loaded, samples, [str(loaded.examine(data).answer.prediction) for data in samples])
    golden = msgspec.structs.replace(golden, **changes)
    write_golden(folder / "golden.npz", golden)
    return golden


def test_golden_samples_are_tried_while_the_model_in_use_goes_on(
    source: Configure, tolerant: ModelFile, strict: ModelFile, tmp_path: Path
) -> None:
    golden = golden_of(strict, tmp_path)
    terms = Terms(golden=str(tmp_path / "golden.npz"), min_accuracy=1.0, max_latency_ms=60_000, trial=True)

    async def scenario() -> None:
        async with running(source) as rig:
            first = await rig.supervisor.load(tolerant, Terms(golden=terms.golden))
            assert (first.accepted, first.agreement, first.accuracy) == (True, 1.0, 1.0)
            await rig.more()
            # Others are expected: two of ten.
            wrong = golden.outputs[0].copy()
            wrong[3, 0, 1] += 0.5
            wrong[7, 0, 0] += 0.7
            write_golden(terms.golden, Golden(golden.input, (wrong,), golden.labels))
            refused = await rig.supervisor.load(strict, terms)
            assert (refused.accepted, refused.permanent, refused.about_device) == (False, True, False)
            span = wrong.max() - wrong.min()
            assert refused.reason == (
                "golden samples: 8 of 10 agree, 10 must; sample 7: output 0 is 0.7 from the expected "
                f"(tolerance {0.1 * span:.3g})"
            )
            assert mapped(pid(rig)) == {tolerant.path}
            write_golden(terms.golden, golden)
            report = await rig.supervisor.load(strict, terms)
            assert (report.accepted, report.agreement, report.accuracy) == (True, 1.0, 1.0)
            assert report.latency_ms is not None
            assert 0 < report.latency_ms < 60_000
            await rig.until(lambda: rig.versions == ["v1", "v2"])
            assert (rig.lost_nothing(), rig.health) == (True, [])

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("spoiled", "reason"),
    [
        (lambda path: path.unlink(), "golden samples: cannot be read: No such file or directory"),
        (
            lambda path: path.write_bytes(b"PK"),
            "golden samples: is no .npz file as numpy.savez writes it, or is cut short",
        ),
    ],
)
def test_golden_samples_that_cannot_be_read_are_a_refusal(
    source: Configure, tolerant: ModelFile, tmp_path: Path, spoiled: Callable[[Path], object], reason: str
) -> None:
    golden_of(tolerant, tmp_path)
    spoiled(tmp_path / "golden.npz")

    async def scenario() -> None:
        async with running(source) as rig:
            report = await rig.supervisor.load(tolerant, Terms(golden=str(tmp_path / "golden.npz")))
            assert (report.accepted, report.permanent, report.reason) == (False, True, reason)
            assert (await rig.supervisor.load(tolerant)).accepted

    asyncio.run(scenario())


def test_results_come_while_golden_samples_are_tried(
    source: Configure, tolerant: ModelFile, edgetpu: Use, edgetpu_standin: Path, tmp_path: Path
) -> None:
    compiled = on_device(tmp_path, "v2")
    edgetpu("slow")  # 0.1 s for each of the ten
    golden = golden_of(tolerant, tmp_path)
    outputs = (np.zeros_like(golden.outputs[0]),)
    write_golden(tmp_path / "golden.npz", Golden(golden.input, outputs))
    terms = Terms(golden=str(tmp_path / "golden.npz"), min_agreement=0.0)

    async def scenario() -> None:
        async with running(source) as rig:
            assert (await rig.supervisor.load(tolerant)).accepted
            loading = asyncio.create_task(rig.supervisor.load(compiled, terms))
            seen = None
            while not loading.done():
                await asyncio.sleep(0.005)
                worker = rig.supervisor._connection  # another one, once it is known which runtime suits the device
                if seen is None and worker is not None and worker.page.stage(Track.CONTROL) is Stage.GOLDEN:
                    seen = len(rig.positions)
            assert (await loading).accepted
            assert seen is not None
            assert len(rig.positions) > seen + 50
            assert rig.lost_nothing()

    asyncio.run(scenario())
