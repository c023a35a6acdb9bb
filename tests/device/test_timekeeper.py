"""A board's clock, from the start in the past until somebody has set it, and beyond."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge_agent.device.boots import Boots
from edge_agent.device.clock import Clock
from edge_agent.device.timekeeper import Timekeeper
from edge_agent.device.timeservice import TimeService

S = 1_000_000_000
DAY = 86_400
NOW = 1_800_000_000  # 2027-01-15
SERVER = "storage.googleapis.com"


class Service(TimeService):
    """What the system says: of timesyncd, of the kernel, and by way of D-Bus. None: it must not be asked."""

    def __init__(self) -> None:
        self.file = False
        self.kernel_says: bool | None = None
        self.bus_says: bool | None = None
        self.asked = 0

    def timesyncd(self) -> bool:
        return self.file

    def kernel(self) -> bool | None:
        return self.kernel_says

    async def timedated(self) -> bool | None:
        self.asked += 1
        return self.bus_says


class Board:
    """A board whose time passes only when it is told to; `reboot` begins another boot with the same disk."""

    def __init__(self, folder: Path, wall: int) -> None:
        self.path = folder / "boots.json"
        self.service = Service()
        self.boots_so_far = 0
        self.jumps_in_sleep = 0
        self.reboot(wall)

    def reboot(self, wall: int) -> None:
        self.boots_so_far += 1
        self.boot_id = f"boot-{self.boots_so_far}"
        self.monotonic = 100 * S
        self.wall = wall * S
        self.restart()

    def restart(self) -> None:
        """Start the agent again."""
        self.told: list[tuple[str, str]] = []
        self.naps: list[float] = []
        self.clock = Clock(monotonic_ns=lambda: self.monotonic, time_ns=lambda: self.wall)
        self.keeper = Timekeeper(
            self.clock,
            Boots(self.path),
            boot_id=self.boot_id,
            on_change=lambda state, detail: self.told.append((state, detail)),
            service=self.service,
            sleep=self._sleep,
            monotonic=lambda: self.monotonic / S,
        )

    async def _sleep(self, seconds: float) -> None:
        self.naps.append(seconds)
        if self._left == 0:
            self._done.set()
            await asyncio.Event().wait()
        self._left -= 1
        self.pass_time(seconds)
        self.wall += self.jumps_in_sleep * S
        self.jumps_in_sleep = 0

    def pass_time(self, seconds: float) -> None:
        self.monotonic += int(seconds * S)
        self.wall += int(seconds * S)

    def run(self, rounds: int = 0) -> None:
        """Run the timekeeper for so many sleeps."""
        self._left = rounds
        asyncio.run(self._run())

    async def _run(self) -> None:
        self._done = asyncio.Event()
        self.keeper._wake = asyncio.Event()  # each run has a loop of its own
        self.clock.now_ms()
        task = asyncio.create_task(self.keeper.run())
        await self._done.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    @property
    def states(self) -> list[str]:
        return [state for state, _ in self.told]

    @property
    def written(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.path.read_text())
        return found


@pytest.fixture
def board(tmp_path: Path) -> Board:
    """A board without a clock battery, in 1970."""
    return Board(tmp_path, wall=100)


def timesyncd_sets_the_clock(board: Board) -> None:
    board.wall = NOW * S
    board.service.file = board.service.bus_says = True


def chrony_sets_the_clock_and_the_kernel_may_be_asked(board: Board) -> None:
    board.wall = NOW * S
    board.service.kernel_says = True


def chrony_sets_the_clock_in_a_sandbox(board: Board) -> None:
    board.wall = NOW * S
    board.service.bus_says = True


WAYS = [
    timesyncd_sets_the_clock,
    chrony_sets_the_clock_and_the_kernel_may_be_asked,
    chrony_sets_the_clock_in_a_sandbox,
]


@pytest.mark.parametrize("set_clock", WAYS)
def test_a_clock_set_by_the_network_is_believed_and_dates_this_boot(
    board: Board, set_clock: Callable[[Board], None]
) -> None:
    board.run(3)
    assert board.clock.time_source() == "unverified"
    assert board.keeper.doubt == "the clock is not set yet: it says 1970-01-01, which is over"
    assert board.keeper.offset_ms("boot-1") is None
    assert not board.path.exists()

    set_clock(board)
    board.run()
    assert board.clock.time_source() == "synchronized"
    assert board.keeper.doubt == ""
    assert board.keeper.offset_ms("boot-1") == NOW * 1000 - board.monotonic // 1_000_000
    assert board.told == [("set", "the clock is set; it was moved 20833d7h57m50s forwards")]
    assert board.written == {"newest_ms": NOW * 1000, "boots": {"boot-1": board.keeper.offset_ms("boot-1")}}


@pytest.mark.parametrize("set_clock", WAYS)
def test_nothing_goes_out_undated_between_the_step_and_the_word_of_who_made_it(
    board: Board, set_clock: Callable[[Board], None]
) -> None:
    board.run(3)
    board.wall = NOW * S
    unconfirmed = "the clock was moved a moment ago, and nothing has confirmed it yet"
    assert board.keeper.doubt == unconfirmed, "although nobody but the sender has looked yet"
    board.run(1)
    assert board.keeper.doubt == unconfirmed
    set_clock(board)
    board.run(1)
    assert board.keeper.doubt == ""
    assert board.keeper.offset_ms("boot-1") is not None


def test_a_clock_that_was_set_by_hand_holds_events_up_for_a_minute(board: Board) -> None:
    board.run(3)
    board.wall = NOW * S
    assert board.keeper.doubt
    board.run(6)
    assert board.keeper.doubt == ""
    assert board.clock.time_source() == "unverified"


def test_what_nobody_has_moved_is_told_without_a_distance(board: Board) -> None:
    board.reboot(NOW)
    board.run()
    board.service.file = True
    board.run()
    assert board.told == [("set", "the clock is set")]


def test_a_clock_that_is_set_at_the_start_is_believed_at_once_and_quietly(board: Board) -> None:
    board.service.file = True
    board.reboot(NOW)
    assert board.clock.time_source() == "synchronized"
    board.run()
    assert board.told == []
    assert board.written["newest_ms"] == NOW * 1000
    assert board.service.asked == 0


def test_it_looks_every_ten_seconds_and_asks_the_bus_ever_more_rarely(board: Board) -> None:
    board.service.bus_says = False
    board.run(60)
    assert set(board.naps) == {10.0}
    assert board.service.asked == 6  # after 0, 10, 30, 70, 150 and 310 s
    board.wall += 3600 * S
    board.run()
    assert board.service.asked == 7, "a clock that was moved is a reason to ask at once"


def test_where_the_kernel_may_be_asked_the_bus_is_left_alone(board: Board) -> None:
    board.service.kernel_says = False
    board.service.bus_says = True
    board.run(5)
    assert board.service.asked == 0
    assert board.clock.time_source() == "unverified"


def test_once_set_it_sleeps_and_keeps_the_time_once_a_day(board: Board) -> None:
    board.service.file = True
    board.reboot(NOW)
    board.run(2)
    assert board.naps == [DAY] * 3
    assert board.written["newest_ms"] == (NOW + 2 * DAY) * 1000


def test_a_restart_of_the_agent_believes_what_was_known_in_this_boot(board: Board) -> None:
    timesyncd_sets_the_clock(board)
    board.run()
    # chrony does not make the file, and after nine hours without a network the kernel does not vouch for it any more.
    board.service = Service()
    board.pass_time(30 * DAY)
    board.wall += 60 * S  # a bad quartz
    board.restart()
    assert board.clock.time_source() == "synchronized"
    board.restart()
    board.wall += 3600 * S
    board.restart()
    assert board.clock.time_source() == "unverified"


@pytest.mark.parametrize("to", [0, NOW - 3600, NOW + 3600, 2**31 + DAY, 4_102_444_800])
def test_a_clock_moved_by_hand_is_not_believed_but_what_was_known_still_dates_events(board: Board, to: int) -> None:
    timesyncd_sets_the_clock(board)
    board.run()
    known = board.keeper.offset_ms("boot-1")
    board.told.clear()

    board.service.bus_says = False  # the kernel takes it as not set; timesyncd's file is still there
    board.wall = to * S
    board.run(1)
    assert board.clock.time_source() == "unverified"
    assert board.states == ["jumped"]
    assert ("backwards" if to < NOW else "forwards") in board.told[0][1]
    assert board.keeper.offset_ms("boot-1") == known
    assert board.keeper.doubt == "", "events of this boot can be dated, whatever the clock says"

    board.service.bus_says = True
    board.wall = (NOW + 100) * S
    board.run()
    assert board.states == ["jumped", "set"]
    assert board.clock.time_source() == "synchronized"


def test_a_jump_that_nobody_has_noticed_yet_is_not_kept(board: Board) -> None:
    timesyncd_sets_the_clock(board)
    board.run()
    known = board.keeper.offset_ms("boot-1")
    board.service.bus_says = False
    board.jumps_in_sleep = 3600
    board.run(1)
    board.run()
    assert board.written["boots"]["boot-1"] == known
    assert board.states == ["set", "jumped"]


def test_a_step_of_the_time_service_itself_dates_anew(board: Board) -> None:
    timesyncd_sets_the_clock(board)
    board.run()
    before = board.keeper.offset_ms("boot-1")
    assert before is not None
    board.wall += 5 * S
    board.run()
    assert board.states == ["set", "jumped", "set"]
    assert board.keeper.offset_ms("boot-1") == before + 5000
    assert board.written["boots"]["boot-1"] == before + 5000


def test_without_a_bus_the_file_decides_after_a_jump_too(board: Board) -> None:
    board.service.file = True
    board.reboot(NOW)
    board.wall += 3600 * S
    board.run()
    assert board.clock.time_source() == "synchronized"


def test_a_clock_before_what_has_passed_cannot_be_right(board: Board) -> None:
    timesyncd_sets_the_clock(board)
    board.run()
    board.service = Service()
    board.reboot(NOW - 30 * DAY)
    assert board.keeper.doubt == "the clock is not set yet: it says 2026-12-16, which is over"
    board.reboot(NOW - 3600)  # what the system saves of the time is not as new
    assert board.keeper.doubt == ""
    assert board.clock.time_source() == "unverified"


def test_a_clock_that_was_set_wrongly_is_no_standard_for_ever(board: Board) -> None:
    board.service.file = True
    board.reboot(NOW + 5000 * DAY)
    board.run()
    board.reboot(NOW)
    board.run()
    board.service = Service()
    board.reboot(NOW + 10)
    assert board.keeper.doubt == ""


def test_earlier_boots_stay_dated(board: Board) -> None:
    timesyncd_sets_the_clock(board)
    board.run()
    known = board.keeper.offset_ms("boot-1")
    board.service = Service()
    board.reboot(50)
    assert board.keeper.offset_ms("boot-1") == known
    assert board.keeper.offset_ms("boot-2") is None


def test_a_disk_that_cannot_be_written_is_told_and_tried_again_a_day_later(
    board: Board, capsys: pytest.CaptureFixture[str]
) -> None:
    board.service.file = True
    board.reboot(NOW)
    board.path.with_name("boots.json.new").mkdir()
    board.run(0)
    assert capsys.readouterr().out.count("cannot be kept") == 1
    assert board.naps == [DAY]
    assert board.clock.time_source() == "synchronized"
    board.path.with_name("boots.json.new").rmdir()
    board.pass_time(DAY)
    board.run()
    assert board.written["newest_ms"] == (NOW + DAY) * 1000


def test_a_server_that_says_otherwise_is_told_once_and_when_it_agrees_again(board: Board) -> None:
    board.service.file = True
    board.reboot(NOW)
    for skew in (0.0, -29.0, 7200.0, 7201.0):
        board.keeper.compare(SERVER, skew)
    assert board.keeper.skew == f"the clock is 2h1s behind {SERVER}"
    assert board.states == ["skewed"]
    assert "timedatectl set-ntp true" in board.told[0][1]
    board.keeper.compare(SERVER, -90.0)
    assert board.keeper.skew == f"the clock is 1m30s ahead of {SERVER}"
    board.keeper.compare(SERVER, 1.0)
    assert board.keeper.skew == ""
    assert board.states == ["skewed", "ok"]


def test_a_clock_that_was_set_right_since_is_not_skewed_any_more(board: Board) -> None:
    board.reboot(NOW)
    board.keeper.compare(SERVER, 7200.0)
    board.wall += 7200 * S
    board.service.file = True
    board.run()
    assert board.states == ["skewed", "ok", "set"]
    assert board.keeper.skew == ""
