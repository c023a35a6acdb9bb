"""The Edge TPU and its CPU twin in the service's own sandbox, with the stand-in of `tests/standin` for the driver.

A call that the sandbox does not allow kills whoever makes it, here, instead of failing where nobody looks.
"""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from tests.standin import build
from tests.standin.models import edgetpu_model
from tests.system.conftest import ROOT
from tests.system.edgetpu import LIBRARY, PACKAGE, STICK, UsbPort, install_library
from tests.system.machine import UNIT
from tests.system.service import MODEL, Service, settings

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

PLAIN = ROOT / "edge_agent/demo/vibration_classifier.tflite"
COMPILED = "/srv/models/vibration_edgetpu.tflite"
TWIN = "/srv/models/vibration.tflite"
VERDICTS = "/var/lib/edge-agent/runtimes.json"
RUNTIME = f'"ai-edge-litert {version("ai-edge-litert")}"'
VERSION, NEXT_VERSION, OLD_VERSION = "16.0TF2.17.1-1", "16.0TF2.19.1-1", "16.0"
SETTINGS = settings(model=COMPILED)
# Tells whether the device with this name can be locked by another process, and who has it if not.
LOCK = """
import sys
sys.path.insert(0, "/usr/lib/edge-agent")
from edge_agent.inference.accelerators.lock import DeviceLocked, lock_device
try:
    lock_device(sys.argv[1])
except DeviceLocked as error:
    print(error.pid)
else:
    print("free")
"""


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """The stand-in, built on the host."""
    if reason := build.why_not():
        pytest.skip(reason)
    return build.build(tmp_path)


@pytest.fixture
def edge(service: Service, library: Path, tmp_path: Path) -> Service:
    """The service, stopped, with the driver's package, a model for the Edge TPU and its twin, and no device."""
    machine = service.machine
    machine.systemctl("stop", UNIT)
    service.forbid_strictly()
    install_library(machine, library, VERSION)
    (tmp_path / "compiled").write_bytes(
        edgetpu_model((ROOT / "edge_agent/demo/vibration_classifier.tflite").read_bytes())
    )
    machine.run("mkdir", "/srv/models")
    machine.copy_in(tmp_path / "compiled", COMPILED)
    machine.run("cp", MODEL, TWIN)
    return service


def start(service: Service, mode: str = "ok") -> None:
    """Start the service with a driver that finds what is plugged into a `UsbPort`, and behaves as `mode` says."""
    environment = f"EDGETPU_STANDIN_DEVICES=usb={STICK} EDGETPU_STANDIN_MODE={mode}"
    service.machine.configure_unit("standin", f"[Service]\nEnvironment={environment}\n")
    service.start(SETTINGS)


def wait_for_accelerator(service: Service, accelerator: str) -> dict[str, Any]:
    """Wait until the service that runs now works on the Edge TPU or the CPU, and return its latest result's event."""
    service.wait_for_status(f"on {accelerator}")  # the events before its start are still there
    what = f"a result of the {accelerator}"
    events = service.wait_for_events(lambda events: events.of("result")[-1:] and latest(events) == accelerator, what)
    event: dict[str, Any] = events.of("result")[-1]
    return event


def latest(events: Any) -> str:
    """What the newest result was made with."""
    return str(events.of("result")[-1]["accelerator"])


def test_the_edge_tpu_works_in_the_sandbox_and_its_library_may_go_and_come(edge: Service, library: Path) -> None:
    """A device that the kernel does not show, as in a container: libedgetpu alone knows of it."""
    machine = edge.machine
    edge.start(SETTINGS)
    event = wait_for_accelerator(edge, "edgetpu")
    assert "degraded" not in event
    edge.wait_for_status("vibration sha256-", "on edgetpu")
    assert edge.report()["accelerator"]["degraded"] is None

    machine.run("dpkg", "--remove", PACKAGE)
    edge.start()
    event = wait_for_accelerator(edge, "cpu")
    assert "the Edge TPU's library cannot be loaded" in event["degraded"]
    edge.wait_for_status("degraded: ", "libedgetpu1-std", "on cpu")
    assert edge.report()["accelerator"]["degraded"] == event["degraded"]

    install_library(machine, library, NEXT_VERSION)
    machine.systemctl("reload", UNIT)
    wait_for_accelerator(edge, "edgetpu")
    edge.nothing_lost(duplicates=True)
    edge.nothing_forbidden()


def test_a_library_that_does_not_fit_is_found_out_where_the_kernel_shows_no_device(edge: Service) -> None:
    edge.machine.configure_unit("standin", "[Service]\nEnvironment=EDGETPU_STANDIN_MODE=mismatch_segv\n")
    edge.start(SETTINGS)
    event = wait_for_accelerator(edge, "cpu")
    assert f"does not get along with {PACKAGE} {VERSION} at {LIBRARY}" in event["degraded"], edge.journal()
    # It takes one death to find out that there is anything; from then on it is known.
    assert edge.report()["worker"]["deaths"] == 1
    edge.start()
    edge.wait_for_status("does not get along with", "on cpu")
    assert edge.report()["worker"]["deaths"] == 0
    edge.nothing_lost(duplicates=True)
    edge.nothing_forbidden()


def test_a_library_that_does_not_fit_costs_the_edge_tpu_and_not_the_service(edge: Service, library: Path) -> None:
    machine = edge.machine
    UsbPort(machine, "1-1.3").plug()
    start(edge)
    wait_for_accelerator(edge, "edgetpu")
    # What was found out is kept, and tells the package: dpkg-query has been asked in the sandbox.
    edge.start()
    wait_for_accelerator(edge, "edgetpu")
    [verdict] = json.loads(machine.read(VERDICTS))
    assert (verdict["pair"]["library"], verdict["mismatch"]) == (LIBRARY, "")
    assert edge.journal().count("runtime was tried") == 1
    assert f'verdict=works runtime={RUNTIME} library="{PACKAGE} {VERSION} at {LIBRARY}"' in edge.journal()

    install_library(machine, library, OLD_VERSION)
    start(edge, "mismatch_segv")
    event = wait_for_accelerator(edge, "cpu")
    assert f"does not get along with {PACKAGE} {OLD_VERSION} at {LIBRARY}" in event["degraded"], edge.journal()
    assert "SIGSEGV" in event["degraded"]
    assert edge.report()["worker"]["deaths"] == 0
    assert len(json.loads(machine.read(VERDICTS))) == 2
    edge.nothing_lost(duplicates=True)
    edge.nothing_forbidden()


def test_a_stick_that_is_plugged_in_is_locked_and_used_and_missed_when_it_is_gone(edge: Service) -> None:
    machine = edge.machine
    port = UsbPort(machine, "1-1.3")
    start(edge)
    assert "no Edge TPU is plugged in" in wait_for_accelerator(edge, "cpu")["degraded"]
    assert listens_to_uevents(edge)

    port.plug()
    wait_for_accelerator(edge, "edgetpu")
    report = edge.report()["accelerator"]
    assert (report["device"], report["degraded"]) == (port.name, None)
    [device] = report["devices"]
    assert (device["state"], device["in_use"]) == ("ready", True)
    assert machine.run("python3", "-I", "-c", LOCK, port.name).stdout.strip() == str(edge.worker)

    port.unplug()
    assert "no Edge TPU is plugged in" in wait_for_accelerator(edge, "cpu")["degraded"]
    machine.wait_until(
        lambda: machine.run("python3", "-I", "-c", LOCK, port.name).stdout.strip() == "free", "the lock is let go"
    )
    port.plug()
    wait_for_accelerator(edge, "edgetpu")
    events = edge.wait_for_events(lambda events: events.without_hole, "all of them")
    # What the stick did not finish is counted.
    assert {loss["cause"] for loss in events.lost} <= {"sample_failed"}
    edge.nothing_forbidden()


def listens_to_uevents(service: Service) -> bool:
    """Whether the agent has a socket for the messages of the kernel (group 1) and of udev (group 2)."""
    rows = [line.split() for line in service.machine.read("/proc/net/netlink").splitlines()[1:]]
    return any((row[1], int(row[2]), int(row[3], 16)) == ("15", service.pid, 0b11) for row in rows)
