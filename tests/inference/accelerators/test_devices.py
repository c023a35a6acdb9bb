"""Edge TPUs as sysfs shows them, and reasons that libedgetpu does not give."""

from pathlib import Path
from typing import Any

import pytest

from edge_agent.inference.accelerators.devices import (
    GET_LIBRARY,
    explain_failure,
    find_library,
    is_edgetpu_model,
    list_devices,
)
from edge_agent.inference.runtimes import LIBRARY


def add_usb(root: Path, name: str, vendor: str, product: str, number: str = "7") -> Path:
    entry = root / "sys/bus/usb/devices" / name
    entry.mkdir(parents=True)
    for file, text in {"idVendor": vendor, "idProduct": product, "busnum": "2", "devnum": number}.items():
        (entry / file).write_text(text + "\n")
    node = root / "dev/bus/usb/002" / number.zfill(3)
    node.parent.mkdir(parents=True, exist_ok=True)
    node.touch()
    return node


def test_devices_are_found_before_and_after_their_firmware(tmp_path: Path) -> None:
    (tmp_path / "sys/class/apex/apex_0").mkdir(parents=True)
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/apex_0").touch()
    add_usb(tmp_path, "2-1", "1a6e", "089a")
    add_usb(tmp_path, "2-2", "18d1", "9302", "8")
    add_usb(tmp_path, "2-3", "046d", "c31c", "9")

    devices = list_devices(tmp_path)

    assert [(device.bus, device.name) for device in devices] == [("pci", "apex_0"), ("usb", "2-1"), ("usb", "2-2")]
    assert devices[2].node == tmp_path / "dev/bus/usb/002/008"
    assert all(device.accessible for device in devices)


def test_no_devices_on_a_machine_without_the_trees(tmp_path: Path) -> None:
    assert list_devices(tmp_path) == []


def test_reasons_are_words_a_person_can_act_on(tmp_path: Path) -> None:
    failed = ValueError("Failed to load delegate from libedgetpu.so.1")
    assert explain_failure(failed, "", []) == "no Edge TPU is plugged in"
    add_usb(tmp_path, "2-1", "1a6e", "089a")
    devices = list_devices(tmp_path)
    assert explain_failure(failed, "pci:0", devices) == "there is no Edge TPU at 'pci:0'; there is usb 2-1"
    assert "another process may hold it" in explain_failure(failed, "usb:0", devices)
    missing = OSError("libedgetpu.so.1: cannot open shared object file: No such file or directory")
    told = explain_failure(missing, "", devices)
    assert told == f"the Edge TPU's library cannot be loaded ({missing}); {GET_LIBRARY}"
    usb = OSError("libusb-1.0.so.0: cannot open shared object file")
    assert "install the package libusb-1.0-0" in explain_failure(usb, "", devices)


def test_a_forbidden_device_names_the_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = add_usb(tmp_path, "2-1", "1a6e", "089a")
    # Root may open everything, so the question itself is answered for it.
    monkeypatch.setattr("os.access", lambda *_: False)
    reason = explain_failure(ValueError("Failed to load delegate"), "", list_devices(tmp_path))
    assert reason == f"no permission to open {node}; the user needs the group {node.group()}"


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
