"""A real worker on a stick that fails, goes away and comes back: the kernel's side is a tree, the driver a stand-in."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from edge_agent.inference.accelerators import recovery
from edge_agent.inference.accelerators.devices import GET_LIBRARY
from edge_agent.inference.accelerators.watch import DeviceWatch
from edge_agent.inference.protocol import Configure
from edge_agent.inference.supervision import supervisor, waiting
from edge_agent.records import ModelFile
from tests.inference.conftest import DEMO_MODEL, Rig, running, settings
from tests.standin import build, models
from tests.standin.sysfs import Machine

LABELS = ["normal", "warning", "failure"]
PORT = "1-1.3"


class Stick:
    """An Edge TPU on USB that does as it is told."""

    def __init__(self, folder: Path, library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.machine = Machine(folder / "root")
        self.library = library / build.LIBRARY_NAME
        self.log = folder / "log"
        self._node = self.machine.usb(PORT)
        self._entry = self.machine.root / "sys/bus/usb/devices" / PORT
        self._aside = folder / "aside"
        self._state = folder / "state"
        environment = build.environment(library, devices=[("usb", self._node)], state=self._state, log=self.log)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)

    def unplug(self) -> None:
        self._aside.mkdir()
        self._entry.rename(self._aside / "entry")
        self._node.rename(self._aside / "node")

    def plug(self) -> None:
        """The same device number again, for a worker that runs knows no other."""
        (self._aside / "entry").rename(self._entry)
        (self._aside / "node").rename(self._node)
        self._aside.rmdir()

    def hide(self) -> None:
        """What can still be opened is not shown by the kernel any more."""
        self._aside.mkdir()
        self._entry.rename(self._aside / "entry")

    def does(self, mode: str) -> None:
        self._state.write_text(mode)

    def configure(self) -> Configure:
        options = {"at": 0, "total": 10**6, "pause": 0.002}
        return msgspec.structs.replace(settings("faulty", **options), root=str(self.machine.root))

    @property
    def openings(self) -> list[object]:
        return [line["options"] for line in build.read_log(self.log) if line["event"] == "create"]


@pytest.fixture
def stick(edgetpu_standin: Path, faulty_plugin: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stick:
    monkeypatch.setattr(supervisor, "FIRST_DELAY", 0.02)
    monkeypatch.setattr(waiting, "FIRST_WAIT", 0.02)
    return Stick(tmp_path, edgetpu_standin, monkeypatch)


@pytest.fixture
def compiled(tmp_path: Path) -> ModelFile:
    path = tmp_path / "vibration_edgetpu.tflite"
    path.write_bytes(models.edgetpu_model(DEMO_MODEL.read_bytes()))
    return ModelFile(str(path), "vibration", "v1", LABELS)


@pytest.fixture
def with_twin(compiled: ModelFile) -> ModelFile:
    return msgspec.structs.replace(compiled, cpu_path=str(DEMO_MODEL))


def last_report(rig: Rig) -> tuple[str, str | None]:
    report = rig.batches[-1].report
    return report.accelerator, report.degraded


async def until_on(rig: Rig, accelerator: str) -> None:
    await rig.until(lambda: rig.batches and rig.batches[-1].results and last_report(rig)[0] == accelerator)


def every_position_once(rig: Rig) -> bool:
    return rig.positions == list(range(1, len(rig.positions) + 1))


def watch(rig: Rig, clock: Callable[[], float]) -> DeviceWatch:
    wanted = lambda: "" if rig.recovery.degraded else None  # noqa: E731
    return DeviceWatch(rig.recovery, wanted=wanted, again=rig.supervisor.load_again, clock=clock)


def test_the_cpu_takes_over_while_the_stick_is_away_and_it_comes_back_by_itself(
    stick: Stick, with_twin: ModelFile
) -> None:
    async def scenario() -> None:
        async with running(stick.configure()) as rig:
            report = await rig.supervisor.load(with_twin)
            assert (report.accepted, report.accelerator, report.device) == (True, "edgetpu", f"usb:{PORT}")
            await until_on(rig, "edgetpu")
            stick.unplug()
            await until_on(rig, "cpu")
            assert last_report(rig) == ("cpu", "no Edge TPU is plugged in")
            assert rig.supervisor.status.deaths == 1
            watching = watch(rig, clock=lambda: 0.0)
            await watching.look()
            assert last_report(rig)[0] == "cpu"
            process = rig.supervisor.worker_pid
            stick.plug()
            await watching.look()
            await until_on(rig, "edgetpu")
            # The same worker has swapped, and no sample is missing.
            assert rig.supervisor.worker_pid == process
            assert every_position_once(rig)
            counts = rig.recovery.counts
            assert (counts.fallbacks, counts.returns, counts.resets) == (1, 1, 0)
        assert [(component, state) for component, state, _ in rig.health] == [
            ("worker", "died"),
            ("accelerator", "degraded"),
            ("accelerator", "ok"),
        ]

    asyncio.run(scenario())


def test_a_stick_that_fails_again_and_again_is_reset_then_left_alone_and_tried_later(
    stick: Stick, with_twin: ModelFile
) -> None:
    async def scenario() -> None:
        async with running(stick.configure()) as rig:
            assert (await rig.supervisor.load(with_twin)).accepted
            await until_on(rig, "edgetpu")
            stick.does("abort")
            await until_on(rig, "cpu")
            accelerator, degraded = last_report(rig)
            assert accelerator == "cpu"
            assert degraded is not None
            remedy = "unplug it and plug it in again"
            assert degraded.startswith(f"usb:{PORT} fails again and again: {remedy} (killed by SIGABRT while ")
            assert rig.alarms == [degraded]
            counts = rig.recovery.counts
            assert (counts.failures, counts.resets, counts.fallbacks) == (recovery.GIVE_UP_AFTER, 1, 1)
            assert {status for status, _ in rig.ends} == {"killed by SIGABRT"}
            # It is still bad: one more try, one more death, no other alarm, and the CPU goes on.
            deaths = rig.supervisor.status.deaths
            rig.ahead += recovery.FIRST_PAUSE
            now = 0.0
            watching = watch(rig, clock=lambda: now)
            await watching.look()
            await rig.until(lambda: rig.supervisor.status.deaths == deaths + 1)
            seen = len(rig.batches)
            await rig.until(lambda: len(rig.batches) > seen + 5 and last_report(rig)[0] == "cpu")
            assert len(rig.alarms) == 1
            # It is well again.
            stick.does("ok")
            rig.ahead += recovery.FIRST_PAUSE * 2
            now += 3600
            await watching.look()
            await until_on(rig, "edgetpu")
            assert rig.recovery.counts.returns == 1

    asyncio.run(scenario())


def test_without_a_twin_the_model_waits_and_says_for_what(stick: Stick, compiled: ModelFile) -> None:
    async def scenario() -> None:
        async with running(stick.configure()) as rig:
            assert (await rig.supervisor.load(compiled)).accepted
            await until_on(rig, "edgetpu")
            stick.unplug()
            await rig.until(lambda: ("worker", "waiting") in [each[:2] for each in rig.health])
            assert rig.supervisor.status.waiting == "it needs an Edge TPU, and no Edge TPU is plugged in"
            seen = len(rig.positions)
            stick.plug()
            await rig.supervisor.load_again()
            await rig.until(lambda: len(rig.positions) > seen + 20)
            assert rig.supervisor.status.waiting == ""
            assert rig.supervisor.status.deaths == 1

    asyncio.run(scenario())


@pytest.mark.parametrize(("mode", "told"), [("mismatch_segv", "SIGSEGV"), ("mismatch_unresolved", "unresolved custom")])
def test_a_driver_that_does_not_fit_is_found_out_by_a_child_and_never_touched_by_the_worker(
    stick: Stick, with_twin: ModelFile, mode: str, told: str
) -> None:
    stick.does(mode)

    async def scenario() -> None:
        async with running(stick.configure()) as rig:
            report = await rig.supervisor.load(with_twin)
            assert (report.accepted, report.accelerator) == (True, "cpu")
            assert report.degraded is not None
            assert "libedgetpu" in report.degraded
            assert told in report.degraded
            assert rig.supervisor.status.deaths == 0
            await until_on(rig, "cpu")
            # What is known of the pair is not tried again.
            openings = len(stick.openings)
            assert openings > 0
            assert not (await rig.supervisor.load(msgspec.structs.replace(with_twin, version="v2"))).device
            assert len(stick.openings) == openings

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("mode", "twin", "first", "told"),
    [
        ("mismatch_segv", False, "the worker died while loading it: killed by SIGSEGV", "SIGSEGV while allocating"),
        ("mismatch_unresolved", True, "the Edge TPU failed: the Edge TPU's library does not get along", "unresolved"),
    ],
)
def test_a_driver_that_does_not_fit_is_found_out_where_the_kernel_shows_no_device(
    stick: Stick, with_twin: ModelFile, *, mode: str, twin: bool, first: str, told: str
) -> None:
    """As in a container that has the device files, and does not see /sys: the worker fails, and then it is tried."""
    stick.does(mode)
    stick.hide()
    model = with_twin if twin else msgspec.structs.replace(with_twin, cpu_path=None)

    async def scenario() -> None:
        async with running(stick.configure()) as rig:
            report = await rig.supervisor.load(model)
            assert (report.accepted, report.accelerator) == (twin, "cpu")
            assert (report.degraded or report.reason).startswith(first)
            report = await rig.supervisor.load(msgspec.structs.replace(model, version="v2"))
            assert (report.accepted, report.permanent, report.accelerator) == (twin, False, "cpu")
            said = report.degraded or report.reason
            assert told in said
            assert said.endswith(f"does not get along with {stick.library}; {GET_LIBRARY}")
            # The worker once, and two tries. From now on it is known, and left in peace.
            deaths = rig.supervisor.status.deaths
            assert len(stick.openings) == 3
            await rig.supervisor.load(msgspec.structs.replace(model, version="v3"))
            assert (len(stick.openings), rig.supervisor.status.deaths) == (3, deaths)
            assert (rig.recovery.counts.resets, rig.alarms) == (0, [])

    asyncio.run(scenario())


def test_the_probe_is_remembered_over_a_restart_of_the_agent(stick: Stick, compiled: ModelFile, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(stick.configure()) as rig:
            assert (await rig.supervisor.load(compiled)).accepted
            assert len(stick.openings) == 2
            first = (rig.folder / "runtimes.json").read_bytes()
        async with running(stick.configure()) as rig:
            (rig.folder / "runtimes.json").write_bytes(first)
            assert (await rig.supervisor.load(compiled)).accepted
        assert len(stick.openings) == 3

    asyncio.run(scenario())
