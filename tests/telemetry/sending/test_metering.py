"""The bandwidth and the daily budget, with clocks that are set back and forth, and over restarts."""

import asyncio
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from edge_agent.telemetry.sending.metering import DAY, Meter

HOUR = 3600.0
NOON = 1_780_000_000.0


class Clocks:
    """Running time, and the wall clock with whatever it was set to. `known` is whether it can be trusted."""

    def __init__(self) -> None:
        self.running = 1000.0
        self.wall = NOON
        self.known = True

    def pass_by(self, seconds: float) -> None:
        self.running += seconds
        self.wall += seconds

    def monotonic(self) -> float:
        return self.running

    def trusted(self) -> float | None:
        return self.wall if self.known else None


@pytest.fixture
def clocks() -> Clocks:
    return Clocks()


def meter(
    clocks: Clocks, file: Path | None = None, *, bandwidth: int | None = None, daily_budget: int | None = 1_000_000
) -> Meter:
    return Meter(file, bandwidth=bandwidth, daily_budget=daily_budget, wall=clocks.trusted, clock=clocks.monotonic)


def save(meter: Meter, *, exactly: bool = False) -> None:
    asyncio.run(meter.save(exactly=exactly))


def test_without_limits_nothing_is_held_up(clocks: Clocks) -> None:
    free = meter(clocks, daily_budget=None)
    free.count(10**12)

    assert (free.limited, free.pause(), free.room(9_000_000), free.used_up) == (False, 0.0, 9_000_000, False)
    assert free.budget is None


def test_bandwidth_counts_from_the_beginning_of_the_request(clocks: Clocks) -> None:
    slow = meter(clocks, bandwidth=16_000, daily_budget=None)
    slow.begin()
    clocks.pass_by(0.5)
    slow.count(32_000)

    assert slow.pause() == 1.5
    clocks.pass_by(1.5)
    assert slow.pause() == 0
    clocks.pass_by(1000)  # what was not used is not saved up
    slow.begin()
    slow.count(16_000)
    assert slow.pause() == 1


def test_requests_are_small_enough_for_the_bandwidth(clocks: Clocks) -> None:
    assert meter(clocks, bandwidth=16_000, daily_budget=None).room(9_000_000) == 32_000
    assert meter(clocks, bandwidth=100, daily_budget=None).room(9_000_000) == 4096


def test_requests_get_smaller_towards_the_end_of_the_budget(clocks: Clocks) -> None:
    day = meter(clocks)
    requests = 0
    while not day.used_up:
        day.count(day.room(9_000_000))
        requests += 1

    assert requests < 12
    # What goes out in any case is not bound by what is left.
    assert day.room(9_000_000) == 9_000_000
    day.count(5_000_000)
    assert day.used_up


def test_a_new_day_begins_after_24_hours(clocks: Clocks) -> None:
    day = meter(clocks)
    clocks.pass_by(10 * HOUR)
    day.count(1_000_000)

    assert day.used_up
    assert day.budget == (1_000_000, 1_000_000)
    assert day.renewal() == 14 * HOUR
    assert day.explain() == "the daily budget of 1MB is used up until 2026-05-29 20:27 UTC"
    clocks.pass_by(14 * HOUR - 1)
    assert day.used_up
    clocks.pass_by(1)
    assert not day.used_up
    assert day.room(9_000_000) == 500_000


def test_unknown_time(clocks: Clocks) -> None:
    clocks.known = False
    day = meter(clocks)
    day.count(1_000_000)
    clocks.pass_by(HOUR)

    assert day.explain() == "the daily budget of 1MB is used up for 23h1m more"
    clocks.pass_by(23 * HOUR)
    assert not day.used_up


@pytest.mark.parametrize("jump", [-50 * 365 * DAY, -DAY, -HOUR, HOUR, 23 * HOUR])
def test_jumps_neither_give_a_budget_away_nor_block_it_for_longer_than_a_day(clocks: Clocks, jump: float) -> None:
    day = meter(clocks)
    day.count(1_000_000)
    clocks.pass_by(60)
    clocks.wall += jump

    assert day.used_up
    assert 0 < day.renewal() <= DAY - 60
    clocks.pass_by(DAY - 60)
    assert not day.used_up


def test_a_jump_of_days_gives_away_one_budget_at_most(clocks: Clocks) -> None:
    day = meter(clocks)
    day.count(1_000_000)
    clocks.wall += 365 * DAY
    assert not day.used_up
    day.count(1_000_000)
    clocks.wall -= 365 * DAY

    assert day.used_up
    clocks.pass_by(DAY - 1)
    assert day.used_up
    clocks.pass_by(1)
    assert not day.used_up


def test_day_that_began_in_the_future_ends_in_time(clocks: Clocks, tmp_path: Path) -> None:
    clocks.wall += 365 * DAY
    day = meter(clocks, tmp_path / "day")
    day.count(1_000_000)
    clocks.wall -= 365 * DAY
    clocks.pass_by(HOUR)
    save(day, exactly=True)
    clocks.running = 5.0  # switched off until the next day
    clocks.wall += 23 * HOUR

    assert not meter(clocks, tmp_path / "day").used_up


def test_untrusted_clock_decides_nothing(clocks: Clocks) -> None:
    clocks.known = False
    day = meter(clocks)
    day.count(1_000_000)
    clocks.wall += 365 * DAY
    assert day.used_up
    clocks.known = True  # only now does it count, from now on

    assert day.used_up
    clocks.pass_by(DAY)
    assert not day.used_up


def test_count_outlives_a_restart(clocks: Clocks, tmp_path: Path) -> None:
    day = meter(clocks, tmp_path / "day")
    day.count(600_000)
    clocks.pass_by(HOUR)
    save(day, exactly=True)
    clocks.running = 5.0  # a new boot
    clocks.wall += HOUR
    day = meter(clocks, tmp_path / "day")

    assert day.room(9_000_000) == 200_000
    assert day.renewal() == 22 * HOUR


def test_nights_switched_off_count_where_the_time_is_known(clocks: Clocks, tmp_path: Path) -> None:
    day = meter(clocks, tmp_path / "day")
    day.count(1_000_000)
    clocks.pass_by(8 * HOUR)
    save(day, exactly=True)
    clocks.running = 5.0
    clocks.wall += 16 * HOUR
    clocks.known = False
    day = meter(clocks, tmp_path / "day")

    assert day.used_up
    clocks.known = True
    assert not day.used_up


def test_a_crash_gives_nothing_away_and_costs_little(clocks: Clocks, tmp_path: Path) -> None:
    day = meter(clocks, tmp_path / "day")
    writes = set()
    for sent in range(500, 500_000, 500):
        day.count(500)
        save(day)
        writes.add((tmp_path / "day").read_bytes())
        killed = meter(clocks, tmp_path / "day")
        left = 2 * killed.room(9_000_000)
        assert 1_000_000 - sent - 20_000 <= left <= 1_000_000 - sent
    assert len(writes) < 30


def test_running_time_is_kept_though_nothing_is_sent(clocks: Clocks, tmp_path: Path) -> None:
    clocks.known = False
    for _ in range(5):
        day = meter(clocks, tmp_path / "day")
        if day.used_up:
            pytest.fail("a device that is restarted every five hours gets no new day")
        day.count(1_000_000)
        for _ in range(5):
            clocks.pass_by(5 * HOUR)
            save(day)  # the kill comes right after
            day = meter(clocks, tmp_path / "day")


@pytest.mark.parametrize("content", [b"", b"{", b'{"used": "x"}', b"\xff"])
def test_damaged_file_begins_a_new_day(clocks: Clocks, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "day").write_bytes(content)
    with capture_logs() as lines:
        day = meter(clocks, tmp_path / "day")

    assert not day.used_up
    assert [line["event"] for line in lines] == ["the day's count of bytes is lost, and begins anew"]


def test_file_that_cannot_be_written_is_said_once(clocks: Clocks, tmp_path: Path) -> None:
    day = meter(clocks, tmp_path / "missing" / "day")
    with capture_logs() as lines:
        for _ in range(3):
            day.count(300_000)
            save(day)

    assert [line["reason"] for line in lines] == [
        f"cannot write {tmp_path}/missing/day: No such file or directory; a restart begins a new day's budget"
    ]


def test_changed_settings(clocks: Clocks, tmp_path: Path) -> None:
    day = meter(clocks, tmp_path / "day")
    day.count(1_000_000)
    day.configure(bandwidth=None, daily_budget=3_000_000)
    assert day.room(9_000_000) == 1_000_000
    day.configure(bandwidth=1000, daily_budget=None)
    assert not day.used_up
    assert day.limited


def test_budget_set_again_knows_the_file(clocks: Clocks, tmp_path: Path) -> None:
    day = meter(clocks, tmp_path / "day")
    day.count(1_000_000)
    save(day, exactly=True)
    later = meter(clocks, tmp_path / "day", daily_budget=None)
    later.configure(bandwidth=None, daily_budget=1_000_000)

    assert later.used_up
