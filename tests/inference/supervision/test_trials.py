"""A model on trial, in a real worker: when the one before it takes over again, and that nothing is lost by it."""

import asyncio
import os
import signal
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
from edge_agent.inference.protocol import Configure, ModelOptions, Reverted
from edge_agent.inference.runtime.runtimes import find_runtime
from edge_agent.inference.supervision import supervisor
from edge_agent.records import ModelFile, Terms
from tests.inference.conftest import Rig, running, settings
from tests.inference.supervision.trial_kit import (
    VALUES,
    call_for_the_special_one,
    mapped,
    on_device,
    pid,
    written,
)
from tests.inference.synthetic import Spec
from tests.standin import build as standin

TRIAL = Terms(trial=True)
NO_NUMBERS = "the model's output holds values that are no numbers"

Use = Callable[..., None]


@pytest.fixture(autouse=True)
def without_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing_wrong(model: ModelFile) -> None:
        """Stands for a look at the file in a process of its own, a second for each model."""

    monkeypatch.setattr(supervisor, "FIRST_DELAY", 0.02)
    monkeypatch.setattr(supervisor, "FIRST_WAIT", 0.02)
    monkeypatch.setattr(supervisor, "check_files", nothing_wrong)


@pytest.fixture
def source(faulty_plugin: str, tmp_path: Path) -> Configure:
    """Samples of eight values, among which one of infinities can be called for."""
    return settings("marked", marker=str(tmp_path / "marker"), values=VALUES)


@pytest.fixture
def tolerant(tmp_path: Path) -> ModelFile:
    """Version 1: its input is quantised, so it clips whatever comes."""
    return written(tmp_path, "v1", Spec("x", (1, VALUES), "uint8", 1 / 255), Spec("y", (1, 3)))


@pytest.fixture
def strict(tmp_path: Path) -> ModelFile:
    """Version 2: it cannot work on infinities."""
    return written(tmp_path, "v2", Spec("x", (1, VALUES)), Spec("y", (1, 3)))


@pytest.fixture
def edgetpu(edgetpu_standin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Use:
    """Sets the stand-in's mode for all workers, from now on; none is for the one that it began with."""
    state = tmp_path / "state"
    for name, value in standin.environment(edgetpu_standin, state=state).items():
        monkeypatch.setenv(name, value)

    def use(mode: str = "") -> None:
        if mode:
            (tmp_path / "new").write_text(mode)
            (tmp_path / "new").rename(state)
        else:
            state.unlink(missing_ok=True)

    return use


def version_of_the_special_one(rig: Rig, folder: Path) -> str:
    """Which model has worked on it."""
    position = (folder / "marker").read_text()
    [version] = [
        batch.model.version for batch in rig.batches for result in batch.results if result.position == position
    ]
    return version


async def begin_trial(rig: Rig, before: ModelFile, new: ModelFile) -> None:
    assert (await rig.supervisor.load(before)).accepted
    await rig.more()
    assert (await rig.supervisor.load(new, TRIAL)).accepted
    await rig.until(lambda: rig.batches[-1].model == new)


# ------------------------------------------------------------------------------------------ back and forth


def test_a_sample_that_only_the_model_before_can_do_is_not_lost_and_ends_the_trial(
    source: Configure, tolerant: ModelFile, strict: ModelFile, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with running(source) as rig:
            await begin_trial(rig, tolerant, strict)
            worker = pid(rig)
            call_for_the_special_one(tmp_path)
            await rig.until(lambda: rig.reverts)
            await rig.more()
            assert rig.reverts == [NO_NUMBERS]
            assert (rig.versions, version_of_the_special_one(rig, tmp_path)) == (["v1", "v2", "v1"], "v1")
            assert rig.lost_nothing()
            assert (rig.supervisor.status.failed, rig.supervisor.status.failure) == (0, "")
            assert rig.supervisor._loads.current == tolerant
            # It is an ordinary model again: another can be tried, and the way back was taken once.
            assert (await rig.supervisor.load(msgspec.structs.replace(strict, version="v3"), TRIAL)).accepted
            await rig.until(lambda: rig.versions[-1] == "v3")
            assert (rig.health, pid(rig)) == ([], worker)

    asyncio.run(scenario())


def test_a_sample_that_both_fail_on_says_nothing_of_either(
    source: Configure, strict: ModelFile, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with running(source) as rig:
            await begin_trial(rig, msgspec.structs.replace(strict, version="v1"), strict)
            call_for_the_special_one(tmp_path)
            await rig.until(lambda: rig.supervisor.status.failed)
            await rig.more()
            [failed] = [batch for batch in rig.batches if batch.failed]
            assert (failed.model.version, failed.failed, failed.failure) == ("v2", 1, NO_NUMBERS)
            assert (rig.reverts, rig.versions) == ([], ["v1", "v2"])
            missing = set(range(1, max(rig.positions))) - set(rig.positions)
            assert missing == {int((tmp_path / "marker").read_text())}

    asyncio.run(scenario())


def test_it_goes_back_when_it_is_told_to(
    source: Configure, tolerant: ModelFile, strict: ModelFile, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with running(source) as rig:
            await begin_trial(rig, tolerant, strict)
            worker = pid(rig)
            await rig.supervisor.revert("it is slower")
            assert rig.supervisor._loads.current == tolerant
            assert rig.supervisor.status.report == rig.supervisor._loads.in_use
            await rig.more()
            # Once is enough, and what is told is no news.
            await rig.supervisor.revert("it is slower")
            assert (rig.versions, rig.reverts, rig.lost_nothing()) == (["v1", "v2", "v1"], [], True)
            call_for_the_special_one(tmp_path)
            await rig.until((tmp_path / "marker").read_text)
            await rig.more()
            assert (rig.lost_nothing(), rig.health, pid(rig)) == (True, [], worker)

    asyncio.run(scenario())


def test_when_it_is_kept_there_is_no_way_back(
    source: Configure, tolerant: ModelFile, strict: ModelFile, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with running(source) as rig:
            await begin_trial(rig, tolerant, strict)
            rig.supervisor.keep()
            # The next answer comes after the order was obeyed.
            assert not (await rig.supervisor.load(ModelFile(str(tmp_path / "none"), "m", "v3"), TRIAL)).accepted
            call_for_the_special_one(tmp_path)
            await rig.until(lambda: rig.supervisor.status.failed)
            await rig.more()
            await rig.supervisor.revert("too late")
            assert (rig.versions, rig.reverts, rig.health) == (["v1", "v2"], [], [])
            assert len(mapped(pid(rig))) == 1

    asyncio.run(scenario())


async def hear_late(rig: Rig, monkeypatch: pytest.MonkeyPatch, folder: Path) -> Callable[[], None]:
    """Let the worker go back by itself; returns what lets the supervisor take note of it."""
    handle, gone_back = rig.supervisor._handle, asyncio.Event()
    late: list[Any] = []

    def hold(message: Any) -> None:
        late.append(message)
        if isinstance(message, Reverted):
            gone_back.set()

    def handle_late() -> None:
        monkeypatch.setattr(rig.supervisor, "_handle", handle)
        for message in late:
            handle(message)

    monkeypatch.setattr(rig.supervisor, "_handle", hold)
    call_for_the_special_one(folder)
    await asyncio.wait_for(gone_back.wait(), 60)
    return handle_late


def test_a_way_back_that_crosses_the_word_to_keep_is_told(
    source: Configure, tolerant: ModelFile, strict: ModelFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with running(source) as rig:
            await begin_trial(rig, tolerant, strict)
            handle_late = await hear_late(rig, monkeypatch, tmp_path)
            rig.supervisor.keep()
            handle_late()
            assert (rig.reverts, rig.supervisor._loads.current) == ([NO_NUMBERS], tolerant)
            await rig.more()
            assert (rig.versions, rig.lost_nothing(), rig.health) == (["v1", "v2", "v1"], True, [])

    asyncio.run(scenario())


def test_a_way_back_that_crosses_the_order_to_go_back_is_no_news(
    source: Configure, tolerant: ModelFile, strict: ModelFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with running(source) as rig:
            await begin_trial(rig, tolerant, strict)
            handle_late = await hear_late(rig, monkeypatch, tmp_path)
            going_back = asyncio.create_task(rig.supervisor.revert("it is worse"))
            await asyncio.sleep(0)
            handle_late()
            await asyncio.wait_for(going_back, 60)
            await rig.more()
            assert (rig.reverts, rig.versions, rig.lost_nothing()) == ([], ["v1", "v2", "v1"], True)

    asyncio.run(scenario())


# ------------------------------------------------------------------------------------------ deaths elsewhere


def test_a_worker_that_is_killed_from_outside_comes_back_with_the_trial(
    source: Configure, tolerant: ModelFile, strict: ModelFile, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with running(source) as rig:
            await begin_trial(rig, tolerant, strict)
            os.kill(pid(rig), signal.SIGKILL)
            await rig.until(lambda: rig.health)
            await rig.until(lambda: rig.supervisor._loads.spare is not None)
            assert (rig.reverts, rig.supervisor._loads.current) == ([], strict)
            call_for_the_special_one(tmp_path)
            await rig.until(lambda: rig.reverts)
            await rig.more()
            # The one before is ready again as well.
            assert (rig.versions, version_of_the_special_one(rig, tmp_path)) == (["v1", "v2", "v1"], "v1")
            assert (rig.lost_nothing(), rig.supervisor.status.deaths) == (True, 1)

    asyncio.run(scenario())


def test_after_a_second_kill_from_outside_the_model_before_is_memory_that_can_be_spared(
    source: Configure, tolerant: ModelFile, strict: ModelFile
) -> None:
    async def scenario() -> None:
        async with running(source) as rig:
            await begin_trial(rig, tolerant, strict)
            os.kill(pid(rig), signal.SIGKILL)
            await rig.until(lambda: rig.supervisor.status.deaths == 1)
            await rig.until(lambda: rig.supervisor._loads.spare is not None)
            os.kill(pid(rig), signal.SIGKILL)
            await rig.until(lambda: rig.supervisor.status.deaths == 2)
            await rig.more()
            assert not rig.supervisor._loads.spare_is_safe
            assert (rig.reverts, rig.versions, rig.supervisor._loads.before) == ([], ["v1", "v2"], tolerant)

    asyncio.run(scenario())


def test_a_worker_that_dies_over_the_source_comes_back_with_the_trial(
    faulty_plugin: str, demo_model: ModelFile, tmp_path: Path
) -> None:
    second = msgspec.structs.replace(demo_model, version="v2")

    async def scenario() -> None:
        options = {"at": 400, "total": 10**6, "what": "abort", "marker": str(tmp_path / "once"), "pause": 0.004}
        async with running(settings(faulty_plugin, **options)) as rig:
            # The model has nothing to do while the source dies.
            await begin_trial(rig, demo_model, second)
            await rig.until(lambda: rig.health)
            await rig.more()
            assert (rig.reverts, rig.versions) == ([], ["v1", "v2"])
            assert "reading the source" in rig.health[0][2]

    asyncio.run(scenario())


def test_a_trial_is_ended_while_there_is_no_worker(
    source: Configure, tolerant: ModelFile, strict: ModelFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "FIRST_DELAY", 60.0)

    async def scenario() -> None:
        async with running(source) as rig:
            await begin_trial(rig, tolerant, strict)
            os.kill(pid(rig), signal.SIGKILL)
            await rig.until(lambda: rig.health)
            await rig.supervisor.revert("it is worse")
            # The next one starts with the model before, and nobody waits for the delay.
            await rig.more()
            assert (rig.versions, rig.reverts, rig.lost_nothing()) == (["v1", "v2", "v1"], [], True)

    asyncio.run(scenario())


def test_without_the_model_before_at_hand_it_is_loaded_again(
    source: Configure, tolerant: ModelFile, strict: ModelFile
) -> None:
    async def scenario() -> None:
        async with running(source) as rig:
            await begin_trial(rig, tolerant, strict)
            rig.supervisor._loads.spare_is_safe = False
            os.kill(pid(rig), signal.SIGKILL)
            await rig.until(lambda: rig.health)
            await rig.more()
            assert rig.supervisor._loads.spare is None
            worker = pid(rig)
            await rig.supervisor.revert("it is worse")
            await rig.more()
            assert (rig.versions, rig.lost_nothing(), pid(rig)) == (["v1", "v2", "v1"], True, worker)

    asyncio.run(scenario())


# ------------------------------------------------------------------------------------------ golden samples


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


def spoil(path: Path) -> None:
    path.write_bytes(b"PK")


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


# ------------------------------------------------------------------------------------------ on the device


@pytest.mark.parametrize(
    ("mode", "told"),
    [("abort", "killed by SIGABRT while"), ("segv", "killed by SIGSEGV while"), ("hang", "hangs: running the model")],
)
def test_a_model_that_ends_the_worker_ends_its_trial(
    source: Configure, tolerant: ModelFile, edgetpu: Use, tmp_path: Path, *, mode: str, told: str
) -> None:
    compiled = on_device(tmp_path, "v2")

    async def scenario() -> None:
        async with running(source, deadline=1.0) as rig:
            await begin_trial(rig, tolerant, compiled)
            edgetpu(mode)
            await rig.until(lambda: rig.reverts)
            await rig.more()
            assert rig.reverts[0].startswith("the worker died: ")
            assert told in rig.reverts[0]
            assert (rig.versions, rig.lost_nothing()) == (["v1", "v2", "v1"], True)
            assert (rig.supervisor.status.deaths, rig.supervisor.status.set_aside) == (1, 0)
            # It is not the device's fault, which is not touched any more.
            assert rig.recovery.counts.failures == 0

    asyncio.run(scenario())


@pytest.mark.parametrize("mode", ["fail", "unplug"])
def test_where_the_device_fails_a_model_before_on_the_cpu_takes_over_at_once(
    source: Configure, tolerant: ModelFile, edgetpu: Use, tmp_path: Path, mode: str
) -> None:
    compiled = on_device(tmp_path, "v2")

    async def scenario() -> None:
        async with running(source) as rig:
            await begin_trial(rig, tolerant, compiled)
            edgetpu(mode)
            await rig.until(lambda: rig.reverts)
            await rig.more()
            assert rig.reverts[0].startswith("edgetpu stand-in: ")
            assert (rig.versions, rig.lost_nothing(), rig.health) == (["v1", "v2", "v1"], True, [])

    asyncio.run(scenario())


def test_a_device_that_is_unplugged_says_nothing_of_the_model_on_trial(
    source: Configure, edgetpu: Use, tmp_path: Path
) -> None:
    before, new = on_device(tmp_path, "v1"), on_device(tmp_path, "v2")

    async def scenario() -> None:
        async with running(source) as rig:
            await begin_trial(rig, before, new)
            edgetpu("unplug")
            await rig.until(lambda: rig.health)
            edgetpu()
            await rig.until(lambda: rig.supervisor._loads.spare is not None)
            await rig.more()
            assert (rig.reverts, rig.versions) == ([], ["v1", "v2"])
            assert rig.ends == [("exit status 70", rig.ends[0][1])]
            assert "running the model and the one before it, which both fail" in rig.ends[0][1]
            assert rig.recovery.counts.failures == 1

    asyncio.run(scenario())


def test_of_two_models_on_the_device_the_one_on_trial_is_poisoned(
    faulty_plugin: str, edgetpu: Use, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, new = on_device(tmp_path, "v1", 1 / 255), on_device(tmp_path, "v2", 1 / 100)
    # All eight values are 0.9, which is 90 hundredths.
    monkeypatch.setenv("EDGETPU_STANDIN_POISON", str(VALUES * 90))
    monkeypatch.setenv("EDGETPU_STANDIN_LOG", str(tmp_path / "log"))
    source = settings("marked", marker=str(tmp_path / "marker"), values=VALUES, special=0.9)

    async def scenario() -> None:
        async with running(source) as rig:
            await begin_trial(rig, before, new)
            call_for_the_special_one(tmp_path)
            await rig.until(lambda: rig.reverts)
            await rig.more()
            assert "killed by SIGABRT while" in rig.reverts[0]
            assert (rig.versions, version_of_the_special_one(rig, tmp_path)) == (["v1", "v2", "v1"], "v1")
            assert rig.lost_nothing()
            # There and back again in the worker: both are on the device all the time.
            assert (await rig.supervisor.load(new, TRIAL)).accepted
            await rig.more()
            await rig.supervisor.revert("it is worse")
            await rig.more()
            assert rig.lost_nothing()
            assert {batch.report.accelerator for batch in rig.batches} == {"edgetpu"}
        closed = [line for line in standin.read_log(tmp_path / "log") if line["event"] == "destroy"]
        assert len(closed) == 2
        assert {line["kernels"] for line in closed} == {0}

    asyncio.run(scenario())


def test_a_model_on_trial_that_cannot_be_brought_back_is_given_up(
    source: Configure, tolerant: ModelFile, edgetpu: Use, tmp_path: Path
) -> None:
    compiled = on_device(tmp_path, "v2")

    async def scenario() -> None:
        async with running(source) as rig:
            await begin_trial(rig, tolerant, compiled)
            os.kill(pid(rig), signal.SIGKILL)
            edgetpu("abort")
            await rig.until(lambda: rig.reverts)
            await rig.more()
            assert "while loading a model" in rig.reverts[0]
            assert (rig.versions, rig.lost_nothing()) == (["v1", "v2", "v1"], True)
            # Once from outside, and three times over it.
            assert rig.supervisor.status.deaths == 4

    asyncio.run(scenario())
