"""A shadow beside the model in use, in a real worker."""

import asyncio
import os
import signal
from pathlib import Path

import msgspec
import pytest

from edge_agent.inference.protocol import Configure
from edge_agent.records import ModelFile, Terms
from tests.inference.conftest import ROOT, Rig, running, settings
from tests.inference.supervision.trial_kit import VALUES, Use, call_for_the_special_one, mapped, on_device, pid, written
from tests.inference.synthetic import Spec, counter

SHARED = ROOT.parent / "shared/models"
ROW = Spec("x", (1, VALUES))

pytestmark = pytest.mark.usefixtures("quick")


async def begin(rig: Rig, model: ModelFile, candidate: ModelFile, share: float = 1.0) -> int:
    """Returns how many results there were when the shadow was asked for."""
    assert (await rig.supervisor.load(model)).accepted
    await rig.more()
    before = len(rig.positions)
    report = await rig.supervisor.shadow(candidate, share, Terms())
    assert (report.accepted, report.reason) == (True, "")
    return before


async def end(rig: Rig) -> None:
    """End it, and wait until the worker has said all there is to say of it."""
    assert (await rig.supervisor.shadow(None, 0.0, Terms())).accepted
    assert not (await rig.supervisor.load(ModelFile("/none", "m", "v3"))).accepted


def test_it_runs_on_its_share_and_no_result_is_its_own(
    source: Configure, tolerant: ModelFile, strict: ModelFile
) -> None:
    async def scenario() -> None:
        async with running(source) as rig:
            begun = await begin(rig, tolerant, strict, 0.25)
            await rig.more(200)
            await end(rig)
            ended = len(rig.positions)
            figures = rig.supervisor.take_shadow()
            assert figures is not None
            assert (figures.agreed, figures.failed, figures.clipped) == (figures.samples, 0, 0)
            assert 200 / 4 - 1 <= figures.samples <= (ended - begun + 10) / 4 + 1
            assert figures.mean_ms > 0
            assert figures.latency_ms > 0
            assert rig.supervisor.take_shadow() is None
            await rig.more()
            assert (rig.versions, rig.lost_nothing(), rig.shadow_ends, rig.health) == (["v1"], True, [], [])
            assert mapped(pid(rig)) == {tolerant.path}

    asyncio.run(scenario())


def test_a_sample_that_it_cannot_do_is_counted(
    source: Configure, tolerant: ModelFile, strict: ModelFile, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with running(source) as rig:
            await begin(rig, tolerant, strict)
            call_for_the_special_one(tmp_path)
            await rig.until((tmp_path / "marker").read_text)
            await rig.more()
            await end(rig)
            figures = rig.supervisor.take_shadow()
            assert figures is not None
            assert (figures.failed, figures.samples - figures.agreed) == (1, 1)
            assert (rig.lost_nothing(), rig.shadow_ends) == (True, [])

    asyncio.run(scenario())


def test_it_goes_on_beside_another_model_and_in_another_worker(
    source: Configure, tolerant: ModelFile, strict: ModelFile
) -> None:
    third = msgspec.structs.replace(tolerant, version="v3")

    async def scenario() -> None:
        async with running(source) as rig:
            await begin(rig, tolerant, strict)
            assert (await rig.supervisor.load(third)).accepted
            await rig.more()
            assert await rig.supervisor.reconfigure(rig.replace(top_k=1), 10.0) is None
            await rig.until(lambda: rig.supervisor._shadows._expected == "again")
            await rig.more(30)
            await end(rig)
            figures = rig.supervisor.take_shadow()
            assert figures is not None
            assert figures.agreed == figures.samples >= 40
            assert (rig.shadow_ends, rig.health) == ([], [])

    asyncio.run(scenario())


def test_one_that_is_refused_changes_nothing(source: Configure, tolerant: ModelFile, tmp_path: Path) -> None:
    wide = written(tmp_path, "v2", Spec("x", (1, 2 * VALUES)), Spec("y", (1, 3)))

    async def scenario() -> None:
        async with running(source) as rig:
            report = await rig.supervisor.shadow(wide, 1.0, Terms())
            assert (report.accepted, report.permanent) == (False, False)
            assert report.reason == "no model is in use that it could run beside"
            assert (await rig.supervisor.load(tolerant)).accepted
            await rig.more()
            report = await rig.supervisor.shadow(wide, 1.0, Terms())
            assert (report.accepted, report.permanent) == (False, True)
            assert "the model takes 16 values" in report.reason
            await rig.more()
            assert (rig.supervisor.take_shadow(), rig.shadow_ends, rig.lost_nothing()) == (None, [], True)
            assert rig.supervisor.status.report is not None
            assert rig.supervisor.status.report.accepted

    asyncio.run(scenario())


def test_the_device_is_not_opened_for_it(source: Configure, tolerant: ModelFile, tmp_path: Path) -> None:
    compiled = on_device(tmp_path, "v2")

    async def scenario() -> None:
        async with running(source) as rig:
            assert (await rig.supervisor.load(tolerant)).accepted
            report = await rig.supervisor.shadow(compiled, 1.0, Terms())
            assert report.reason == "it needs an Edge TPU, and the model in use runs without it"
            with_twin = msgspec.structs.replace(compiled, cpu_path=tolerant.path)
            report = await rig.supervisor.shadow(with_twin, 1.0, Terms())
            assert (report.accepted, report.degraded) == (True, "the model in use runs without it")
            # This says nothing of the model in use.
            assert rig.recovery.degraded == ""
            assert rig.supervisor.status.report is not None
            assert rig.supervisor.status.report.degraded is None

    asyncio.run(scenario())


def test_one_with_a_memory_wants_all_samples(source: Configure, tolerant: ModelFile, tmp_path: Path) -> None:
    state = (Spec("state_in", (1, VALUES)), Spec("state_out", (1, VALUES)))
    (tmp_path / "v2.tflite").write_bytes(counter(ROW, [state]).bytes())
    candidate = ModelFile(str(tmp_path / "v2.tflite"), "m", "v2")

    async def scenario() -> None:
        async with running(source) as rig:
            assert (await rig.supervisor.load(tolerant)).accepted
            report = await rig.supervisor.shadow(candidate, 0.1, Terms())
            assert (report.accepted, report.remarks) == (
                True,
                ("it has a state, and sees only 0.1 of the samples: that it agrees or not says little",),
            )
            assert (await rig.supervisor.shadow(candidate, 1.0, Terms())).remarks == ()

    asyncio.run(scenario())


# ------------------------------------------------------------------------------------------ errors and deaths


@pytest.fixture
def poisoned(edgetpu: Use, monkeypatch: pytest.MonkeyPatch) -> None:
    """An Edge TPU on which just one of two models dies of the special sample: of 0.9 it makes 90."""
    monkeypatch.setenv("EDGETPU_STANDIN_POISON", str(VALUES * 90))


@pytest.mark.usefixtures("poisoned")
def test_a_worker_that_it_has_killed_comes_back_without_it(faulty_plugin: str, tmp_path: Path) -> None:
    model, deadly = on_device(tmp_path, "v1", 1 / 255), on_device(tmp_path, "v2", 1 / 100)
    source = settings("marked", marker=str(tmp_path / "marker"), values=VALUES, special=0.9)

    async def scenario() -> None:
        async with running(source) as rig:
            await begin(rig, model, deadly)
            await rig.more()
            call_for_the_special_one(tmp_path)
            await rig.until(lambda: rig.shadow_ends)
            # The result of that sample was handed over before.
            assert rig.positions[-1] == int((tmp_path / "marker").read_text())
            await rig.more()
            assert rig.shadow_ends[0].startswith("the worker died: killed by SIGABRT while ")
            assert "running the shadow" in rig.shadow_ends[0]
            # Neither the sample nor the device is to blame.
            assert (rig.lost_nothing(), rig.versions) == (True, ["v1"])
            assert (rig.supervisor.status.deaths, rig.recovery.counts.failures) == (1, 0)
            assert mapped(pid(rig)) == {model.path}

    asyncio.run(scenario())


def test_one_that_the_device_fails_ends_and_the_model_in_use_goes_on(
    source: Configure, tolerant: ModelFile, edgetpu: Use, tmp_path: Path
) -> None:
    in_use, candidate = on_device(tmp_path, "v0"), on_device(tmp_path, "v2")

    async def scenario() -> None:
        async with running(source) as rig:
            await begin(rig, in_use, candidate)
            # From one on the device to one on the CPU: the shadow is alone with the device.
            assert (await rig.supervisor.load(msgspec.structs.replace(tolerant, version="v3"))).accepted
            edgetpu("fail")
            await rig.until(lambda: rig.shadow_ends)
            await rig.more()
            assert rig.shadow_ends[0].startswith("edgetpu stand-in: ")
            assert (rig.lost_nothing(), rig.health) == (True, [])
            # It has nothing to come back to.
            assert rig.supervisor._shadows.running is None

    asyncio.run(scenario())


def test_after_a_kill_from_outside_it_is_not_brought_back(
    source: Configure, tolerant: ModelFile, strict: ModelFile
) -> None:
    async def scenario() -> None:
        async with running(source) as rig:
            await begin(rig, tolerant, strict)
            os.kill(pid(rig), signal.SIGKILL)
            await rig.until(lambda: rig.shadow_ends)
            await rig.more()
            assert "killed by SIGKILL" in rig.shadow_ends[0]
            assert (rig.lost_nothing(), mapped(pid(rig))) == (True, {tolerant.path})

    asyncio.run(scenario())


# ------------------------------------------------------------------------------------------ a real one


@pytest.mark.skipif(not SHARED.exists(), reason=f"{SHARED} is missing")
def test_real_classifiers_are_compared_by_what_they_see() -> None:
    picture = settings("images", path=str(SHARED / "cat.bmp"), rate=0.0, repeat=True, watch=False)
    version_2, version_1 = "mobilenet_v2_1.0_224_quant.tflite", "mobilenet_v1_0.25_128_quant.tflite"

    async def scenario() -> None:
        async with running(picture) as rig:
            assert (await rig.supervisor.load(ModelFile(str(SHARED / version_2), "m", "v2"))).accepted
            await rig.until(lambda: rig.batches)
            other = ModelFile(str(SHARED / version_1), "m", "v1")
            assert (await rig.supervisor.shadow(other, 1.0, Terms())).accepted
            await rig.until(lambda: len(rig.batches) >= 10)
            await end(rig)
            differ = rig.supervisor.take_shadow()
            assert differ is not None
            # One says Egyptian cat, the other tabby.
            assert (differ.agreed, differ.failed) == (0, 0)
            again = ModelFile(str(SHARED / version_2), "m", "v2b")
            assert (await rig.supervisor.shadow(again, 0.5, Terms())).accepted
            seen = len(rig.batches)
            await rig.until(lambda: len(rig.batches) >= seen + 10)
            await end(rig)
            same = rig.supervisor.take_shadow()
            assert same is not None
            assert same.agreed == same.samples > 0
            assert min(same.latency_ms, differ.latency_ms) > 0

    asyncio.run(scenario())
