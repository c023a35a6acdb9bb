"""A model on trial, in a real worker: when the one before it takes over again, and that nothing is lost by it."""

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge_agent.inference.protocol import Configure, Reverted
from edge_agent.inference.supervision import supervisor
from edge_agent.records import ModelFile, Terms
from tests.inference.conftest import Rig, running, settings
from tests.inference.supervision.trial_kit import (
    VALUES,
    Use,
    call_for_the_special_one,
    mapped,
    on_device,
    pid,
)
from tests.standin import build as standin

TRIAL = Terms(trial=True)
NO_NUMBERS = "the model's output holds values that are no numbers"

pytestmark = pytest.mark.usefixtures("quick")


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
        options = {"at": 0, "total": 10**6, "what": "abort", "call": str(tmp_path / "now"), "pause": 0.004}
        async with running(settings(faulty_plugin, **options)) as rig:
            await begin_trial(rig, demo_model, second)
            # The model has nothing to do while the source dies.
            (tmp_path / "now").touch()
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
        async with running(source, deadline=1.0 if mode == "hang" else 10.0) as rig:
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
