"""The way to the Edge TPU, with a real worker and the stand-in for its driver (`tests/standin/edgetpu_standin.c`)."""

import asyncio
import ctypes.util
import os
import signal
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

from edge_agent.inference.accelerators import recovery
from edge_agent.inference.accelerators.devices import GET_LIBRARY, explain_failure, list_devices
from edge_agent.inference.progress import Stage, Track
from edge_agent.inference.supervision import hangs, loads, supervisor, waiting
from edge_agent.inference.supervision.connection import Connection
from edge_agent.records import ModelFile
from tests.inference.conftest import DEMO_MODEL, ROOT, Rig, running, settings, with_model
from tests.standin import build, models

LABELS = ["normal", "warning", "failure"]
CORAL_MODELS = ROOT.parent / "shared" / "models"
# As the source `faulty` gives them: an endless supply, one every few milliseconds.
ENDLESS = {"at": 0, "total": 10**6, "pause": 0.002}
FAILED = "edgetpu stand-in: this invoke failsNode number 1 (EdgeTpuDelegateForCustomOp) failed to invoke."

Use = Callable[..., None]


@pytest.fixture
def edgetpu(edgetpu_standin: Path, monkeypatch: pytest.MonkeyPatch) -> Use:
    """Set the stand-in's mode for all workers that are started from now on. They are started again without delay."""
    monkeypatch.setattr(supervisor, "FIRST_DELAY", 0.02)
    monkeypatch.setattr(waiting, "FIRST_WAIT", 0.02)

    def use(mode: str = "ok", *, after: int = 0, delay_ms: int = 100) -> None:
        for name, value in build.environment(edgetpu_standin, mode, after=after, delay_ms=delay_ms).items():
            monkeypatch.setenv(name, value)

    use()
    return use


@pytest.fixture
def compiled(tmp_path: Path) -> ModelFile:
    """The demo model as the Edge TPU compiler would leave it."""
    path = tmp_path / "vibration_edgetpu.tflite"
    path.write_bytes(models.edgetpu_model(DEMO_MODEL.read_bytes()))
    return ModelFile(str(path), "vibration", "v1", LABELS)


def connection(rig: Rig) -> Connection:
    assert rig.supervisor._connection is not None
    return rig.supervisor._connection


def refusal(wanted: str = "") -> str:
    """What is said where the driver finds no device, whatever this machine has."""
    failed = ValueError("Failed to load delegate from libedgetpu.so.1")
    return f"it needs an Edge TPU, and {explain_failure(failed, wanted, list_devices())}"


async def more(rig: Rig, count: int) -> None:
    """Wait for more than so many further results."""
    wanted = len(rig.positions) + count
    await rig.until(lambda: len(rig.positions) > wanted)


def every_position_once(rig: Rig, count: int) -> bool:
    return rig.positions == list(range(1, count + 1))


# ------------------------------------------------------------------------------------------ it runs


@pytest.mark.parametrize("accelerator", ["auto", "edgetpu"])
def test_a_compiled_model_runs_on_the_edge_tpu(
    edgetpu: Use, compiled: ModelFile, tmp_path: Path, accelerator: str
) -> None:
    samples = np.random.default_rng(3).uniform(0, 3, (12, 128)).astype(np.float32)
    np.save(tmp_path / "samples.npy", samples)
    interpreter = Interpreter(model_path=str(DEMO_MODEL))
    scale, zero_point = interpreter.get_input_details()[0]["quantization"]
    quantized = np.clip(np.rint(samples / scale + zero_point), 0, 255).astype(int)
    expected = [int(row.sum()) % 3 for row in quantized]
    scale, zero_point = interpreter.get_output_details()[0]["quantization"]
    highest, lowest = pytest.approx(scale * (255 - zero_point)), pytest.approx(scale * -zero_point)

    async def scenario() -> None:
        source = settings("recording", path=str(tmp_path / "samples.npy"), rate=0, repeat=False)
        async with running(with_model(source, accelerator=accelerator)) as rig:
            report = await rig.supervisor.load(compiled)
            assert (report.accepted, report.accelerator, report.degraded) == (True, "edgetpu", None)
            assert "input uint8 of shape 1x128, 3 classes" in report.detail
            await asyncio.wait_for(rig.supervisor.source_ended.wait(), 60)
            worker = connection(rig)._process
        results = [result for batch in rig.batches for result in batch.results]
        assert [result.scores[0].index for result in results] == expected
        assert set(expected) == {0, 1, 2}
        for result in results:
            assert result.scores[0].label == LABELS[result.scores[0].index]
            assert [score.score for score in result.scores] == [highest, lowest, lowest]
        assert {batch.report.accelerator for batch in rig.batches} == {"edgetpu"}
        assert rig.health == []
        # It closed the device and left by itself.
        assert worker.returncode == 0

    asyncio.run(scenario())


def test_images_run_on_a_real_compiled_model(edgetpu: Use) -> None:
    path = CORAL_MODELS / "mobilenet_v1_0.25_128_quant_edgetpu.tflite"
    picture = CORAL_MODELS / "cat.bmp"
    for file in (path, picture):
        if not file.exists():
            pytest.skip(f"{file.name} is not in {CORAL_MODELS}")
    from PIL import Image  # noqa: PLC0415  as the worker does it

    pixels = np.asarray(Image.open(picture).convert("RGB").resize((128, 128), Image.Resampling.NEAREST))
    expected = int(pixels.sum(dtype=np.int64)) % 1001

    async def scenario() -> None:
        async with running(settings("images", path=str(picture), rate=0, repeat=False, watch=False)) as rig:
            report = await rig.supervisor.load(ModelFile(str(path), "mobilenet", "v1"))
            assert (report.accepted, report.accelerator) == (True, "edgetpu")
            await asyncio.wait_for(rig.supervisor.source_ended.wait(), 60)
        [result] = [result for batch in rig.batches for result in batch.results]
        assert result.scores[0].index == expected

    asyncio.run(scenario())


# ------------------------------------------------------------------------------------------ it is refused


def test_the_device_that_was_asked_for_is_opened_or_named(edgetpu: Use, compiled: ModelFile) -> None:
    async def scenario() -> None:
        for device, exists in (("usb:0", True), ("pci", True), ("usb:1", False), ("pci:7", False)):
            async with running(with_model(settings(rate=0), device=device)) as rig:
                report = await rig.supervisor.load(compiled)
                assert report.accepted is exists, device
                assert report.reason == ("" if exists else refusal(device))
                assert not report.permanent

    asyncio.run(scenario())


@pytest.mark.parametrize("accelerator", ["auto", "edgetpu"])
def test_without_a_device_the_model_waits(edgetpu: Use, compiled: ModelFile, accelerator: str) -> None:
    edgetpu("absent")

    async def scenario() -> None:
        async with running(with_model(settings(rate=0), accelerator=accelerator)) as rig:
            report = await rig.supervisor.load(compiled)
            assert (report.accepted, report.permanent, report.reason) == (False, False, refusal())
            assert rig.supervisor.status.state == "ready"
            assert rig.supervisor.status.deaths == 0

    asyncio.run(scenario())


@pytest.mark.skipif(ctypes.util.find_library("edgetpu") is not None, reason="libedgetpu is installed here")
def test_without_the_library_it_is_said_what_to_install(compiled: ModelFile) -> None:
    async def scenario() -> None:
        async with running(settings(rate=0)) as rig:
            report = await rig.supervisor.load(compiled)
            missing = "libedgetpu.so.1: cannot open shared object file: No such file or directory"
            assert (report.accepted, report.permanent) == (False, False)
            assert report.reason == (
                f"it needs an Edge TPU, and the Edge TPU's library cannot be loaded ({missing}); {GET_LIBRARY}"
            )

    asyncio.run(scenario())


def test_what_the_settings_forbid_is_refused_with_what_to_do(
    edgetpu: Use, compiled: ModelFile, demo_model: ModelFile
) -> None:
    cases = (
        (
            "cpu",
            compiled,
            (
                "it is compiled for the Edge TPU, but [inference].accelerator is 'cpu'; "
                "publish the model as it was before the Edge TPU compiler"
            ),
        ),
        (
            "edgetpu",
            demo_model,
            "the model is not compiled for the Edge TPU (edgetpu_compiler), but [inference].accelerator is 'edgetpu'",
        ),
    )

    async def scenario() -> None:
        for accelerator, model, reason in cases:
            async with running(with_model(settings(rate=0), accelerator=accelerator)) as rig:
                report = await rig.supervisor.load(model)
                assert (report.accepted, report.permanent, report.reason) == (False, False, reason)

    asyncio.run(scenario())


@pytest.mark.parametrize("mode", ["fail", "unplug"])
def test_a_model_that_the_device_fails_on_is_not_refused_for_good(edgetpu: Use, compiled: ModelFile, mode: str) -> None:
    edgetpu(mode)

    async def scenario() -> None:
        async with running(settings(rate=0)) as rig:
            report = await rig.supervisor.load(compiled)
            assert (report.accepted, report.permanent) == (False, False)
            assert report.reason.startswith("the runtime cannot run it: edgetpu stand-in: ")
            # The same process can go on: with the next model, or with this one once the device is well.
            report = await rig.supervisor.load(ModelFile(str(DEMO_MODEL), "vibration", "v2", LABELS))
            assert report.accepted
            assert rig.supervisor.status.deaths == 0

    asyncio.run(scenario())


def test_a_model_with_an_operation_that_the_runtime_does_not_know_is_no_fault_of_the_device(
    edgetpu: Use, tmp_path: Path
) -> None:
    path = tmp_path / "vibration_edgetpu.tflite"
    path.write_bytes(models.edgetpu_model(DEMO_MODEL.read_bytes(), then=b"TransposeBias"))

    async def scenario() -> None:
        async with running(settings(rate=0)) as rig:
            report = await rig.supervisor.load(ModelFile(str(path), "vibration", "v1", LABELS))
            assert (report.accepted, report.permanent, report.about_device) == (False, False, False)
            told = "the runtime cannot run it: Encountered unresolved custom op: TransposeBias."
            assert report.reason.startswith(told)
            assert rig.recovery.degraded == ""

    asyncio.run(scenario())


def test_a_worker_that_dies_over_a_model_is_no_proof_against_it_until_the_third_time(
    edgetpu: Use, compiled: ModelFile, demo_model: ModelFile
) -> None:
    edgetpu("abort")

    async def scenario() -> None:
        async with running(settings(rate=0)) as rig:
            assert (await rig.supervisor.load(demo_model)).accepted
            reports = [await rig.supervisor.load(compiled) for _ in range(loads.MAX_LOAD_DEATHS)]
            assert [report.permanent for report in reports] == [False, False, True]
            for report in reports:
                assert report.reason.startswith("the worker died while loading it: killed by SIGABRT while loading")
                assert "aborts, as the driver does on a USB fault" in report.reason

    asyncio.run(scenario())


def test_a_device_that_kills_the_worker_over_the_first_model_is_left_alone_and_the_model_waits(
    edgetpu: Use, compiled: ModelFile
) -> None:
    edgetpu("abort")

    async def scenario() -> None:
        async with running(settings(rate=0)) as rig:
            reports = [await rig.supervisor.load(compiled) for _ in range(recovery.GIVE_UP_AFTER)]
            assert [report.permanent for report in reports] == [False, False, False]
            deaths = rig.supervisor.status.deaths
            report = await rig.supervisor.load(compiled)
            assert (report.accepted, report.permanent) == (False, False)
            told = "it needs an Edge TPU, and the Edge TPU fails again and again: unplug it and plug it in again"
            assert report.reason.startswith(told)
            assert [f"it needs an Edge TPU, and {alarm}" for alarm in rig.alarms] == [report.reason]
            assert ("accelerator", "stuck", rig.alarms[0]) in rig.health
            # It is not touched now, so nobody dies of it.
            assert rig.supervisor.status.deaths == deaths == recovery.GIVE_UP_AFTER
            edgetpu("ok")
            rig.ahead = recovery.FIRST_PAUSE
            # The worker at hand was started while the device was in trouble.
            os.kill(connection(rig)._process.pid, signal.SIGKILL)
            await rig.until(lambda: rig.supervisor.status.deaths > deaths)
            assert (await rig.supervisor.load(compiled)).accepted

    asyncio.run(scenario())


# ------------------------------------------------------------------------------------------ it goes wrong


@pytest.mark.parametrize(
    ("mode", "told"),
    [
        ("abort", ["killed by SIGABRT while", "running the model", "aborts, as the driver does on a USB fault"]),
        ("segv", ["killed by SIGSEGV while", "running the model"]),
        ("hang", ["hangs: running the model for"]),
        ("fail", ["exit status 70 while", "running the model", f"the model failed 5 times in a row: {FAILED}"]),
        ("unplug", ["exit status 70 while", "running the model", "the device was unplugged"]),
    ],
)
def test_the_worker_comes_back_from_a_broken_device(
    edgetpu: Use, faulty_plugin: str, compiled: ModelFile, mode: str, told: list[str]
) -> None:
    edgetpu(mode, after=31)  # one to warm up, then thirty good ones in each life of the worker

    async def scenario() -> None:
        # Slow enough that each result is handed over before the next sample is worked on.
        source = settings(faulty_plugin, at=0, total=50, pause=0.015)
        async with running(source, deadline=1.0 if mode == "hang" else 10.0) as rig:
            assert (await rig.supervisor.load(compiled)).accepted
            await asyncio.wait_for(rig.supervisor.source_ended.wait(), 60)
        assert every_position_once(rig, 50)
        assert rig.supervisor.status.deaths == 1
        [(component, state, detail)] = rig.health
        assert (component, state) == ("worker", "died")
        assert [words for words in told if words not in detail] == []
        assert "Traceback" not in detail

    asyncio.run(scenario())


def test_failures_of_the_device_are_counted_each_with_its_own_reason(
    edgetpu: Use, faulty_plugin: str, compiled: ModelFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edgetpu("fail", after=6)
    monkeypatch.setenv("EDGETPU_STANDIN_LOG", str(tmp_path / "log"))

    async def scenario() -> None:
        async with running(settings(faulty_plugin, at=0, total=100, pause=0.02)) as rig:
            assert (await rig.supervisor.load(compiled)).accepted
            await rig.until(lambda: rig.health)
        failures = [batch for batch in rig.batches if batch.failed]
        assert sum(batch.failed for batch in failures) == 5
        # The runtime's own text names every failure since the interpreter was made.
        assert {batch.failure for batch in failures} == {FAILED}
        # And the device was given up in order: the interpreter first.
        happened = build.read_log(tmp_path / "log")
        first = [line for line in happened if line["pid"] == happened[0]["pid"]]
        assert [line["event"] for line in first] == ["create", *["fail"] * 5, "release", "destroy"]
        assert first[-1]["kernels"] == 0

    asyncio.run(scenario())


def test_a_device_that_is_away_for_a_while_is_waited_for(edgetpu: Use, faulty_plugin: str, compiled: ModelFile) -> None:
    edgetpu("unplug", after=31)

    async def scenario() -> None:
        async with running(settings(faulty_plugin, **ENDLESS)) as rig:
            assert (await rig.supervisor.load(compiled)).accepted
            edgetpu("absent")
            await rig.until(lambda: len(rig.health) == 2)
            assert rig.health[1] == ("worker", "waiting", refusal())
            assert (rig.supervisor.status.state, rig.supervisor.status.waiting) == ("waiting", refusal())
            assert rig.supervisor.making_progress
            assert rig.recovery.degraded == refusal()
            # However often it is tried, no worker dies of it, and nobody is told twice.
            workers: set[int | None] = {None}
            async with asyncio.timeout(60):
                while len(workers) < 4:
                    workers.add(rig.supervisor.worker_pid)
                    await asyncio.sleep(0.01)
            edgetpu("ok")
            await rig.until(lambda: len(rig.positions) > 60)
            assert every_position_once(rig, len(rig.positions))
            assert rig.supervisor.status.deaths == 1
            assert rig.supervisor.status.waiting == ""
            assert rig.health[2:] == [("accelerator", "ok", "the Edge TPU has taken over again")]

    asyncio.run(scenario())


def test_the_agent_goes_on_while_a_device_is_opened(edgetpu: Use, compiled: ModelFile) -> None:
    edgetpu("slow_open", delay_ms=400)

    async def scenario() -> None:
        async with running(settings(rate=0)) as rig:
            loading = asyncio.create_task(rig.supervisor.load(compiled))
            beats = 0
            while not loading.done():
                await asyncio.sleep(0.005)
                worker = rig.supervisor._connection
                beats += worker is not None and worker.page.stage(Track.CONTROL) is Stage.LOAD
            assert (await loading).accepted
            assert beats >= 5

    asyncio.run(scenario())


def test_a_device_that_opens_slowly_is_no_hang(
    edgetpu: Use, faulty_plugin: str, compiled: ModelFile, demo_model: ModelFile
) -> None:
    # The driver holds the GIL meanwhile, so that the thread that reads the source stands still as well.
    edgetpu("slow_open", delay_ms=2600)

    async def scenario() -> None:
        async with running(settings(faulty_plugin, **ENDLESS), deadline=2.0) as rig:
            assert (await rig.supervisor.load(demo_model)).accepted
            await rig.until(lambda: rig.positions)
            report = await rig.supervisor.load(msgspec.structs.replace(compiled, version="v2"))
            assert (report.accepted, report.reason) == (True, "")
            await rig.until(lambda: rig.batches[-1].model.version == "v2")
            assert rig.health == []
            assert every_position_once(rig, len(rig.positions))

    asyncio.run(scenario())


@pytest.mark.parametrize("mode", ["hang", "slow_open"], ids=["in the first invoke", "as it is opened"])
def test_a_device_that_hangs_while_a_model_is_loaded_ends_the_worker(
    edgetpu: Use, compiled: ModelFile, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    edgetpu(mode, delay_ms=600_000)
    monkeypatch.setattr(hangs, "LOAD_DEADLINE", 1.0)

    async def scenario() -> None:
        async with running(settings(rate=0), deadline=1.0) as rig:
            report = await rig.supervisor.load(compiled)
            assert report.reason.startswith("the worker died while loading it: hangs: loading a model for")
            await rig.until(lambda: rig.health)

    asyncio.run(scenario())


def test_a_device_that_hangs_in_the_old_model_is_no_proof_against_the_new_one(
    edgetpu: Use, faulty_plugin: str, compiled: ModelFile, demo_model: ModelFile
) -> None:
    edgetpu("hang", after=31)

    async def scenario() -> None:
        async with running(settings(faulty_plugin, at=0, total=10**6, pause=0.015), deadline=8.0) as rig:
            assert (await rig.supervisor.load(compiled)).accepted
            await rig.until(lambda: len(rig.positions) == 30)
            loading = asyncio.create_task(rig.supervisor.load(msgspec.structs.replace(demo_model, version="v2")))
            page = connection(rig).page
            async with asyncio.timeout(60):
                # Then the new model is built, and offered to the thread that hangs.
                while page.stage(Track.CONTROL) is not Stage.WAIT:  # noqa: ASYNC110  a page of memory cannot notify
                    await asyncio.sleep(0.005)
            assert await rig.supervisor.reconfigure(rig.replace(), 1.0) is None
            report = await loading
            assert (report.accepted, report.permanent) == (False, False)
            assert report.reason == "the worker ended before it had loaded the model"
            await rig.until(lambda: rig.health)
            assert "hangs: running the model for" in rig.health[0][2]

    asyncio.run(scenario())


def test_a_device_in_use_by_another_process_is_waited_for(edgetpu: Use, compiled: ModelFile) -> None:
    edgetpu("exclusive")

    async def scenario() -> None:
        async with running(settings(rate=0)) as second:
            async with running(settings(rate=0)) as first:
                assert (await first.supervisor.load(compiled)).accepted
                report = await second.supervisor.load(compiled)
                assert (report.accepted, report.permanent, report.reason) == (False, False, refusal())
            assert (await second.supervisor.load(compiled)).accepted
            assert first.health == []
            assert second.health == [("worker", "waiting", refusal())]

    asyncio.run(scenario())


# ------------------------------------------------------------------------------------------ it is swapped


def test_a_swap_on_the_device_loses_nothing_and_closes_in_order(
    edgetpu: Use, faulty_plugin: str, compiled: ModelFile, demo_model: ModelFile, tmp_path: Path
) -> None:
    edgetpu("exclusive")  # closing everything is seen by the next worker, which could not open the device otherwise
    other = tmp_path / "other_edgetpu.tflite"
    other.write_bytes(models.edgetpu_model(DEMO_MODEL.read_bytes(), output_type=schema.TensorType.FLOAT32))
    second = ModelFile(str(other), "vibration", "v2", LABELS)
    on_cpu = msgspec.structs.replace(demo_model, version="v3")
    back = msgspec.structs.replace(compiled, version="v4")

    async def scenario() -> None:
        async with running(settings(faulty_plugin, **ENDLESS)) as rig:
            process = None
            for model in (compiled, second, on_cpu, back):
                assert (await rig.supervisor.load(model)).accepted
                await more(rig, 20)
                assert process in {None, connection(rig)._process}
                process = connection(rig)._process
            assert process is not None
        assert every_position_once(rig, len(rig.positions))
        runs = list(dict.fromkeys((batch.model.version, batch.report.accelerator) for batch in rig.batches))
        assert runs == [("v1", "edgetpu"), ("v2", "edgetpu"), ("v3", "cpu"), ("v4", "edgetpu")]
        best = {batch.model.version: batch.results[0].scores[0].score for batch in rig.batches if batch.results}
        assert best["v2"] == 1.0
        assert best["v1"] == best["v4"] == pytest.approx(255 / 256)
        assert rig.health == []
        assert process.returncode == 0
        async with running(settings(rate=0)) as rig:
            assert (await rig.supervisor.load(compiled)).accepted

    asyncio.run(scenario())


def test_a_swap_to_the_cpu_gives_the_device_back(edgetpu: Use, compiled: ModelFile, demo_model: ModelFile) -> None:
    edgetpu("exclusive")

    async def scenario() -> None:
        async with running(settings(rate=10)) as first, running(settings(rate=10)) as second:
            assert (await first.supervisor.load(compiled)).accepted
            assert not (await second.supervisor.load(compiled)).accepted
            assert (await first.supervisor.load(demo_model)).accepted
            # The old model is closed right after the new one was taken over: the worker's next answer comes later.
            assert (await first.supervisor.load(msgspec.structs.replace(demo_model, version="v2"))).accepted
            assert (await second.supervisor.load(compiled)).accepted

    asyncio.run(scenario())


def test_a_refused_model_gives_the_device_back(edgetpu: Use, compiled: ModelFile) -> None:
    edgetpu("exclusive")
    badly_labelled = msgspec.structs.replace(compiled, labels=["a"])

    async def scenario() -> None:
        async with running(settings(rate=0)) as first, running(settings(rate=0)) as second:
            report = await first.supervisor.load(badly_labelled)
            assert (report.accepted, report.permanent) == (False, True)
            assert (await second.supervisor.load(compiled)).accepted

    asyncio.run(scenario())


def test_a_killed_worker_gives_the_device_back(edgetpu: Use, faulty_plugin: str, compiled: ModelFile) -> None:
    edgetpu("exclusive")

    async def scenario() -> None:
        async with running(settings(faulty_plugin, **ENDLESS)) as rig:
            assert (await rig.supervisor.load(compiled)).accepted
            await rig.until(lambda: rig.positions)
            os.kill(connection(rig)._process.pid, 9)
            await rig.until(lambda: rig.health)
            await more(rig, 20)
            assert [detail[:17] for _, _, detail in rig.health] == ["killed by SIGKILL"]

    asyncio.run(scenario())
