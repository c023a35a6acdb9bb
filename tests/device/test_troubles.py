"""What is trouble, and that it is told of once."""

from dataclasses import replace

import pytest

from edge_agent.device.sensors import Heat, Readings
from edge_agent.device.storage import FileSystem
from edge_agent.device.troubles import CALM_POWER_S, CALM_S, STATES, Troubles
from edge_agent.health import Battery
from edge_agent.testing import Clock

EVERY_S = 10.0
FINE = Readings(
    undervoltage=False,
    cpu=Heat(50.0, 80.0),
    edgetpu=Heat(50.0, 84.8),
    disk=FileSystem(30_000_000_000, 20_000_000_000, read_only=False, device="179:2"),
    battery=Battery(charge_percent=80, status="Discharging"),
)


class Board:
    """A board that is looked at every ten seconds. `told` is what somebody was told of, as component and state."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.troubles = Troubles(self.clock)
        self.told: list[tuple[str, str]] = []
        self.details: list[str] = []

    def look(self, readings: Readings, times: int = 1) -> None:
        for _ in range(times):
            changes = self.troubles.take(readings)
            self.told += [(change.component, change.state) for change in changes]
            self.details += [change.detail for change in changes]
            self.clock.sleep(EVERY_S)


@pytest.fixture
def board() -> Board:
    return Board()


def cpu(celsius: float) -> Readings:
    return replace(FINE, cpu=Heat(celsius, 80.0))


def charge(percent: int, status: str = "Discharging") -> Readings:
    return replace(FINE, battery=Battery(charge_percent=percent, status=status))


def disk(free: int, total: int = 30_000_000_000, *, read_only: bool = False) -> Readings:
    return replace(FINE, disk=FileSystem(total, free, read_only=read_only, device="179:2"))


UNDERVOLTAGE = replace(FINE, undervoltage=True)


def looks(seconds: float) -> int:
    """How many looks it takes until so much time has gone by between the first and the last."""
    return int(seconds / EVERY_S) + 1


def test_all_is_well(board: Board) -> None:
    board.look(FINE, 100)
    assert board.told == []
    assert board.troubles.problems == []


def test_a_board_without_sensors_has_no_trouble(board: Board) -> None:
    board.look(Readings(), 100)
    board.look(Readings(cpu=Heat(99.0, None), edgetpu=Heat(99.0, None)), 100)  # hot, but is it too hot?
    assert board.told == []


def test_undervoltage_that_comes_and_goes_is_one_trouble(board: Board) -> None:
    for _ in range(20):
        board.look(UNDERVOLTAGE)
        board.look(FINE, looks(CALM_POWER_S) - 1)
    assert board.told == [("power", "undervoltage")]
    assert board.troubles.undervoltages == 20
    assert board.troubles.problems[0].startswith("the supply voltage is too low (seen 20 times since the start), so")
    board.look(FINE)
    assert board.told == [("power", "undervoltage"), ("power", "ok")]
    assert board.details[1] == "the supply voltage has been right for 5m"
    assert board.troubles.problems == []
    board.look(UNDERVOLTAGE)
    assert board.told[2:] == [("power", "undervoltage")]


def test_undervoltage_that_lasts_is_seen_once(board: Board) -> None:
    board.look(UNDERVOLTAGE, 30)
    assert board.troubles.undervoltages == 1
    assert "(seen once since the start)" in board.troubles.problems[0]


def test_heat_that_hovers_about_the_limit_is_one_trouble(board: Board) -> None:
    for celsius in [80.0, 79.9, 76.0, 81.0, 75.1] * 20:
        board.look(cpu(celsius))
    assert board.told == [("temperature", "high")]
    board.look(cpu(75.0), looks(CALM_S) - 1)
    board.look(cpu(75.1))  # not yet
    board.look(cpu(75.0), looks(CALM_S) - 1)
    assert board.told == [("temperature", "high")]
    board.look(cpu(75.0))
    assert board.told == [("temperature", "high"), ("temperature", "ok")]
    assert board.details == [
        "the processor is at 80 °C, and slows down from 80 °C on; it needs better cooling",
        "it has been cooler for 1m",
    ]


def test_two_parts_that_are_hot_are_one_trouble(board: Board) -> None:
    board.look(cpu(82.0))
    board.look(replace(cpu(82.0), edgetpu=Heat(90.0, 84.8)))
    assert board.told == [("temperature", "high")]
    edgetpu = "the Edge TPU is at 90 °C, and slows down from 85 °C on; it needs better cooling"
    assert board.troubles.problems == [f"the processor is at 82 °C, and slows down from 80 °C on; {edgetpu}"]
    board.look(replace(FINE, edgetpu=Heat(90.0, 84.8)), looks(CALM_S))
    assert board.told == [("temperature", "high")]
    assert board.troubles.problems == [edgetpu]
    board.look(FINE, looks(CALM_S))
    assert board.told == [("temperature", "high"), ("temperature", "ok")]


@pytest.mark.parametrize(
    ("total", "low", "enough"),
    [
        (8_000_000_000, 399_000_000, 500_000_000),  # a twentieth
        (64_000_000_000, 999_000_000, 1_250_000_000),  # a gigabyte, however large the disk
    ],
)
def test_a_disk_that_is_nearly_full(board: Board, total: int, low: int, enough: int) -> None:
    board.look(disk(low + 2_000_000, total))
    assert board.told == []
    board.look(disk(low, total))
    board.look(disk(enough - 1, total), 100)
    assert board.told == [("disk", "low")]
    board.look(disk(enough, total), looks(CALM_S))
    assert board.told == [("disk", "low"), ("disk", "ok")]
    assert board.details[0].startswith("the disk is nearly full: ")
    assert board.details[0].endswith("are free; delete what is not needed, or lower max_size in [telemetry.queue]")


def test_a_disk_that_has_become_read_only(board: Board) -> None:
    board.look(disk(1))
    board.look(disk(1, read_only=True), 10)
    board.look(disk(1))
    assert board.told == [("disk", "low"), ("disk", "read_only"), ("disk", "low")]


def test_a_battery_that_runs_down(board: Board) -> None:
    board.look(charge(19))
    board.look(charge(24), looks(CALM_S))
    assert board.told == [("battery", "low")]
    assert board.troubles.problems == ["the battery is nearly empty: 24 %; bring the mains supply back"]
    board.look(charge(10, "Charging"), looks(CALM_S))
    assert board.told == [("battery", "low"), ("battery", "ok")]
    board.look(charge(10, "Charging"), 10)
    assert len(board.told) == 2


def test_a_battery_that_does_not_say_whether_it_is_being_charged(board: Board) -> None:
    board.look(replace(FINE, battery=Battery(charge_percent=19)))
    assert board.told == [("battery", "low")]


def test_a_sensor_that_does_not_answer_changes_nothing(board: Board) -> None:
    board.look(UNDERVOLTAGE)
    board.look(Readings(), 1000)
    assert board.told == [("power", "undervoltage")]
    assert len(board.troubles.problems) == 1


def test_problems_come_in_the_order_in_which_they_matter(board: Board) -> None:
    board.look(replace(disk(1, read_only=True), undervoltage=True, battery=charge(3).battery, cpu=Heat(99.0, 80.0)))
    assert [component for component, _ in sorted(board.told, key=lambda each: list(STATES).index(each[0]))] == [*STATES]
    assert [words.split()[1] for words in board.troubles.problems] == ["supply", "processor", "disk", "battery"]
    assert all(state in STATES[component] for component, state in board.told)
