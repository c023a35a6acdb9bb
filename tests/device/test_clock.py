import time

import pytest

from edge_agent.device.clock import Clock

S = 1_000_000_000


class Board:
    """The two clocks of a board. `stops` are pauses of the process (ns), one after each look at a clock."""

    def __init__(self) -> None:
        self.monotonic = 100 * S
        self.wall = 1_800_000_000 * S
        self.stops: list[int] = []

    def pass_time(self, seconds: float) -> None:
        self.monotonic += int(seconds * S)
        self.wall += int(seconds * S)

    def clock(self) -> Clock:
        return Clock(monotonic_ns=self.ask_monotonic, time_ns=self.ask_wall)

    def ask_monotonic(self) -> int:
        now = self.monotonic
        self._stop()
        return now

    def ask_wall(self) -> int:
        now = self.wall
        self._stop()
        return now

    def _stop(self) -> None:
        if self.stops:
            self.pass_time(self.stops.pop(0) / S)


@pytest.fixture
def board() -> Board:
    return Board()


def test_a_capture_gets_its_wall_clock_time(board: Board) -> None:
    assert board.clock().wall_ms(98 * S) == 1_800_000_000_000 - 2000


def test_a_capture_before_the_clock_was_set_is_timed_by_the_clock_as_it_is_now(board: Board) -> None:
    board.wall = 7 * S
    clock = board.clock()
    board.pass_time(60)
    board.wall = 1_800_000_000 * S
    assert clock.wall_ms(100 * S) == (1_800_000_000 - 60) * 1000


def test_the_real_clocks_agree_with_each_other() -> None:
    before = time.time_ns() // 1_000_000
    clock = Clock()
    now = clock.wall_ms(time.monotonic_ns())
    assert before - 1 <= now <= time.time_ns() // 1_000_000 + 1
    assert abs(clock.offset_ms() - (now - time.monotonic_ns() // 1_000_000)) < 1000


@pytest.mark.parametrize("to", [0, 946_684_800, 1_800_000_003, 1_800_003_600, 2_147_483_648, 4_102_444_800])
def test_a_jump_is_noticed_followed_and_no_reason_to_believe_the_clock(board: Board, to: int) -> None:
    clock, jumps = board.clock(), []
    clock.is_set = True
    clock.on_jump = lambda: jumps.append("jump")
    board.pass_time(60)
    assert clock.time_source() == "synchronized"
    board.wall = to * S
    assert clock.wall_ms(board.monotonic) == to * 1000
    assert clock.time_source() == "unverified"
    assert clock.wall_ms(board.monotonic) == to * 1000
    assert jumps == ["jump"]
    assert clock.take_jump() == (to - 1_800_000_060) * 1000
    assert clock.take_jump() == 0


def test_a_clock_that_is_slewed_does_not_jump(board: Board) -> None:
    clock = board.clock()
    clock.is_set = True
    for _ in range(100):
        board.pass_time(5)
        board.wall += S // 2
        assert clock.wall_ms(board.monotonic) == board.wall // 1_000_000
    assert clock.is_set
    assert clock.take_jump() == 0


@pytest.mark.parametrize("ms", [5, 50, 1999])
def test_a_process_that_is_stopped_between_two_looks_dates_nothing_too_early(board: Board, ms: int) -> None:
    clock = board.clock()
    for stops in ([ms], [ms, 0, 0, ms], [ms] * 3):
        board.stops = [each * S // 1000 for each in stops]
        assert clock.wall_ms(100 * S) == 1_800_000_000_000
        assert board.stops == []


def test_a_process_that_is_stopped_between_two_looks_sees_no_jump(board: Board) -> None:
    clock = board.clock()
    clock.is_set = True
    board.stops = [60 * S, 0, 0, 60 * S]
    assert clock.wall_ms(100 * S) == 1_800_000_000_000
    assert board.stops == []
    assert clock.is_set
