"""Edge TPUs as the kernel shows them, their states, and reasons that libedgetpu does not give."""

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.inference.accelerators.devices import (
    _GASKET,
    GET_LIBRARY,
    Device,
    DeviceState,
    absent,
    explain_failure,
    find_library,
    is_edgetpu_model,
    list_devices,
    matching,
)
from edge_agent.inference.accelerators.lock import lock_device
from edge_agent.inference.runtime.runtimes import LIBRARY
from tests.standin.sysfs import Machine

FAILED = ValueError("Failed to load delegate from libedgetpu.so.1")


def only(machine: Machine) -> Device:
    [device] = list_devices(machine.root)
    return device


# ------------------------------------------------------------------------------------------ what is there


def test_no_devices_on_a_machine_without_the_trees(tmp_path: Path) -> None:
    assert list_devices(tmp_path) == []


def test_other_devices_are_none(machine: Machine) -> None:
    machine.usb("2-1", ids=("046d", "c31c"))
    machine.usb("2-2", ids=("18d1", "4ee7"))  # a telephone of Google's
    machine.pci("0000:02:00.0", ids=("0x8086", "0x089a"))
    assert list_devices(machine.root) == []


def test_all_are_found_with_names_that_stay(machine: Machine) -> None:
    first = machine.usb("1-1.3", firmware=False)
    second = machine.usb("1-1.4")
    apex = machine.apex(1, "0000:01:00.0")
    bare = machine.apex(0, "0001:04:00.0")

    devices = list_devices(machine.root)

    assert [(device.name, device.node, device.firmware) for device in devices] == [
        ("pci:0001:04:00.0", bare, True),
        ("pci:0000:01:00.0", apex, True),
        ("usb:1-1.3", first, False),
        ("usb:1-1.4", second, True),
    ]
    assert all(device.usable for device in devices)
    # Once it has its firmware, a stick is another USB device, but stands where it stood.
    node = machine.usb("1-1.3")
    assert node != first
    assert [device.name for device in list_devices(machine.root) if device.node == node] == ["usb:1-1.3"]


def test_a_dev_board_whose_device_cannot_be_placed_has_the_name_of_its_node(machine: Machine) -> None:
    machine.apex(0, "0000:01:00.0")
    (machine.root / "sys/class/apex/apex_0/device").unlink()
    assert "pci:apex_0" in [device.name for device in list_devices(machine.root)]


def test_a_device_that_goes_away_while_it_is_looked_at_is_gone(machine: Machine) -> None:
    machine.usb("1-1")
    (machine.root / "sys/bus/usb/devices/1-1/devnum").unlink()
    assert list_devices(machine.root) == []


# ------------------------------------------------------------------------------------------ how it is


def test_ready(machine: Machine) -> None:
    machine.usb("1-1.3")
    device = only(machine)
    assert (device.state, device.detail, device.speed) == (DeviceState.READY, "", 5000)
    assert (device.temperature, device.owner) == (None, None)
    assert str(device) == "usb:1-1.3 (ready)"


def test_an_apex_tells_its_temperature_and_no_speed(machine: Machine) -> None:
    machine.apex(0, "0000:01:00.0")
    device = only(machine)
    assert (device.state, device.detail, device.speed, device.temperature) == (DeviceState.READY, "", None, 54.3)


@pytest.mark.parametrize("missing", [{"temp": None}, {"status": None}, {"trip_point0_temp": None}, {"temp": "?"}])
def test_what_a_driver_does_not_tell_is_not_made_up(machine: Machine, missing: dict[str, str | None]) -> None:
    machine.apex(0, "0000:01:00.0", **missing)
    device = only(machine)
    assert device.state is DeviceState.READY
    assert device.temperature == (None if "temp" in missing else 54.3)


def test_without_firmware(machine: Machine) -> None:
    machine.usb("1-1", firmware=False, speed="480")
    device = only(machine)
    assert (device.state, device.usable) == (DeviceState.NO_FIRMWARE, True)
    assert device.detail == "it gets its firmware when a model is put on it"


@pytest.mark.parametrize(("speed", "slow"), [("12", True), ("480", True), ("5000", False), ("10000", False)])
def test_a_slow_port_is_told_of(machine: Machine, speed: str, slow: bool) -> None:
    machine.usb("1-1", speed=speed)
    device = only(machine)
    assert (device.state, device.speed) == (DeviceState.READY, int(speed))
    assert ("4 times slower than with USB 3" in device.detail) is slow


def test_a_speed_that_is_not_known_is_none(machine: Machine) -> None:
    machine.usb("1-1", speed="unknown")
    assert (only(machine).speed, only(machine).detail) == (None, "")


@pytest.mark.parametrize(
    ("temp", "state"),
    [("84799", DeviceState.READY), ("84800", DeviceState.THROTTLED), ("99000", DeviceState.THROTTLED)],
)
def test_from_its_first_trip_point_on_it_is_throttled(machine: Machine, temp: str, state: DeviceState) -> None:
    machine.apex(0, "0000:01:00.0", temp=temp)
    device = only(machine)
    assert (device.state, device.temperature, device.usable) == (state, int(temp) / 1000, True)
    told = "it slows itself down from 85 °C on; it needs better cooling"
    assert device.detail == (told if state is DeviceState.THROTTLED else "")


@pytest.mark.parametrize(
    ("attributes", "told"),
    [
        ({"temp": "-89700"}, "it does not answer, and reads -90 °C; "),
        ({"status": "DEAD"}, "it does not work: its driver says DEAD; "),
        ({"status": "LAMED"}, "it does not work: its driver says LAMED; "),
        ({"status": "DEAD", "is_device_owned": "1", "device_owner": "812"}, "it does not work: its driver says DEAD; "),
    ],
)
def test_stuck(machine: Machine, attributes: dict[str, str], told: str) -> None:
    machine.apex(0, "0000:01:00.0", **attributes)
    device = only(machine)
    assert (device.state, device.usable) == (DeviceState.STUCK, False)
    assert device.temperature == (None if attributes.get("temp") == "-89700" else 54.3)
    assert device.detail == f"{told}switch the machine off and on; a restart alone does not cut its power"


def test_a_device_that_cannot_even_be_read_is_stuck(machine: Machine) -> None:
    machine.apex(0, "0000:01:00.0", status=None)
    (machine.root / "sys/class/apex/apex_0/status").mkdir()
    device = only(machine)
    assert device.state is DeviceState.STUCK
    assert "its status cannot be read ([Errno 21] Is a directory" in device.detail


@pytest.mark.parametrize(
    ("driver", "told"),
    [
        ("", f"no driver has taken it; install gasket-dkms ({_GASKET}), then run modprobe apex"),
        ("apex", "its driver, apex, could not start it; see dmesg, and switch the machine off and on"),
        ("vfio-pci", "the driver vfio-pci has it, most likely for a virtual machine; give it to apex"),
    ],
)
def test_a_card_without_its_driver(machine: Machine, driver: str, told: str) -> None:
    machine.apex(0, "0000:01:00.0")
    machine.pci("0000:05:00.0", driver=driver)
    device = list_devices(machine.root)[1]
    assert (device.name, device.state, device.usable) == ("pci:0000:05:00.0", DeviceState.NO_DRIVER, False)
    assert (device.node, device.detail) == (None, told)


@pytest.mark.parametrize("group", ["plugdev", "root"])
def test_a_forbidden_device_names_who_may(machine: Machine, monkeypatch: pytest.MonkeyPatch, group: str) -> None:
    node = machine.usb("2-1")
    # Root may open everything, so the question itself is answered for it.
    monkeypatch.setattr("os.access", lambda *_: False)
    monkeypatch.setattr(type(node), "group", lambda _: group)
    device = only(machine)
    assert (device.state, device.usable) == (DeviceState.NO_PERMISSION, False)
    assert (
        device.detail
        == {
            "plugdev": f"no permission to open {node}; the user needs the group plugdev",
            "root": (
                f"no permission to open {node}: no udev rule gives it to a group; install the rules of the package "
                "edge-agent or libedgetpu1-std, then plug it in again"
            ),
        }[group]
    )


def test_a_container_without_the_device_file(machine: Machine) -> None:
    node = machine.apex(0, "0000:01:00.0")
    node.unlink()
    device = only(machine)
    assert device.state is DeviceState.NO_PERMISSION
    assert device.detail == f"its device file {node} is not there; a container has to be given it"


# ------------------------------------------------------------------------------------------ who has it


def test_a_stick_that_another_program_has_is_busy(machine: Machine) -> None:
    node = machine.usb("1-1", claimed=True)
    machine.process(811, "python3 -m idle", opens=Path("/dev/null"))
    machine.process(812, "python3 -m frigate", opens=node)
    device = only(machine)
    assert (device.state, device.usable) == (DeviceState.BUSY, False)
    assert device.owner == "process 812 (python3 -m frigate)"
    assert device.detail == (
        "process 812 (python3 -m frigate) has it open; stop that, or name another Edge TPU in [inference].device"
    )


def test_somebody_elses_process_cannot_be_looked_into(machine: Machine) -> None:
    machine.usb("1-1", claimed=True)
    assert only(machine).owner == "another program"


def test_an_edge_agent_of_somebody_else_is_known_by_its_lock(machine: Machine) -> None:
    machine.usb("1-1", claimed=True)
    lock = lock_device("usb:1-1", machine.root)
    try:
        assert only(machine).owner == "this service"
    finally:
        lock.release()
    assert only(machine).owner == "another program"


@pytest.mark.parametrize("child", [True, False])
def test_what_this_service_has_is_not_busy(machine: Machine, child: bool) -> None:
    node = machine.usb("1-1", claimed=True)
    if child:
        machine.process(4711, "edge-agent-worker", parent=os.getpid(), opens=node)
    else:
        machine.process(os.getpid(), "edge-agent", opens=node)
    device = only(machine)
    assert (device.state, device.owner, device.usable) == (DeviceState.READY, "this service", True)


@pytest.mark.parametrize(
    ("owner", "told"), [("812", "process 812 (frigate)"), ("99", "process 99"), ("0", "another program")]
)
def test_an_apex_says_itself_who_has_it(machine: Machine, owner: str, told: str) -> None:
    machine.apex(0, "0000:01:00.0", is_device_owned="1", device_owner=owner, temp="99000")
    machine.process(812, "frigate")
    device = only(machine)
    assert (device.state, device.owner) == (DeviceState.BUSY, told)


def test_in_a_container_the_number_of_the_driver_is_that_of_nobody_here(machine: Machine) -> None:
    node = machine.apex(0, "0000:01:00.0", is_device_owned="1", device_owner="812")
    machine.process(os.getpid(), "edge-agent-worker", opens=node)
    device = only(machine)
    assert (device.state, device.owner) == (DeviceState.READY, "this service")


def test_a_long_command_is_cut(machine: Machine) -> None:
    machine.apex(0, "0000:01:00.0", is_device_owned="1", device_owner="812")
    machine.process(812, "python3 " + "x" * 100)
    assert only(machine).owner == f"process 812 (python3 {'x' * 51}…)"


# ------------------------------------------------------------------------------------------ what the settings mean


def made(name: str, **more: Any) -> Device:
    bus, _, address = name.partition(":")
    return Device(bus=bus, address=address, node=Path("/dev", address), state=DeviceState.READY, **more)


FOUR = [made("pci:0000:01:00.0"), made("pci:0000:02:00.0"), made("usb:1-1"), made("usb:1-1.4.2")]


@pytest.mark.parametrize(
    ("wanted", "meant"),
    [
        ("", [0, 1, 2, 3]),
        ("usb", [2, 3]),
        ("pci", [0, 1]),
        (":0", [0]),
        (":2", [2]),
        (":4", []),
        ("usb:0", [2]),
        ("usb:1", [3]),
        ("usb:2", []),
        ("pci:1", [1]),
        ("usb:1-1", [2]),
        ("usb:1-1.4.2", [3]),
        ("usb:1-1.4", []),
        ("pci:0000:02:00.0", [1]),
        ("pci:02:00.0", [1]),
        ("pci:03:00.0", []),
    ],
)
def test_what_a_setting_means(wanted: str, meant: list[int]) -> None:
    assert matching(wanted, FOUR) == [FOUR[number] for number in meant]


def test_a_card_without_driver_has_no_number() -> None:
    bare = Device(bus="pci", address="0000:00:00.0", node=None, state=DeviceState.NO_DRIVER)
    assert matching("pci:0", [bare, *FOUR]) == [FOUR[0]]
    assert bare in matching("pci", [bare, *FOUR])


@given(st.permutations(FOUR), st.data())
def test_every_device_can_be_named(devices: list[Device], data: st.DataObject) -> None:
    device = data.draw(st.sampled_from(devices))
    assert matching(device.name, devices) == [device]
    assert matching(f":{devices.index(device)}", devices) == [device]


def test_a_device_that_is_not_there_says_what_is() -> None:
    gone = absent("usb:2-7", FOUR[:2])
    assert str(gone) == "usb:2-7: it is not plugged in; there is pci:0000:01:00.0, pci:0000:02:00.0"
    assert (gone.state, gone.usable) == (DeviceState.ABSENT, False)
    assert absent("usb:2-7", []).detail == "no Edge TPU is plugged in"


# ------------------------------------------------------------------------------------------ why it cannot be opened


def test_every_state_has_its_reason(machine: Machine) -> None:
    assert explain_failure(FAILED, "", []) == "no Edge TPU is plugged in"
    node = machine.usb("1-1", claimed=True)
    machine.process(812, "frigate", opens=node)
    machine.apex(0, "0000:01:00.0", status="DEAD")
    devices = list_devices(machine.root)
    assert explain_failure(FAILED, "usb:2", devices) == (
        "there is no Edge TPU at 'usb:2'; there is pci:0000:01:00.0, usb:1-1"
    )
    assert explain_failure(FAILED, "usb:1-1", devices) == str(devices[1])
    assert explain_failure(FAILED, "", devices) == f"{devices[0]}; {devices[1]}"
    machine.usb("1-2")
    told = explain_failure(FAILED, "", list_devices(machine.root))
    assert told.startswith("usb:1-2 is there, but libedgetpu could not open it; plug it in again")
    assert "Failed to load delegate" not in told


def test_a_library_that_is_missing_is_told_of(machine: Machine) -> None:
    missing = OSError("libedgetpu.so.1: cannot open shared object file: No such file or directory")
    told = explain_failure(missing, "", [])
    assert told == f"the Edge TPU's library cannot be loaded ({missing}); {GET_LIBRARY}"
    usb = OSError("libusb-1.0.so.0: cannot open shared object file")
    assert "install the package libusb-1.0-0" in explain_failure(usb, "", [])


# ------------------------------------------------------------------------------------------ the library and the model


@pytest.mark.parametrize(
    "folder",
    [
        "usr/lib/aarch64-linux-gnu",
        "usr/lib/x86_64-linux-gnu",
        "usr/lib/arm-linux-gnueabihf",
        "usr/lib",
        "usr/local/lib",
    ],
)
def test_the_library_is_found_where_packages_put_it(tmp_path: Path, folder: str) -> None:
    library = tmp_path / folder / LIBRARY
    library.parent.mkdir(parents=True)
    assert find_library(tmp_path) is None
    (library.parent / "libedgetpu.so.1.0").touch()
    library.symlink_to("libedgetpu.so.1.0")
    assert find_library(tmp_path) == str(library)


def test_a_library_of_ones_own_comes_before_that_of_a_package(tmp_path: Path) -> None:
    for folder in ("usr/local/lib", "usr/lib/x86_64-linux-gnu"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / LIBRARY).touch()
    assert find_library(tmp_path) == str(tmp_path / "usr/local/lib" / LIBRARY)


@pytest.mark.parametrize(("content", "expected"), [(b"", False), (b"abc", False), (b"xx edgetpu-custom-op xx", True)])
def test_a_compiled_model_is_told_by_its_operator(tmp_path: Path, content: Any, expected: Any) -> None:
    file = tmp_path / "model.tflite"
    file.write_bytes(content)
    assert is_edgetpu_model(str(file)) is expected
