"""What is done when the Edge TPU fails: step by step, with a clock of the test."""

import asyncio
import errno
import os
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge_agent.inference.accelerators import recovery
from edge_agent.inference.accelerators.devices import CUSTOM_OP, Device, DeviceState
from edge_agent.inference.accelerators.recovery import (
    FIRST_PAUSE,
    FORGIVE_AFTER,
    GIVE_UP_AFTER,
    LAST_PAUSE,
    OWN_DOING,
    Recovery,
)
from edge_agent.inference.accelerators.reset import ResetFailed
from edge_agent.inference.protocol import Configure, ModelOptions
from edge_agent.inference.runtime.choice import Choice
from edge_agent.inference.supervision.deaths import Death, LastMoment
from edge_agent.inference.supervision.guard import Plan
from edge_agent.records import LoadReport, ModelFile

STICK = Device(bus="usb", address="1-1.3", node=Path("/dev/bus/usb/001/004"), state=DeviceState.READY)
CARD = Device(bus="pci", address="0000:01:00.0", node=Path("/dev/apex_0"), state=DeviceState.READY)
ON_DEVICE = LoadReport(accepted=True, accelerator="edgetpu", device="usb:1-1.3")
ON_CPU = LoadReport(accepted=True, accelerator="cpu", degraded="it was stuck")
NOT_THERE = LoadReport(accepted=False, reason="no Edge TPU is plugged in", about_device=True)
IN_INVOKE = LastMoment("running the model", loading=False, on_sample=True, working_on="7", read_after=None)
READING = LastMoment("reading the source", loading=False, on_sample=False, working_on=None, read_after="7")
LOADING = LastMoment("loading a model", loading=True, on_sample=False, working_on=None, read_after=None)
UNSEEN = Plan("ai-edge-litert", compiled=True)
USE_IT = Plan("ai-edge-litert", compiled=True, looks_well=True)
ABORT = Death("killed by SIGABRT while running the model", "killed by SIGABRT", IN_INVOKE)


class Runtimes:
    """Stands for the choice of the runtime, which has tests of its own."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.may_try: list[bool] = []
        self.answer = Choice("ai-edge-litert")

    async def choose(self, wanted: str, model_path: str, device: str, options: Any, *, may_try: bool) -> Choice:
        self.asked.append(wanted)
        self.may_try.append(may_try)
        return self.answer


class Bench:
    """A recovery, and everything it did."""

    def __init__(self, tmp_path: Path, device: Device = STICK) -> None:
        self.devices = [device]
        self.now = 1000.0
        self.health: list[tuple[str, str]] = []
        self.alarms: list[str] = []
        self.resets: list[str] = []
        self.reset_fails = ""
        self.slept = 0
        self.runtimes = Runtimes()
        path = tmp_path / "model_edgetpu.tflite"
        path.write_bytes(b"\0" * 20 + CUSTOM_OP.encode())
        self.model = ModelFile(str(path), "m", "v1")
        self.configure = Configure("p:P", {}, ModelOptions())
        self.recovery = Recovery(
            self.runtimes,  # type: ignore[arg-type]  # as much of a RuntimeChoice as is needed
            on_health=self._on_health,
            on_alarm=self.alarms.append,
            devices=lambda: self.devices,
            reset=self._reset,
            clock=lambda: self.now,
            sleep=self._sleep,
        )

    def _on_health(self, component: str, state: str, detail: str, *, exit_status: str = "", stage: str = "") -> None:
        assert component == "accelerator"
        self.health.append((state, detail))

    async def _sleep(self, seconds: float) -> None:
        self.slept += 1

    def _reset(self, name: str) -> None:
        if self.reset_fails:
            raise ResetFailed(self.reset_fails)
        self.resets.append(name)

    def plan(self, *, device_open: bool = False) -> Plan:
        return asyncio.run(self.recovery.plan(self.model, self.configure, device_open=device_open))

    def life(self, death: Death = ABORT, worked: float = 0.0) -> Plan:
        """Load the model if that is allowed, and die over it after so many seconds; returns what was planned."""
        plan = self.plan()
        if not plan.avoid_edgetpu:
            self.recovery.loaded(plan, ON_DEVICE)
            self.now += worked
            self.recovery.died(death, ON_DEVICE, None)
        return plan


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_the_steps_are_restart_reset_and_leaving_it_alone(bench: Bench) -> None:
    assert bench.life() == USE_IT
    assert (bench.resets, bench.health) == ([], [])
    bench.life()
    assert bench.resets == []
    # Reset before the third opening, when nobody has the device open.
    bench.life()
    assert bench.resets == ["usb:1-1.3"]
    assert bench.alarms == [
        "usb:1-1.3 fails again and again: unplug it and plug it in again (killed by SIGABRT while running the model)"
    ]
    assert bench.plan() == Plan(avoid_edgetpu=bench.alarms[0], compiled=True)
    assert [state for state, _ in bench.health] == ["reset", "stuck"]
    counts = bench.recovery.counts
    assert (counts.failures, counts.resets) == (3, 1)


def test_a_device_that_is_left_alone_is_tried_again_ever_more_rarely_without_another_alarm(bench: Bench) -> None:
    for _ in range(GIVE_UP_AFTER):
        bench.life()
    pause = FIRST_PAUSE
    pauses: list[float] = []
    while len(pauses) < 8:
        assert bench.plan().avoid_edgetpu
        bench.now += pause - 1
        assert bench.plan().avoid_edgetpu
        bench.now += 1
        assert not bench.life().avoid_edgetpu
        pause = min(pause * 2, LAST_PAUSE)
        pauses.append(pause)
    assert pauses[-1] == LAST_PAUSE
    assert len(bench.alarms) == 1


def test_what_is_plugged_in_anew_begins_afresh(bench: Bench) -> None:
    for _ in range(GIVE_UP_AFTER):
        bench.life()
    # This may still be the reset, or the firmware.
    bench.now += OWN_DOING
    bench.recovery.appeared()
    assert bench.plan().avoid_edgetpu
    bench.now += 1
    bench.recovery.appeared()
    assert not bench.life().avoid_edgetpu
    assert not bench.life().avoid_edgetpu
    bench.life()
    assert len(bench.alarms) == 2


def test_a_device_that_has_worked_for_long_is_forgiven(bench: Bench) -> None:
    for _ in range(20):
        assert not bench.life(worked=FORGIVE_AFTER + 1).avoid_edgetpu
    assert (bench.resets, bench.alarms) == ([], [])
    assert bench.recovery.counts.failures == 20


def test_a_device_that_came_back_after_it_was_left_alone_is_forgiven_too(bench: Bench) -> None:
    for _ in range(GIVE_UP_AFTER):
        bench.life()
    bench.now += FIRST_PAUSE + 1
    assert not bench.life(worked=FORGIVE_AFTER + 1).avoid_edgetpu
    assert not bench.life().avoid_edgetpu


def test_time_without_the_device_forgives_nothing(bench: Bench) -> None:
    # It dies at once, however rarely it is tried.
    for _ in range(GIVE_UP_AFTER):
        bench.now += 2 * FORGIVE_AFTER
        assert not bench.life().avoid_edgetpu
    assert len(bench.alarms) == 1
    for _ in range(10):
        bench.now += 4 * LAST_PAUSE
        assert not bench.life().avoid_edgetpu
        assert bench.plan().avoid_edgetpu
    assert len(bench.alarms) == 1


def test_deaths_that_were_a_samples_doing_are_taken_back(bench: Bench) -> None:
    for _ in range(10):
        bench.life()
        bench.life()
        # The sample is left out, and the device works.
        bench.recovery.loaded(bench.plan(), ON_DEVICE)
        bench.recovery.acquit(2)
    assert bench.alarms == []
    # The third of others is one too many, as ever.
    for _ in range(GIVE_UP_AFTER):
        bench.life()
    assert len(bench.alarms) == 1


def test_a_model_that_kills_beside_one_that_works_says_nothing_of_the_device(bench: Bench) -> None:
    bench.recovery.loaded(bench.plan(), ON_DEVICE)
    loading = LastMoment("loading a model", loading=True, on_sample=True, working_on="7", read_after=None)
    for _ in range(GIVE_UP_AFTER):
        plan = bench.plan(device_open=True)
        bench.recovery.died(Death("killed by SIGSEGV while loading a model", "killed", loading), ON_DEVICE, plan)
    assert bench.recovery.counts.failures == 0


@pytest.mark.parametrize("report", ["degraded", "refused"])
def test_a_library_that_does_not_fit_or_is_missing_says_nothing_of_the_device(bench: Bench, report: str) -> None:
    bench.runtimes.answer = Choice("ai-edge-litert", "the Edge TPU's library cannot be loaded")
    outcome = ON_CPU if report == "degraded" else NOT_THERE
    for _ in range(GIVE_UP_AFTER + 1):
        bench.recovery.loaded(bench.plan(), outcome)
    assert (bench.recovery.counts.failures, bench.resets, bench.alarms) == (0, [], [])


def test_the_device_that_failed_is_reset_and_named_not_its_neighbour(bench: Bench) -> None:
    bench.devices = [msgspec.structs.replace(STICK, address="1-1.1"), STICK]
    for _ in range(GIVE_UP_AFTER):
        bench.life()
    assert bench.resets == ["usb:1-1.3"]
    assert bench.alarms[0].startswith("usb:1-1.3 fails")


def test_a_device_that_was_reset_is_waited_for(bench: Bench) -> None:
    bench.life()
    bench.life()
    looks = iter([[STICK], [], [], [STICK], [STICK]])
    bench.recovery._devices = lambda: next(looks)
    assert bench.plan() == USE_IT
    assert bench.slept == 2


def test_devices_that_cannot_be_looked_for_are_not_usable(bench: Bench) -> None:
    def fail() -> list[Device]:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    bench.recovery._devices = fail
    assert bench.plan() == UNSEEN


def test_who_does_not_want_the_edge_tpu_is_not_degraded(bench: Bench) -> None:
    bench.devices = []
    bench.recovery.loaded(bench.plan(), NOT_THERE)
    assert bench.recovery.degraded
    bench.configure = Configure("p:P", {}, ModelOptions(accelerator="cpu"))
    assert bench.plan() == Plan()
    assert bench.recovery.degraded == ""


@pytest.mark.parametrize(
    ("death", "in_use"),
    [
        (Death("killed by SIGSEGV while reading the source", "killed by SIGSEGV", READING), ON_DEVICE),
        (Death("killed by SIGKILL while running the model", "killed by SIGKILL", IN_INVOKE, outside=True), ON_DEVICE),
        (ABORT, ON_CPU),
        (ABORT, None),
    ],
    ids=["in the source", "from outside", "on the CPU", "without a model"],
)
def test_other_deaths_are_not_put_down_to_the_device(bench: Bench, death: Death, in_use: LoadReport | None) -> None:
    for _ in range(5):
        bench.plan()
        bench.recovery.died(death, in_use, None)
    assert bench.recovery.counts.failures == 0
    assert not bench.plan().avoid_edgetpu


def test_a_worker_that_dies_while_it_opens_the_device_counts(bench: Bench) -> None:
    for _ in range(GIVE_UP_AFTER):
        plan = bench.plan()
        bench.recovery.died(Death("hangs: loading a model for 90.1 s", "hung", LOADING, hung=True), None, plan)
    assert "hangs: loading a model" in bench.plan().avoid_edgetpu


def test_a_device_that_looks_well_and_cannot_be_opened_goes_the_same_way(bench: Bench) -> None:
    refused = LoadReport(
        accepted=False, reason="it needs an Edge TPU, and usb:1-1.3 could not be opened", about_device=True
    )
    tries = 0
    while not (plan := bench.plan()).avoid_edgetpu:
        bench.recovery.loaded(plan, refused)
        tries += 1
    assert tries == GIVE_UP_AFTER
    assert bench.resets == ["usb:1-1.3"]
    assert "could not be opened" in bench.alarms[0]


def test_a_device_that_is_away_is_no_failure(bench: Bench) -> None:
    bench.devices = []
    for _ in range(5):
        plan = bench.plan()
        assert plan == UNSEEN
        bench.recovery.loaded(plan, NOT_THERE)
    bench.devices = [STICK]
    assert bench.plan() == USE_IT
    assert bench.recovery.counts.failures == 0


def test_a_device_that_hangs_as_it_is_tried_has_failed_and_is_not_given_to_the_worker(bench: Bench) -> None:
    bench.runtimes.answer = Choice("ai-edge-litert", trouble="running the model has taken longer than 1m30s", hung=True)
    first = bench.plan()
    assert (first.avoid_edgetpu, first.opens_device) == (
        "the Edge TPU hangs: running the model has taken longer than 1m30s",
        False,
    )
    bench.plan()
    assert (bench.recovery.counts.failures, bench.resets) == (2, [])
    third = bench.plan()
    assert bench.resets == ["usb:1-1.3"]
    assert bench.alarms == [third.avoid_edgetpu]
    assert third.avoid_edgetpu.startswith("usb:1-1.3 fails again and again: ")
    # It is left alone now, and tried once more after a while.
    bench.plan()
    assert len(bench.runtimes.asked) == 3
    bench.now += FIRST_PAUSE
    bench.runtimes.answer = Choice("ai-edge-litert")
    assert bench.plan() == USE_IT


def test_the_change_to_the_cpu_and_back_is_told_and_counted(bench: Bench) -> None:
    plan = bench.plan()
    for report in (ON_DEVICE, ON_CPU, ON_CPU, ON_DEVICE, ON_DEVICE):
        bench.recovery.loaded(plan, report)
    assert bench.health == [("degraded", "it was stuck"), ("ok", "usb:1-1.3 has taken over again")]
    counts = bench.recovery.counts
    assert (counts.fallbacks, counts.returns) == (1, 1)
    assert bench.recovery.degraded == ""


def test_a_reset_that_fails_is_told_and_the_device_tried_all_the_same(bench: Bench) -> None:
    bench.reset_fails = "no permission for /dev/bus/usb/001/004"
    bench.life()
    bench.life()
    assert bench.life() == USE_IT
    assert ("reset_failed", "no permission for /dev/bus/usb/001/004") in bench.health
    assert bench.recovery.counts.resets == 0


def test_a_reset_that_does_not_come_back_is_told_and_the_device_tried_all_the_same(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    come_back = threading.Event()
    monkeypatch.setattr(recovery, "RESET_DEADLINE", 0.05)
    monkeypatch.setattr(bench.recovery, "_reset", lambda _: come_back.wait(60))
    bench.life()
    bench.life()

    async def scenario() -> Plan:
        plan = await bench.recovery.plan(bench.model, bench.configure, device_open=False)
        come_back.set()  # for the thread
        return plan

    assert asyncio.run(scenario()) == USE_IT
    assert ("reset_failed", "usb:1-1.3: the USB reset has not come back after 0.05 s") in bench.health
    assert bench.recovery.counts.resets == 0


def test_a_card_is_not_reset_and_needs_its_power_cut(tmp_path: Path) -> None:
    bench = Bench(tmp_path, CARD)
    for _ in range(GIVE_UP_AFTER):
        bench.life()
    assert bench.resets == []
    assert ": switch the machine off and on (" in bench.alarms[0]


def test_a_driver_that_no_runtime_gets_along_with_is_not_touched(bench: Bench) -> None:
    bench.runtimes.answer = Choice("ai-edge-litert", "libedgetpu does not fit")
    plan = bench.plan()
    assert (plan.avoid_edgetpu, plan.opens_device) == ("libedgetpu does not fit", False)


@pytest.mark.parametrize("failure", ["crash", "refusal", "hang", "fallback", "absence"])
def test_where_the_kernel_shows_no_device_the_driver_is_tried_once_it_has_failed(bench: Bench, failure: str) -> None:
    """Before, it is not worth the time: most likely there is no device."""
    bench.devices = []
    plan = bench.plan()
    assert (plan, bench.runtimes.may_try) == (UNSEEN, [False])
    if failure == "refusal":
        bench.recovery.loaded(plan, msgspec.structs.replace(NOT_THERE, reason="unresolved custom op"))
    elif failure == "fallback":
        bench.recovery.loaded(plan, msgspec.structs.replace(ON_CPU, about_device=True))
    elif failure == "absence":
        bench.recovery.loaded(plan, ON_CPU)
    else:
        death = Death("killed by SIGSEGV while loading a model", "killed by SIGSEGV", LOADING, hung=failure == "hang")
        bench.recovery.died(death, None, plan)
    bench.runtimes.answer = Choice("ai-edge-litert", "libedgetpu does not fit")
    assert bench.plan().avoid_edgetpu == "libedgetpu does not fit"
    assert bench.runtimes.may_try == [False, failure in {"crash", "refusal", "fallback"}]


def test_a_driver_that_works_unseen_is_not_tried_again(bench: Bench) -> None:
    bench.devices = []
    bench.recovery.loaded(bench.plan(), NOT_THERE)
    bench.recovery.loaded(bench.plan(), LoadReport(accepted=True, accelerator="edgetpu", device=""))
    bench.plan()
    assert bench.runtimes.may_try == [False, True, False]


def test_a_driver_is_not_tried_while_no_device_can_be_opened(bench: Bench) -> None:
    bench.devices = [msgspec.structs.replace(STICK, state=DeviceState.BUSY)]
    assert bench.plan() == Plan(compiled=True)
    assert bench.runtimes.asked == []


def test_nothing_is_opened_besides_a_worker_that_has_the_device(bench: Bench) -> None:
    assert bench.plan(device_open=True) == Plan(compiled=True, beside=True)
    assert bench.runtimes.asked == []


def test_other_models_are_none_of_its_business(bench: Bench) -> None:
    Path(bench.model.path).write_bytes(b"a plain model")
    assert bench.plan() == Plan()
    bench.recovery.loaded(Plan(), LoadReport(accepted=True, degraded="the model is not compiled"))
    assert (bench.recovery.degraded, bench.health, bench.runtimes.asked) == ("", [], [])


def test_a_model_that_is_refused_for_what_it_is_says_nothing_of_the_device(bench: Bench) -> None:
    bench.recovery.loaded(bench.plan(), ON_DEVICE)
    wrong = LoadReport(accepted=False, reason="2 labels, but the model has 3 outputs")
    plan = bench.plan(device_open=True)
    bench.recovery.loaded(plan, wrong)
    # Nor does one that fails while the model before it works on the same device.
    bench.recovery.loaded(plan, LoadReport(accepted=False, reason="failed to invoke", about_device=True))
    assert bench.recovery.degraded == ""
    bench.plan()
    assert bench.recovery.counts.failures == 0
