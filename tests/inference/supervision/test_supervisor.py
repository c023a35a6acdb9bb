"""A real worker process under every kind of bad luck."""

import asyncio
import os
import signal
from pathlib import Path

import msgspec
import pytest

from edge_agent.inference.accelerators.recovery import Recovery
from edge_agent.inference.protocol import Configure
from edge_agent.inference.supervision import hangs, supervisor
from edge_agent.inference.supervision.connection import Connection
from edge_agent.inference.supervision.guard import Plan
from edge_agent.records import LoadReport, ModelFile
from tests.inference.conftest import running, settings
from tests.inference.supervision.trial_kit import VALUES, written
from tests.inference.synthetic import Spec


def test_samples_become_results_of_the_loaded_model(demo_model: ModelFile) -> None:
    async def scenario() -> None:
        async with running(settings(rate=0, seed=1)) as rig:
            report = await rig.supervisor.load(demo_model)
            assert (report.accepted, report.accelerator, report.degraded) == (True, "cpu", None)
            await rig.until(lambda: len(rig.positions) >= 500)
        results = [result for batch in rig.batches for result in batch.results]
        # The simulated machine starts healthy.
        assert {result.scores[0].label for result in results[:150]} == {"normal"}
        assert all(len(result.scores) == 3 and result.inference_ns > 0 for result in results)
        assert [each.captured_ns for each in results] == sorted(each.captured_ns for each in results)
        assert rig.supervisor.status.state == "stopped"
        assert rig.health == []

    asyncio.run(scenario())


def test_a_swap_loses_no_sample_and_every_batch_names_its_model(
    faulty_plugin: str, demo_model: ModelFile, tmp_path: Path
) -> None:
    second = msgspec.structs.replace(demo_model, version="v2")

    async def scenario() -> None:
        async with running(settings(faulty_plugin, at=0, total=10**6, pause=0.0005)) as rig:
            assert (await rig.supervisor.load(demo_model)).accepted
            await rig.until(lambda: len(rig.positions) > 100)
            assert (await rig.supervisor.load(second)).accepted
            seen = len(rig.positions)
            await rig.until(lambda: len(rig.positions) > seen + 100)
        assert rig.positions == list(range(1, len(rig.positions) + 1))
        versions = [batch.model.version for batch in rig.batches]
        assert versions == sorted(versions)
        assert set(versions) == {"v1", "v2"}

    asyncio.run(scenario())


def test_a_refused_model_leaves_the_old_one_running(demo_model: ModelFile, tmp_path: Path) -> None:
    rubbish = tmp_path / "rubbish.tflite"
    rubbish.write_bytes(b"not a model" * 100)
    truncated = tmp_path / "truncated.tflite"
    truncated.write_bytes(Path(demo_model.path).read_bytes()[:5000])
    badly_labelled = msgspec.structs.replace(demo_model, labels=["a", "b"])

    async def scenario() -> None:
        async with running(settings(rate=0)) as rig:
            assert (await rig.supervisor.load(demo_model)).accepted
            for file in (rubbish, truncated):
                report = await rig.supervisor.load(ModelFile(str(file), "vibration", "v2"))
                assert not report.accepted
                assert report.permanent
                assert report.reason == "is no TensorFlow Lite model, or is cut short"
            report = await rig.supervisor.load(badly_labelled)
            assert (report.accepted, report.permanent) == (False, True)
            assert report.reason == "2 labels, but the model has 3 outputs; is the first label, 'background', missing?"
            report = await rig.supervisor.load(ModelFile(str(tmp_path / "none.tflite"), "vibration", "v2"))
            assert not report.accepted
            seen = len(rig.batches)
            await rig.until(lambda: len(rig.batches) > seen + 3)
            assert {batch.model.version for batch in rig.batches} == {"v1"}
            assert rig.supervisor.status.deaths == 0

    asyncio.run(scenario())


def test_a_model_for_other_inputs_is_refused_with_the_reason(faulty_plugin: str, demo_model: ModelFile) -> None:
    async def scenario() -> None:
        async with running(settings(faulty_plugin, at=0, total=10**6, values=64, pause=0.001)) as rig:
            assert (await rig.supervisor.load(demo_model)).accepted  # no sample is known yet
            await rig.until(lambda: any(batch.failed for batch in rig.batches))
            reason = "the model takes 128 values (uint8 of shape 1x128), the source gives 64"
            assert next(batch.failure for batch in rig.batches if batch.failed) == reason
            report = await rig.supervisor.load(msgspec.structs.replace(demo_model, version="v2"))
            assert (report.accepted, report.permanent, report.reason) == (False, True, reason)

    asyncio.run(scenario())


def test_a_sample_that_no_model_could_work_on_refuses_none(faulty_plugin: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        (tmp_path / "marker").write_text("20")  # the last sample: infinities
        source = settings("marked", marker=str(tmp_path / "marker"), values=VALUES, total=20)
        strict = written(tmp_path, "v1", Spec("x", (1, VALUES)), Spec("y", (1, 3)))
        async with running(source) as rig:
            assert (await rig.supervisor.load(strict)).accepted
            await asyncio.wait_for(rig.supervisor.source_ended.wait(), 60)
            assert sum(batch.failed for batch in rig.batches) == 1
            report = await rig.supervisor.load(msgspec.structs.replace(strict, version="v2"))
            assert (report.accepted, report.reason) == (True, "")

    asyncio.run(scenario())


def test_a_worker_that_aborts_comes_back_where_it_was(
    faulty_plugin: str, demo_model: ModelFile, tmp_path: Path
) -> None:
    async def scenario() -> None:
        options = {"at": 50, "total": 200, "what": "abort", "marker": str(tmp_path / "marker")}
        async with running(settings(faulty_plugin, **options)) as rig:
            assert (await rig.supervisor.load(demo_model)).accepted
            await asyncio.wait_for(rig.supervisor.source_ended.wait(), 60)
        assert sorted(set(rig.positions)) == list(range(1, 201))
        [(component, state, detail)] = rig.health
        assert (component, state) == ("worker", "died")
        assert "killed by SIGABRT while" in detail
        assert "reading the source" in detail
        assert "USB transfer error" in detail

    asyncio.run(scenario())


def test_a_worker_that_is_killed_comes_back(faulty_plugin: str, demo_model: ModelFile) -> None:
    async def scenario() -> None:
        async with running(settings(faulty_plugin, at=0, total=10**6, pause=0.001)) as rig:
            assert (await rig.supervisor.load(demo_model)).accepted
            await rig.until(lambda: len(rig.positions) > 50)
            connection = rig.supervisor._connection
            assert connection is not None
            os.kill(connection._process.pid, signal.SIGKILL)
            await rig.until(lambda: rig.health)
            seen = len(rig.positions)
            await rig.until(lambda: len(rig.positions) > seen + 50)
            assert rig.positions == list(range(1, len(rig.positions) + 1))
            assert "killed by SIGKILL" in rig.supervisor.status.last_death

    asyncio.run(scenario())


@pytest.mark.parametrize("what", ["hang", "hang_with_lock"])
def test_a_source_that_hangs_is_noticed_and_killed(
    faulty_plugin: str, demo_model: ModelFile, tmp_path: Path, what: str
) -> None:
    async def scenario() -> None:
        options = {"at": 20, "total": 100, "what": what, "marker": str(tmp_path / "marker")}
        async with running(settings(faulty_plugin, **options), deadline=1.0) as rig:
            assert (await rig.supervisor.load(demo_model)).accepted
            await asyncio.wait_for(rig.supervisor.source_ended.wait(), 60)
        assert sorted(set(rig.positions)) == list(range(1, 101))
        assert "hangs: reading the source for" in rig.health[0][2]

    asyncio.run(scenario())


def test_a_source_that_hangs_as_it_is_closed_is_noticed_and_killed(
    faulty_plugin: str, demo_model: ModelFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hangs, "SHUT_DEADLINE", 0.5)

    async def scenario() -> None:
        options = {"at": 20, "total": 100, "what": "close_hangs", "marker": str(tmp_path / "marker")}
        async with running(settings(faulty_plugin, **options), deadline=1.0) as rig:
            assert (await rig.supervisor.load(demo_model)).accepted
            await asyncio.wait_for(rig.supervisor.source_ended.wait(), 60)
        assert sorted(set(rig.positions)) == list(range(1, 101))
        assert "hangs: closing the source for" in rig.health[1][2]

    asyncio.run(scenario())


def test_a_source_that_cannot_be_closed_is_in_trouble(
    faulty_plugin: str, demo_model: ModelFile, tmp_path: Path
) -> None:
    async def scenario() -> None:
        options = {"at": 20, "total": 100, "what": "close_fails", "marker": str(tmp_path / "marker")}
        async with running(settings(faulty_plugin, **options)) as rig:
            assert (await rig.supervisor.load(demo_model)).accepted
            await asyncio.wait_for(rig.supervisor.source_ended.wait(), 60)
        assert sorted(set(rig.positions)) == list(range(1, 101))
        assert "the plugin raised KeyError as it was closed: 'closed badly'" in [detail for _, _, detail in rig.health]
        assert rig.supervisor.status.deaths == 0

    asyncio.run(scenario())


def test_a_source_in_trouble_is_opened_again(faulty_plugin: str, demo_model: ModelFile, tmp_path: Path) -> None:
    async def scenario() -> None:
        for what, reason in (("trouble", "the cable is loose; plug it in"), ("bug", "the plugin raised KeyError")):
            options = {"at": 20, "total": 100, "what": what, "marker": str(tmp_path / what)}
            async with running(settings(faulty_plugin, **options)) as rig:
                assert (await rig.supervisor.load(demo_model)).accepted
                await asyncio.wait_for(rig.supervisor.source_ended.wait(), 60)
            assert rig.health[0][:2] == ("source", "trouble")
            assert reason in rig.health[0][2]
            assert rig.supervisor.status.deaths == 0
            assert rig.supervisor.status.source == "ended: all samples were read"

    asyncio.run(scenario())


def test_new_settings_start_a_new_worker_with_the_same_model(faulty_plugin: str, demo_model: ModelFile) -> None:
    async def scenario() -> None:
        async with running(settings(faulty_plugin, at=0, total=10**6, pause=0.001)) as rig:
            assert (await rig.supervisor.load(demo_model)).accepted
            await rig.until(lambda: len(rig.positions) > 20)
            assert await rig.supervisor.reconfigure(rig.replace(top_k=1), 10.0) is None
            await rig.until(lambda: len(rig.batches[-1].results[0].scores) == 1)
            assert rig.positions == list(range(1, len(rig.positions) + 1))
            refused = await rig.supervisor.reconfigure(rig.replace(labels=["a"]), 10.0)
            assert refused is None  # the model brings its own labels
            assert rig.health == []

    asyncio.run(scenario())


def test_settings_that_the_model_does_not_fit_are_taken_back(faulty_plugin: str, demo_model: ModelFile) -> None:
    unlabelled = msgspec.structs.replace(demo_model, labels=None)

    async def scenario() -> None:
        async with running(settings(faulty_plugin, at=0, total=10**6, pause=0.001)) as rig:
            assert (await rig.supervisor.load(unlabelled)).accepted
            reason = await rig.supervisor.reconfigure(rig.replace(labels=["a"]), 10.0)
            assert reason is not None
            assert "1 labels, but the model has 3 outputs" in reason
            seen = len(rig.positions)
            await rig.until(lambda: len(rig.positions) > seen + 20)

    asyncio.run(scenario())


def test_a_worker_that_cannot_be_started_is_tried_again(demo_model: ModelFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "FIRST_DELAY", 0.02)
    start, failures = Connection.open, [BlockingIOError(11, "Resource temporarily unavailable")] * 2

    async def open_at_the_third_try() -> Connection:
        if failures:
            raise failures.pop()
        return await start()

    monkeypatch.setattr(Connection, "open", open_at_the_third_try)

    async def scenario() -> None:
        async with running(settings(rate=0)) as rig:
            assert (await rig.supervisor.load(demo_model)).accepted
            assert [each[:2] for each in rig.health] == [("worker", "died")] * 2
            assert "it cannot be started: [Errno 11] Resource temporarily unavailable" in rig.health[0][2]

    asyncio.run(scenario())


def test_only_a_worker_with_the_new_settings_decides_on_them(demo_model: ModelFile) -> None:
    async def scenario() -> None:
        async with running(settings(rate=0)) as rig:
            assert (await rig.supervisor.load(msgspec.structs.replace(demo_model, labels=None))).accepted
            changing = asyncio.create_task(rig.supervisor.reconfigure(rig.replace(labels=["a"]), 10.0))
            # The worker before it takes another model at this very moment.
            await asyncio.sleep(0)
            rig.supervisor._verdict.give(None)
            reason = await changing
            assert reason is not None
            assert "1 labels, but the model has 3 outputs" in reason

    asyncio.run(scenario())


def test_a_worker_that_was_stopped_is_noticed_when_it_owes_an_answer(
    faulty_plugin: str, demo_model: ModelFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "FIRST_DELAY", 0.02)

    async def scenario() -> None:
        async with running(settings(faulty_plugin, at=0, total=5), deadline=1.0) as rig:
            assert (await rig.supervisor.load(demo_model)).accepted
            await asyncio.wait_for(rig.supervisor.source_ended.wait(), 60)
            pid = rig.supervisor.worker_pid
            assert pid is not None
            os.kill(pid, signal.SIGSTOP)
            # Not for the workers before and after it, which may only be slow.
            with monkeypatch.context() as impatient:
                impatient.setattr(hangs, "ANSWER_DEADLINE", 0.3)
                report = await rig.supervisor.load(msgspec.structs.replace(demo_model, version="v2"))
            assert (report.accepted, report.permanent) == (False, False)
            assert "hangs: asked for a model" in rig.supervisor.status.last_death
            monkeypatch.setattr(hangs, "ANSWER_DEADLINE", 30.0)
            assert (await rig.supervisor.load(msgspec.structs.replace(demo_model, version="v2"))).accepted

    asyncio.run(scenario())


def test_another_model_waits_until_the_one_in_use_is_back(
    demo_model: ModelFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened: list[str] = []
    plan, loaded = Recovery.plan, Recovery.loaded

    async def note_plan(guard: Recovery, model: ModelFile, wanted: Configure, *, device_open: bool) -> Plan:
        happened.append(f"plan {model.version}")
        return await plan(guard, model, wanted, device_open=device_open)

    def note_loaded(guard: Recovery, by: Plan, report: LoadReport) -> None:
        happened.append("loaded")
        loaded(guard, by, report)

    monkeypatch.setattr(Recovery, "plan", note_plan)
    monkeypatch.setattr(Recovery, "loaded", note_loaded)

    async def scenario() -> None:
        async with running(settings(rate=0)) as rig:
            assert (await rig.supervisor.load(demo_model)).accepted
            pid = rig.supervisor.worker_pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            await rig.until(lambda: rig.health)
            second = msgspec.structs.replace(demo_model, version="v2")
            assert (await rig.supervisor.load(second)).accepted
            # Nothing is probed or reset for it while the worker opens the device for the first.
            assert happened == ["plan v1", "loaded", "plan v1", "loaded", "plan v2", "loaded"]
            await rig.until(lambda: rig.batches and rig.batches[-1].model.version == "v2")
            assert rig.supervisor.status.deaths == 1

    asyncio.run(scenario())
