import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_agent.device.clock import Clock, kernel_max_error

S = 1_000_000_000
UNSET = 16_000_000


class Board:
    """What a board knows of the time."""

    monotonic = 100 * S
    wall = 1_000_000 * S
    max_error: int | None = UNSET
    asked = 0

    def __init__(self, root: Path) -> None:
        self.root = root

    def ask_kernel(self) -> int | None:
        self.asked += 1
        return self.max_error

    def clock(self) -> Clock:
        return Clock(
            root=self.root,
            monotonic_ns=lambda: self.monotonic,
            time_ns=lambda: self.wall,
            kernel_max_error_us=self.ask_kernel,
        )

    def chrony_sets_the_clock(self) -> None:
        self.max_error = 500

    def timesyncd_sets_the_clock(self) -> None:
        path = self.root / "run/systemd/timesync/synchronized"
        path.parent.mkdir(parents=True)
        path.touch()


@pytest.fixture
def board(tmp_path: Path) -> Board:
    return Board(tmp_path)


def test_a_capture_gets_its_wall_clock_time(board: Board) -> None:
    assert board.clock().wall_ms(98 * S) == (1_000_000 - 2) * 1000


def test_a_capture_before_the_clock_was_set_is_timed_by_the_clock_as_it_is_now(board: Board) -> None:
    clock = board.clock()
    board.monotonic += 60 * S
    board.wall = 1_700_000_000 * S
    assert clock.wall_ms(100 * S) == (1_700_000_000 - 60) * 1000


def test_the_real_clocks_agree_with_each_other() -> None:
    before = time.time_ns() // 1_000_000
    now = Clock().wall_ms(time.monotonic_ns())
    assert before - 1 <= now <= time.time_ns() // 1_000_000 + 1


@pytest.mark.parametrize("is_set", [Board.timesyncd_sets_the_clock, Board.chrony_sets_the_clock])
def test_a_clock_set_by_the_network_is_trusted_from_then_on(board: Board, is_set: Callable[[Board], None]) -> None:
    clock = board.clock()
    assert clock.time_source() == "unverified"
    is_set(board)
    board.monotonic += 10 * S
    assert clock.time_source() == "synchronized"
    asked, board.max_error = board.asked, UNSET
    board.monotonic += 10 * S
    assert clock.time_source() == "synchronized"
    assert board.asked == asked


def test_it_looks_once_in_ten_seconds(board: Board) -> None:
    clock = board.clock()
    for _ in range(5):
        clock.time_source()
    board.monotonic += 10 * S - 1
    assert clock.time_source() == "unverified"
    assert board.asked == 1
    board.monotonic += 1
    clock.time_source()
    assert board.asked == 2


def test_where_the_kernel_must_not_be_asked_the_file_decides(board: Board) -> None:
    board.max_error = None
    assert board.clock().time_source() == "unverified"
    board.timesyncd_sets_the_clock()
    assert board.clock().time_source() == "synchronized"


def test_the_kernel_answers() -> None:
    error = kernel_max_error()
    assert error is None or 0 <= error <= UNSET
