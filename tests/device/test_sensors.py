"""What three boards tell of themselves. The trees are in `tests.device.boards`."""

import os
from collections.abc import Iterator, MutableMapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs

from edge_agent.device.kernelfiles import KernelFiles
from edge_agent.device.sensors import Heat, Sensors
from edge_agent.device.storage import FileSystem, file_system
from edge_agent.health import Battery
from tests.device.boards import AGENT, WORKER, Board

BOTH = {"agent": AGENT, "worker": WORKER}
CARD = FileSystem(total=31_000_000_000, free=12_300_000_000, read_only=False, device="179:2")
STATE = Path("/var/lib/edge-agent")


@pytest.fixture(autouse=True)
def complaints() -> Iterator[list[MutableMapping[str, Any]]]:
    """A board without a sensor is no reason for a line in the log."""
    with capture_logs() as lines:
        yield lines
    assert lines == []


def sensors(board: Board, disk: FileSystem = CARD) -> Sensors:
    return Sensors(STATE, root=board.root, disk=lambda _path: disk)


def survey(board: Board, *, shares: bool = True) -> dict[str, Any]:
    told: dict[str, Any] = msgspec.to_builtins(sensors(board).survey(BOTH, shares=shares))
    return told


def test_a_raspberry_pi_4(tmp_path: Path) -> None:
    assert survey(Board.pi_4(tmp_path)) == {
        "board": "Raspberry Pi 4 Model B Rev 1.5",
        "uptime_s": 86423.51,
        "load_5m": 0.42,
        "processors": 4,
        "cpu_temperature_c": 48.199,
        "undervoltage": False,
        "memory_total_bytes": 3881876 * 1024,
        "memory_available_bytes": 3412020 * 1024,
        "agent_rss_bytes": 70124 * 1024,
        "agent_pss_bytes": 61210 * 1024,
        "worker_rss_bytes": 58012 * 1024,
        "worker_pss_bytes": 47808 * 1024,
        "disk_total_bytes": 31_000_000_000,
        "disk_free_bytes": 12_300_000_000,
        "disk_written_bytes": 431216 * 512,
        "network": [
            {
                "name": "eth0",
                "type": "ethernet",
                "up": True,
                "speed_mbps": 1000,
                "received_bytes": 184467,
                "sent_bytes": 92113,
            },
            {"name": "wlan0", "type": "wifi", "up": False, "received_bytes": 0, "sent_bytes": 0},
        ],
    }


def test_a_raspberry_pi_5_with_an_edge_tpu_a_modem_and_a_battery(tmp_path: Path) -> None:
    assert survey(Board.pi_5(tmp_path)) == {
        "board": "Raspberry Pi 5 Model B Rev 1.0",
        "uptime_s": 512.04,
        "load_5m": 0.88,
        "processors": 4,
        "cpu_temperature_c": 61.6,
        "edgetpu_temperature_c": 52.3,
        "undervoltage": False,
        "memory_total_bytes": 8256448 * 1024,
        "memory_available_bytes": 7012352 * 1024,
        "agent_rss_bytes": 80128 * 1024,
        "agent_pss_bytes": 70016 * 1024,
        "disk_total_bytes": 31_000_000_000,
        "disk_free_bytes": 12_300_000_000,
        "disk_written_bytes": 2000 * 512,
        "battery": {"charge_percent": 81, "status": "Not charging"},
        "network": [
            {"name": "eth0", "type": "ethernet", "up": False, "received_bytes": 0, "sent_bytes": 0},
            {
                "name": "wlan0",
                "type": "wifi",
                "up": True,
                "signal_dbm": -58,
                "received_bytes": 7712031,
                "sent_bytes": 1190034,
            },
            {"name": "wwan0", "type": "cellular", "up": True, "received_bytes": 5120, "sent_bytes": 2048},
        ],
    }


def test_a_coral_dev_board(tmp_path: Path) -> None:
    assert survey(Board.dev_board(tmp_path), shares=False) == {
        "board": "Google i.MX8MQ Phanbell",
        "uptime_s": 3021.77,
        "load_5m": 0.22,
        "processors": 4,
        "cpu_temperature_c": 57.0,
        "edgetpu_temperature_c": 61.05,
        "throttled": False,
        "memory_total_bytes": 1000924 * 1024,
        "memory_available_bytes": 611120 * 1024,
        "agent_rss_bytes": 60000 * 1024,
        "disk_total_bytes": 31_000_000_000,
        "disk_free_bytes": 12_300_000_000,
        "disk_written_bytes": 120000 * 512,
        "disk_life_used_percent": 20,
        "network": [
            {
                "name": "eth0",
                "type": "ethernet",
                "up": True,
                "speed_mbps": 100,
                "received_bytes": 40961,
                "sent_bytes": 10244,
            },
        ],
    }


def test_a_machine_that_tells_nothing_has_nothing(tmp_path: Path) -> None:
    assert survey(Board(tmp_path, {}, {})) == {"disk_total_bytes": CARD.total, "disk_free_bytes": CARD.free}


def test_this_machine_can_be_asked(tmp_path: Path) -> None:
    told = Sensors(tmp_path).survey({"agent": os.getpid()}, shares=True)
    assert isinstance(told.uptime_s, float)
    assert isinstance(told.agent_rss_bytes, int)
    assert isinstance(told.memory_total_bytes, int)
    assert 1_000_000 < told.agent_rss_bytes < told.memory_total_bytes
    assert told.disk_total_bytes == file_system(tmp_path).total


# ------------------------------------------------------------------------------------------ what needs somebody


def test_from_where_on_a_processor_slows_down(tmp_path: Path) -> None:
    pi, coral = Board.pi_4(tmp_path / "pi"), Board.dev_board(tmp_path / "coral")
    assert sensors(pi).look().cpu == Heat(48.199, 80.0)  # its firmware does it, and Linux knows nothing of it
    assert sensors(coral).look().cpu == Heat(57.0, 75.0)
    coral.set("sys/firmware/devicetree/base/model", "another board\0")
    for place in (0, 1):
        coral.set(f"sys/class/thermal/thermal_zone0/trip_point_{place}_type", "active\n")
    assert sensors(coral).look().cpu == Heat(57.0, None)
    assert sensors(coral).look().edgetpu == Heat(61.05, 84.8)


def test_linux_slows_the_processor_down(tmp_path: Path) -> None:
    board = Board.dev_board(tmp_path)
    board.set("sys/class/thermal/cooling_device1/cur_state", "1\n")
    assert sensors(board).look().throttled is True
    board.set("sys/class/thermal/cooling_device1/type", "thermal-cpufreq-0\n")  # as older kernels call it
    assert sensors(board).look().throttled is True


def test_undervoltage_is_told_by_the_driver_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    board = Board.pi_4(tmp_path)
    read: list[str] = []
    text = KernelFiles.text

    def remember(files: KernelFiles, path: str) -> str | None:
        read.append(path)
        return text(files, path)

    monkeypatch.setattr(KernelFiles, "text", remember)
    board.set("sys/class/hwmon/hwmon1/in0_lcrit_alarm", "1\n")
    assert sensors(board).survey(BOTH, shares=True).undervoltage is True
    assert any("in0_lcrit_alarm" in path for path in read)
    # The kernel answers a read of it with a backtrace in its log.
    assert not any("get_throttled" in path for path in read)


def test_the_driver_may_come_later(tmp_path: Path) -> None:
    board = Board.pi_4(tmp_path)
    board.remove("sys/class/hwmon/hwmon1")
    looking = sensors(board)
    assert looking.look().undervoltage is None
    (tmp_path / "sys/class/hwmon/hwmon5").symlink_to(
        "../../devices/platform/soc/soc:firmware/raspberrypi-hwmon/hwmon/hwmon1"
    )
    assert looking.look().undervoltage is False


def test_an_edge_tpu_that_has_died_has_no_temperature(tmp_path: Path) -> None:
    board = Board.dev_board(tmp_path)
    board.set("sys/class/apex/apex_0/temp", "-89700\n")
    assert sensors(board).look().edgetpu is None


def test_of_two_edge_tpus_the_hotter_one_counts(tmp_path: Path) -> None:
    board = Board.dev_board(tmp_path)
    board.set("sys/class/apex/apex_1/temp", "70100\n")  # of a driver that knows no trip points
    assert sensors(board).look().edgetpu == Heat(70.1, None)


@pytest.mark.parametrize(
    ("files", "battery"),
    [
        ({"status": "Unknown\n"}, Battery(charge_percent=81)),
        ({"status": "Discharging\n", "capacity": "7\n"}, Battery(charge_percent=7, status="Discharging")),
        ({"present": "0\n"}, None),
        ({"type": "Mains\n"}, None),
    ],
)
def test_a_battery(tmp_path: Path, files: dict[str, str], battery: Battery | None) -> None:
    board = Board.pi_5(tmp_path)
    for name, text in files.items():
        board.set(f"sys/class/power_supply/battery/{name}", text)
    assert sensors(board).look().battery == battery


@pytest.mark.parametrize(
    ("text", "percent"), [("0x00 0x00", None), ("0x0b 0x01", 110), ("0x01 0x00", 10), ("rubbish", None)]
)
def test_how_worn_an_emmc_is(tmp_path: Path, text: str, percent: int | None) -> None:
    board = Board.dev_board(tmp_path)
    board.set("sys/dev/block/179:2/../device/life_time", f"{text}\n")
    assert survey(board).get("disk_life_used_percent") == percent


def test_the_state_may_be_on_a_whole_disk(tmp_path: Path) -> None:
    board = Board.dev_board(tmp_path)
    (tmp_path / "sys/dev/block/179:0").symlink_to("179:2/..")
    whole = sensors(board, replace(CARD, device="179:0"))
    assert whole.survey({}, shares=False).disk_life_used_percent == 20


def test_a_disk_that_cannot_be_asked_is_absent(tmp_path: Path) -> None:
    def fail(_path: Path) -> FileSystem:
        raise OSError("the disk is gone")

    looking = Sensors(STATE, root=Board.pi_4(tmp_path).root, disk=fail)
    assert looking.look().disk is None
    assert "disk_free_bytes" not in msgspec.to_builtins(looking.survey({}, shares=False))


# ------------------------------------------------------------------------------------------ sensors that fail


def test_a_sensor_that_fails_is_left_out_and_told_of_once(
    tmp_path: Path, complaints: list[MutableMapping[str, Any]]
) -> None:
    board = Board.pi_4(tmp_path)
    board.set("sys/class/thermal/thermal_zone0/temp", "hot\n")
    board.set("sys/class/hwmon/hwmon1/in0_lcrit_alarm", "")
    board.set("proc/uptime", "\n")
    (tmp_path / "proc/loadavg").unlink()
    (tmp_path / "proc/loadavg").mkdir()  # reading it fails, as it does with a device that has gone wrong
    looking = sensors(board)
    for _ in range(3):
        told = msgspec.to_builtins(looking.survey(BOTH, shares=False))
        assert not {"cpu_temperature_c", "undervoltage", "uptime_s", "load_5m"} & set(told)
        assert told["processors"] == 4
    assert len(complaints) == 4
    assert {Path(line["file"]).name: line["reason"] for line in complaints} == {
        "temp": "'hot' is no number",
        "in0_lcrit_alarm": "'' is no number",
        "uptime": "'' has no number 0",
        "loadavg": "Is a directory",
    }
    complaints.clear()
