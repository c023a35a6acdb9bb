"""Which Edge TPU a model is put on: chosen, locked, opened and given back."""

import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import pytest

from edge_agent.inference.accelerators import opening
from edge_agent.inference.accelerators.lock import DeviceLocked, holds_lock, lock_device
from edge_agent.inference.accelerators.opening import Opened, open_accelerator
from edge_agent.inference.protocol import ModelOptions
from edge_agent.inference.refusal import ModelRefused
from edge_agent.inference.runtime.runtimes import Runtime
from edge_agent.records import ModelFile
from tests.inference.accelerators.test_lock import another_process_holds
from tests.inference.conftest import DEMO_MODEL, ROOT
from tests.standin import build, models
from tests.standin.sysfs import Machine

NOT_COMPILED = "the model is not compiled for the Edge TPU (edgetpu_compiler)"


class Driver:
    """Takes the place of libedgetpu where it matters which device file it opens, and when it closes it.

    A device is known to it by the numbers in `numbers`; `after` is called once one is open.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.numbers: dict[str, Path] = {}
        self.asked: list[dict[str, str]] = []
        self.open: list[BinaryIO] = []
        self.locked_at_the_end: list[bool] = []
        self.after: Callable[[], object] = lambda: None

    def load_delegate(self, _library: str, options: Mapping[str, str]) -> "Delegate":
        self.asked.append(dict(options))
        node = self.numbers.get(options.get("device", ""))
        if node is None:
            raise ValueError("Failed to load delegate from libedgetpu.so.1")
        file = node.open("rb")
        self.open.append(file)
        self.after()
        return Delegate(self, file)


class Delegate:
    """What the runtimes make of it: it closes the device when nobody holds it any more."""

    def __init__(self, driver: Driver, file: BinaryIO) -> None:
        self.driver = driver
        self.file = file

    def __del__(self) -> None:
        names = [f"usb:{port.name}" for port in (self.driver.root / "sys/bus/usb/devices").iterdir()]
        self.driver.locked_at_the_end.append(any(holds_lock(name, self.driver.root) for name in names))
        self.file.close()
        self.driver.open.remove(self.file)


@pytest.fixture
def driver(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    """A driver that knows no device yet, and does not tell its order."""
    monkeypatch.setattr(opening, "list_of_driver", list)
    made = Driver(machine.root)
    yield made
    assert made.open == []
    assert not any(
        holds_lock(f"usb:{port.name}", machine.root) for port in (machine.root / "sys/bus/usb/devices").iterdir()
    )


@pytest.fixture
def compiled(tmp_path: Path) -> ModelFile:
    """A model for the Edge TPU, without a twin for the CPU."""
    path = tmp_path / "model_edgetpu.tflite"
    path.write_bytes(models.edgetpu_model(DEMO_MODEL.read_bytes()))
    return ModelFile(str(path), "vibration", "v1")


@pytest.fixture
def twins(compiled: ModelFile) -> ModelFile:
    """The same, with its twin."""
    return msgspec.structs.replace(compiled, cpu_path=str(DEMO_MODEL))


def opened(driver: Driver, model: ModelFile, avoid: str = "", **options: Any) -> Opened:
    runtime = Runtime("stub", driver, "1")
    return open_accelerator(runtime, model, ModelOptions(**options), avoid=avoid, root=driver.root)


def refusal(driver: Driver, model: ModelFile, avoid: str = "", **options: Any) -> str:
    with pytest.raises(ModelRefused) as raised:
        opened(driver, model, avoid, **options)
    assert not raised.value.permanent
    return str(raised.value)


# ------------------------------------------------------------------------------------------ which one


def test_a_device_is_opened_by_its_number_and_told_by_its_name(
    driver: Driver, machine: Machine, compiled: ModelFile
) -> None:
    driver.numbers = {"usb:0": machine.usb("1-1.3")}
    got = opened(driver, compiled, device_options={"Performance": "High"})
    assert (got.path, got.device, got.accelerator, got.degraded) == (compiled.path, "usb:1-1.3", "edgetpu", None)
    assert got.remarks == ()
    assert driver.asked == [{"device": "usb:0", "Performance": "High"}]
    assert holds_lock("usb:1-1.3", machine.root)
    got.close()
    assert driver.locked_at_the_end == [True]


@pytest.mark.parametrize(
    ("device", "asked"),
    [("", "pci:0"), ("usb", "usb:0"), (":1", "usb:0"), ("usb:1-1", "usb:1"), ("usb:0", "usb:0"), ("usb:1-2", "usb:0")],
)
def test_what_the_settings_ask_for(
    driver: Driver, machine: Machine, compiled: ModelFile, device: str, asked: str
) -> None:
    apex, one, two = machine.apex(0, "0000:01:00.0"), machine.usb("1-1"), machine.usb("1-2", firmware=False)
    driver.numbers = {"pci:0": apex, "usb:0": two, "usb:1": one}
    if device == "usb":  # of two that are as good, the one that need not be loaded first
        asked = "usb:1"
    got = opened(driver, compiled, device=device)
    assert [request["device"] for request in driver.asked] == [asked]
    got.close()


def test_one_that_is_busy_stuck_or_locked_is_passed_over(driver: Driver, machine: Machine, compiled: ModelFile) -> None:
    machine.apex(0, "0000:01:00.0", status="DEAD")
    machine.process(812, "frigate", opens=machine.usb("1-1", claimed=True))
    machine.usb("1-2")
    driver.numbers = {"usb:2": machine.usb("1-3")}
    with another_process_holds("usb:1-2", machine.root):
        got = opened(driver, compiled)
        assert got.device == "usb:1-3"
        got.close()


def test_where_all_are_taken_it_is_said_by_whom(driver: Driver, machine: Machine, compiled: ModelFile) -> None:
    machine.usb("1-1")
    with another_process_holds("usb:1-1", machine.root) as child:
        machine.process(child.pid, "edge-agent demo")
        told = f"usb:1-1: process {child.pid} (edge-agent demo) has it"
        assert refusal(driver, compiled) == f"it needs an Edge TPU, and {told}"
        machine.process(812, "frigate", opens=machine.usb("1-1", claimed=True))
        assert refusal(driver, compiled).startswith(
            "it needs an Edge TPU, and usb:1-1: process 812 (frigate) has it open; stop that"
        )
    assert driver.asked == []


def test_a_device_of_another_name_is_no_substitute(driver: Driver, machine: Machine, compiled: ModelFile) -> None:
    driver.numbers = {"usb:0": machine.usb("1-1")}
    assert refusal(driver, compiled, device="usb:1-2") == (
        "it needs an Edge TPU, and there is no Edge TPU at 'usb:1-2'; there is usb:1-1"
    )


def test_the_new_model_goes_where_the_old_one_is(driver: Driver, machine: Machine, compiled: ModelFile) -> None:
    driver.numbers = {"usb:0": machine.usb("1-1"), "usb:1": machine.usb("1-2")}
    old = opened(driver, compiled, device="usb:1-2")
    new = opened(driver, compiled)
    assert new.device == "usb:1-2"
    old.close()
    assert holds_lock("usb:1-2", machine.root)
    new.close()
    assert driver.locked_at_the_end == [True, True]


def test_another_device_that_this_process_has_is_no_wrong_one(
    driver: Driver, machine: Machine, compiled: ModelFile
) -> None:
    driver.numbers = {"usb:0": machine.usb("1-1"), "usb:1": machine.usb("1-2")}
    first, second = opened(driver, compiled, device="usb:1-1"), opened(driver, compiled, device="usb:1-2")
    assert (first.device, second.device) == ("usb:1-1", "usb:1-2")
    assert len(driver.asked) == 2
    first.close()
    second.close()


@pytest.mark.parametrize(("device", "ignored"), [("", True), ("usb", True), ("usb:0", False), (":0", False)])
def test_where_the_kernel_shows_nothing_it_is_left_to_the_driver(
    driver: Driver, machine: Machine, compiled: ModelFile, tmp_path: Path, *, device: str, ignored: bool
) -> None:
    hidden = tmp_path / "hidden"
    hidden.touch()
    driver.numbers = {device: hidden}
    got = opened(driver, compiled, device=device, device_options={"Performance": "Low"})
    assert driver.asked == [({"device": device} if device else {}) | {"Performance": "Low"}]
    assert got.device == device
    assert bool(got.remarks) is ignored
    got.close()
    assert refusal(driver, compiled, device="pci:3") == "it needs an Edge TPU, and no Edge TPU is plugged in"


def test_what_the_driver_refuses_is_given_back_and_explained(
    driver: Driver, machine: Machine, compiled: ModelFile
) -> None:
    machine.usb("1-1")
    told = refusal(driver, compiled)
    assert told.startswith("it needs an Edge TPU, and usb:1-1 is there, but libedgetpu could not open it; ")
    assert "Failed to load delegate" not in told


# ------------------------------------------------------------------------------------------ the right one


def test_a_number_that_moved_on_is_looked_up_again(driver: Driver, machine: Machine, compiled: ModelFile) -> None:
    # At the opening, 1-2 is still the first: it gets its firmware at that very moment.
    wanted, other = machine.usb("1-1"), machine.usb("1-2")
    driver.numbers = {"usb:0": other, "usb:1": wanted}

    def settle() -> None:
        driver.numbers = {"usb:0": wanted, "usb:1": other}

    driver.after = settle
    got = opened(driver, compiled, device="usb:1-1")
    assert (got.device, [file.name for file in driver.open]) == ("usb:1-1", [str(wanted)])
    assert [request["device"] for request in driver.asked] == ["usb:0", "usb:0"]
    got.close()


def test_a_driver_that_opens_another_one_again_is_told_of(
    driver: Driver, machine: Machine, compiled: ModelFile
) -> None:
    machine.usb("1-1")
    driver.numbers = {"usb:0": machine.usb("1-2")}
    assert refusal(driver, compiled, device="usb:1-1") == (
        "it needs an Edge TPU, and libedgetpu opened usb:1-2 instead of usb:1-1, 2 times; "
        "say in [inference].device which one to use, or unplug the other"
    )
    assert len(driver.asked) == 2


# ------------------------------------------------------------------------------------------ until when


def test_the_lock_lasts_as_long_as_anybody_has_the_delegate(
    driver: Driver, machine: Machine, compiled: ModelFile
) -> None:
    driver.numbers = {"usb:0": machine.usb("1-1")}
    got = opened(driver, compiled)
    interpreter = list(got.delegates)
    got.close()
    assert len(driver.open) == 1
    with pytest.raises(DeviceLocked):
        lock_device("usb:1-1", machine.root, share=False)
    interpreter.clear()
    assert driver.locked_at_the_end == [True]
    assert not holds_lock("usb:1-1", machine.root)


def test_the_lock_outlives_a_delegate_that_the_garbage_collector_destroys(
    driver: Driver, machine: Machine, compiled: ModelFile
) -> None:
    # As when a traceback holds the frame of an exception that is held by the frame.
    driver.numbers = {"usb:0": machine.usb("1-1")}
    got = opened(driver, compiled)
    cycle: list[Any] = [got.delegates[0]]
    cycle.append(cycle)
    got.close()
    del cycle
    gc.collect()
    assert driver.locked_at_the_end == [True]
    assert not holds_lock("usb:1-1", machine.root)


# ------------------------------------------------------------------------------------------ the CPU


def test_with_a_twin_the_cpu_takes_over_and_says_why(driver: Driver, machine: Machine, twins: ModelFile) -> None:
    def on_cpu(avoid: str = "", **options: Any) -> str | None:
        got = opened(driver, twins, avoid, **options)
        assert (got.path, got.accelerator, got.device) == (str(DEMO_MODEL), "cpu", None)
        return got.degraded

    machine.pci("0000:01:00.0")
    assert (on_cpu() or "").startswith("pci:0000:01:00.0: no driver has taken it; install gasket-dkms ")
    driver.numbers = {"usb:0": machine.usb("1-1")}
    assert on_cpu("it has failed 3 times") == "it has failed 3 times"
    assert on_cpu(device="usb:1-2") == ("there is no Edge TPU at 'usb:1-2'; there is pci:0000:01:00.0, usb:1-1")
    # Asked for, it is not degraded.
    assert on_cpu(accelerator="cpu") is None
    assert driver.asked == []
    got = opened(driver, twins)
    assert (got.path, got.accelerator) == (twins.path, "edgetpu")
    got.close()


def test_who_demands_the_edge_tpu_gets_no_cpu(driver: Driver, machine: Machine, twins: ModelFile) -> None:
    machine.pci("0000:01:00.0")
    assert "no driver has taken it" in refusal(driver, twins, accelerator="edgetpu")
    assert refusal(driver, twins, "it has failed", accelerator="edgetpu") == "it needs an Edge TPU, and it has failed"


def test_without_a_twin_there_is_nothing_to_fall_back_to(driver: Driver, machine: Machine, compiled: ModelFile) -> None:
    machine.pci("0000:01:00.0")
    assert "no driver has taken it" in refusal(driver, compiled)
    assert refusal(driver, compiled, "it has failed") == "it needs an Edge TPU, and it has failed"
    assert "but [inference].accelerator is 'cpu'" in refusal(driver, compiled, accelerator="cpu")


def test_a_plain_model_is_degraded_where_an_edge_tpu_is(driver: Driver, machine: Machine) -> None:
    plain = ModelFile(str(DEMO_MODEL), "vibration", "v1")
    assert opened(driver, plain).degraded is None
    machine.usb("1-1")
    assert opened(driver, plain).degraded == NOT_COMPILED
    assert opened(driver, plain, accelerator="cpu").degraded is None
    assert refusal(driver, plain, accelerator="edgetpu").startswith(NOT_COMPILED)


def test_a_library_that_is_missing_is_a_reason_to_fall_back(
    driver: Driver, machine: Machine, twins: ModelFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> list[str]:
        raise OSError("libedgetpu.so.1: cannot open shared object file")

    monkeypatch.setattr(opening, "list_of_driver", missing)
    machine.usb("1-1")
    degraded = opened(driver, twins).degraded
    assert degraded is not None
    assert degraded.startswith("the Edge TPU's library cannot be loaded (libedgetpu.so.1: cannot open")


# ------------------------------------------------------------------------------------------ remarks


def test_a_slow_port_is_remarked_once_the_device_has_its_firmware(
    driver: Driver, machine: Machine, compiled: ModelFile
) -> None:
    driver.numbers = {"usb:0": machine.usb("1-1", firmware=False, speed="5000")}

    def download() -> None:
        node = machine.usb("1-1", speed="480", claimed=True)
        machine.process(os.getpid(), "worker", opens=node)

    driver.after = download
    got = opened(driver, compiled)
    assert got.remarks == (
        "usb:1-1: at 480 Mbit/s it is about 4 times slower than with USB 3; use a USB 3 port and cable",
    )
    got.close()


def test_a_hot_card_is_remarked(driver: Driver, machine: Machine, compiled: ModelFile) -> None:
    driver.numbers = {"pci:0": machine.apex(0, "0000:01:00.0", temp="91200")}
    got = opened(driver, compiled, device_options={"Usb.AlwaysDfu": "True", "Performance": "Max"})
    assert got.remarks == (
        "Usb.AlwaysDfu of device_options has no effect: pci:0000:01:00.0 is not on USB",
        "pci:0000:01:00.0 is at 91 °C: it slows itself down from 85 °C on; it needs better cooling",
    )
    got.close()


def test_the_options_of_the_first_opener_count(driver: Driver, machine: Machine, compiled: ModelFile) -> None:
    driver.numbers = {"usb:0": machine.usb("1-1")}
    first = opened(driver, compiled, device_options={"Performance": "Low"})
    second = opened(driver, compiled, device_options={"Performance": "Max"})
    third = opened(driver, compiled, device_options={"Performance": "Low"})
    assert first.remarks == third.remarks == ()
    assert second.remarks == ("device_options have no effect: usb:1-1 is open already, with Performance Low",)
    for each in (first, second, third):
        each.close()
    fourth = opened(driver, compiled, device_options={"Performance": "Max"})
    assert fourth.remarks == ()
    fourth.close()


# ------------------------------------------------------------------------------------------ with a real runtime

RUN = """
import json, sys
from pathlib import Path
import msgspec
from edge_agent.inference.accelerators.lock import holds_lock
from edge_agent.inference.accelerators.opening import open_accelerator
from edge_agent.inference.protocol import ModelOptions
from edge_agent.inference.refusal import ModelRefused
from edge_agent.inference.runtime.runtimes import find_runtime
from edge_agent.records import ModelFile
model, root, device = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
runtime = find_runtime()
for line in sys.stdin:
    if line == "open\\n":
        try:
            opened = open_accelerator(runtime, ModelFile(model, "m", "v1"), ModelOptions(device=device), root=root)
            interpreter = runtime.interpreter(opened.path, opened.delegates)
            interpreter.allocate_tensors()
            interpreter.invoke()
            answer = [opened.accelerator, opened.device]
        except ModelRefused as refused:
            answer = [str(refused)]
    else:
        opened.close()
        before = holds_lock("usb:1-1", root)
        del interpreter
        answer = [before, holds_lock("usb:1-1", root)]
    print(json.dumps(answer), flush=True)
"""


class Child:
    """A process that opens the Edge TPU through the real `load_delegate`, with the stand-in for the library."""

    def __init__(self, standin: Path, model: ModelFile, root: Path, device: str = "") -> None:
        command = [sys.executable, "-c", RUN, model.path, str(root), device]
        self.process = subprocess.Popen(
            command,
            env=build.environment(standin),
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, what: str) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{what}\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.communicate(timeout=60)


def test_two_processes_never_have_the_same_device(edgetpu_standin: Path, machine: Machine, compiled: ModelFile) -> None:
    machine.usb("1-1")
    with (
        Child(edgetpu_standin, compiled, machine.root) as first,
        Child(edgetpu_standin, compiled, machine.root, "usb:1-1") as second,
    ):
        assert first.ask("open") == ["edgetpu", "usb:1-1"]
        [told] = second.ask("open")
        assert told == f"it needs an Edge TPU, and usb:1-1: process {first.process.pid} has it"
        # The interpreter still has the delegate when `close` returns, and with it the device.
        assert first.ask("close") == [True, False]
        assert second.ask("open") == ["edgetpu", "usb:1-1"]
        second.process.kill()
        second.process.wait()
        assert first.ask("open") == ["edgetpu", "usb:1-1"]


def test_options_for_a_model_that_is_meant_for_the_cpu_are_remarked(driver: Driver, twins: ModelFile) -> None:
    plain = ModelFile(str(DEMO_MODEL), "vibration", "v1")
    for model in (plain, twins):
        got = opened(driver, model, accelerator="cpu", device_options={"Performance": "Low"})
        assert got.remarks == ("device_options have no effect: the model runs on the CPU",)
        assert opened(driver, model, accelerator="cpu").remarks == ()
