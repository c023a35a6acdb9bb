import re
from pathlib import Path

import pytest

from edge_agent.device.identity import IdentityError, boot_id, device_id

MACHINE_ID = "3d1219c7c4c5404aaa1f6d2a48adfda4"


def make(root: Path, name: str, content: str | bytes) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


@pytest.fixture
def state(tmp_path: Path) -> Path:
    (tmp_path / "state").mkdir()
    return tmp_path / "state"


def test_the_configured_id_is_taken_as_it_is(root: Path, state: Path) -> None:
    make(root, "etc/machine-id", MACHINE_ID + "\n")
    assert device_id("edge-001", state_dir=state, root=root) == "edge-001"


def test_the_machine_id_gives_a_stable_id_that_does_not_show_it(root: Path, state: Path) -> None:
    make(root, "etc/machine-id", MACHINE_ID + "\n")
    # This very value: a change of the derivation would rename every device.
    assert device_id(None, state_dir=state, root=root) == "edge-058709270326"
    make(root, "etc/machine-id", MACHINE_ID[:-1] + "5\n")
    assert device_id(None, state_dir=state, root=root) != "edge-058709270326"
    assert not list(state.iterdir())


@pytest.mark.parametrize("unusable", ["", "uninitialized\n", "0" * 32, "3d1219c7", "\xff\xfe", MACHINE_ID.upper()])
def test_an_unusable_machine_id_is_passed_over(unusable: str, root: Path, state: Path) -> None:
    make(root, "var/lib/dbus/machine-id", MACHINE_ID)
    expected = device_id(None, state_dir=state, root=root)
    make(root, "etc/machine-id", unusable)
    assert device_id(None, state_dir=state, root=root) == expected


def test_the_serial_number_of_the_board_comes_next(root: Path, state: Path) -> None:
    make(root, "proc/cpuinfo", "processor\t: 0\n\nHardware\t: BCM2835\nSerial\t\t: 10000000abcdef12\nModel\t: Pi\n")
    from_cpuinfo = device_id(None, state_dir=state, root=root)
    make(root, "proc/device-tree/serial-number", b"10000000abcdef12\0")
    assert device_id(None, state_dir=state, root=root) == from_cpuinfo
    make(root, "proc/device-tree/serial-number", b"10000000abcdef13\0")
    assert device_id(None, state_dir=state, root=root) != from_cpuinfo
    assert not list(state.iterdir())


def test_a_random_id_is_kept_where_nothing_else_is_known(root: Path, state: Path) -> None:
    make(root, "proc/cpuinfo", "processor\t: 0\nSerial\t\t: 0000000000000000\n")
    first = device_id(None, state_dir=state, root=root)
    assert re.fullmatch("edge-[0-9a-f]{12}", first)
    assert device_id(None, state_dir=state, root=root) == first
    assert [path.name for path in state.iterdir()] == ["device-id"]
    (state / "device-id").write_text("edge-")
    assert device_id(None, state_dir=state, root=root) not in {first, "edge-"}


def test_a_state_directory_that_cannot_be_written_says_what_to_do(root: Path, tmp_path: Path) -> None:
    with pytest.raises(IdentityError, match=r"No such file or directory\): set id in the table \[device\]"):
        device_id(None, state_dir=tmp_path / "missing", root=root)


def test_the_boot_id(root: Path) -> None:
    make(root, "proc/sys/kernel/random/boot_id", "0d6e3e6c-5f0e-4a3c-9d0a-7b1f0b7b3c11\n")
    assert boot_id(root) == "0d6e3e6c5f0e4a3c9d0a7b1f0b7b3c11"
    assert re.fullmatch("[0-9a-f]{32}", boot_id())
    assert boot_id() == boot_id()
