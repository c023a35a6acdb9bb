"""Stable names, and the numbers under which libedgetpu knows the devices."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.inference.accelerators.devices import Device, DeviceState, list_devices
from edge_agent.inference.accelerators.names import in_order_of_driver, number_of, opened_here
from edge_agent.inference.runtime.runtimes import LIBRARY
from tests.inference.conftest import ROOT
from tests.standin import build
from tests.standin.sysfs import Machine

# The part of edgetpu_c.h that lists devices; which ones, LISTED says, as TYPE=PATH,TYPE=PATH.
DRIVER = """
#include <stdlib.h>
#include <string.h>
struct edgetpu_device { int type; const char *path; };
static struct edgetpu_device devices[16];
static char text[4096];
struct edgetpu_device *edgetpu_list_devices(size_t *count) {
    strncpy(text, getenv("LISTED"), sizeof text - 1);
    *count = 0;
    for (char *entry = strtok(text, ","); entry != NULL; entry = strtok(NULL, ",")) {
        devices[*count].type = strncmp(entry, "usb=", 4) == 0;
        devices[(*count)++].path = entry + 4;
    }
    return *count ? devices : NULL;
}
void edgetpu_free_devices(struct edgetpu_device *list) { list->path = NULL; }
"""
ASK = """
import json
from edge_agent.inference.accelerators.names import list_of_driver
print(json.dumps(list_of_driver()))
"""


def names(devices: list[Device]) -> list[str]:
    return [device.name for device in devices]


def test_without_being_told_it_is_pcie_first_and_then_what_has_no_firmware(machine: Machine) -> None:
    machine.usb("1-1")
    machine.usb("1-2", firmware=False)
    machine.apex(0, "0000:01:00.0")
    ordered = in_order_of_driver(list_devices(machine.root), [])
    assert names(ordered) == ["pci:0000:01:00.0", "usb:1-2", "usb:1-1"]
    assert [number_of(device, ordered) for device in ordered] == ["pci:0", "usb:0", "usb:1"]
    # The other one has got its firmware: its number is another now, its name is not.
    machine.usb("1-2")
    ordered = in_order_of_driver(list_devices(machine.root), [])
    assert [(device.name, number_of(device, ordered)) for device in ordered] == [
        ("pci:0000:01:00.0", "pci:0"),
        ("usb:1-1", "usb:0"),
        ("usb:1-2", "usb:1"),
    ]


def test_what_libedgetpu_tells_goes_before(machine: Machine) -> None:
    machine.usb("1-1")
    machine.usb("1-2", firmware=False)
    machine.apex(0, "0000:02:00.0")
    machine.apex(1, "0000:01:00.0")
    machine.pci("0000:09:00.0")
    ordered = in_order_of_driver(list_devices(machine.root), ["1-1", "1-2", "apex_1", "apex_0"])
    numbers = {device.name: number_of(device, ordered) for device in ordered if device.node is not None}
    assert numbers == {
        "pci:0000:01:00.0": "pci:0",
        "pci:0000:02:00.0": "pci:1",
        "usb:1-1": "usb:0",
        "usb:1-2": "usb:1",
    }


_DEVICES = st.lists(
    st.builds(
        Device,
        bus=st.sampled_from(["usb", "pci"]),
        address=st.from_regex(r"[1-9]-[1-9](\.[1-9]){0,2}", fullmatch=True),
        node=st.just(Path("/dev/x")) | st.none(),
        state=st.just(DeviceState.READY),
        firmware=st.booleans(),
    ),
    unique_by=lambda device: device.name,
)


@given(_DEVICES, st.lists(st.from_regex(r"[1-9]-[1-9](\.[1-9]){0,2}", fullmatch=True)))
def test_no_two_devices_have_the_same_number(devices: list[Device], listed: list[str]) -> None:
    ordered = in_order_of_driver(devices, listed)
    assert sorted(names(ordered)) == sorted(names(devices))
    numbers = [number_of(device, ordered) for device in ordered if device.node is not None]
    for bus in ("usb", "pci"):
        of_bus = [number for number in numbers if number.startswith(bus)]
        assert of_bus == [f"{bus}:{count}" for count in range(len(of_bus))]


@pytest.mark.parametrize(
    ("listed", "expected"),
    [
        ("", []),
        (
            "usb=/sys/bus/usb/devices/1-1.3,pci=/dev/apex_0,usb=/sys/bus/usb/devices/2-1",
            ["1-1.3", "apex_0", "2-1"],
        ),
    ],
)
def test_libedgetpu_is_asked_for_its_order(tmp_path: Path, listed: str, expected: list[str]) -> None:
    if (reason := build.why_not()) is not None:
        pytest.skip(reason)
    (tmp_path / "driver.c").write_text(DRIVER)
    compiler = os.environ.get("CC") or "cc"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-o", str(tmp_path / LIBRARY), str(tmp_path / "driver.c")], check=True
    )
    environment = os.environ | {"LD_LIBRARY_PATH": str(tmp_path), "LISTED": listed}
    child = subprocess.run(
        [sys.executable, "-c", ASK], env=environment, cwd=ROOT, stdout=subprocess.PIPE, check=True, timeout=60
    )
    assert json.loads(child.stdout) == expected


def test_what_this_process_has_open(machine: Machine) -> None:
    node = machine.usb("1-1")
    machine.usb("1-2")
    devices = list_devices(machine.root)
    assert opened_here(devices) == set()
    with node.open("rb"):
        assert opened_here(devices) == {"usb:1-1"}
    assert opened_here(devices) == set()
