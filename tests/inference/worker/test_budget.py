"""A daily budget that comes in little by little."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.inference.worker.budget import Budget

PER_DAY = 2_400_000
HOUR = 3600.0
DAY = 24 * HOUR


class Time:
    """Seconds that pass when the test says so."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def spend_all(budget: Budget, size: int) -> int:
    spent = 0
    while budget.open:
        budget.spend(size)
        spent += size
    return spent


def test_the_first_sample_goes_out_at_once_and_what_it_took_is_paid_off() -> None:
    time = Time()
    budget = Budget(PER_DAY, None, clock=time)
    assert budget.open
    budget.spend(95_834)  # an hour's worth: 23/24 of the day's, by 24
    assert not budget.open
    time.now += HOUR - 1
    assert not budget.open
    time.now += 2
    assert budget.open


def test_an_hours_worth_is_saved_up_and_no_more() -> None:
    time = Time()
    budget = Budget(PER_DAY, None, clock=time)
    time.now += 10 * DAY
    assert spend_all(budget, 1000) == 101_000


@given(st.lists(st.tuples(st.floats(0, 2 * HOUR), st.integers(1, 200_000)), min_size=1, max_size=200))
def test_in_no_24_hours_more_than_the_budget_and_one_sample_is_spent(steps: list[tuple[float, int]]) -> None:
    time = Time()
    budget = Budget(PER_DAY, None, clock=time)
    spent: list[tuple[float, int]] = []
    for pause, size in steps:
        time.now += pause
        if budget.open:
            budget.spend(size)
            spent.append((time.now, size))
    for first, _ in spent:
        sizes = [size for at, size in spent if first <= at <= first + DAY]
        assert sum(sizes[:-1]) <= PER_DAY + 1e-3


def test_a_day_at_work_uses_nearly_all_of_it() -> None:
    time = Time()
    budget = Budget(PER_DAY, None, clock=time)
    spent = 0
    for _ in range(24 * 60):
        time.now += 60.0
        spent += spend_all(budget, 1000)
    assert 0.95 * PER_DAY < spent <= PER_DAY + 1000


def test_a_worker_that_dies_gets_nothing_for_it(tmp_path: Path) -> None:
    time, file = Time(), tmp_path / "budget.json"
    Budget(PER_DAY, file, clock=time).spend(1_000_000)
    assert not Budget(PER_DAY, file, clock=time).open
    time.now += 10.5 * HOUR  # 1,000,000 / 95,833
    assert Budget(PER_DAY, file, clock=time).open
    assert [path.name for path in tmp_path.iterdir()] == ["budget.json"]


def test_after_a_boot_what_is_owed_is_still_owed(tmp_path: Path) -> None:
    file = tmp_path / "budget.json"
    Budget(PER_DAY, file, clock=Time(1e6)).spend(1_000_000)
    time = Time(5.0)
    budget = Budget(PER_DAY, file, clock=time)
    assert not budget.open
    time.now += 10.5 * HOUR
    assert budget.open


@pytest.mark.parametrize("content", [b"", b"\0" * 50, b'{"level": "x"}'])
def test_a_damaged_state_is_none(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "budget.json"
    file.write_bytes(content)
    assert Budget(PER_DAY, file, clock=Time()).open


def test_without_a_place_for_its_state_it_goes_on(tmp_path: Path) -> None:
    budget = Budget(PER_DAY, tmp_path / "none" / "budget.json", clock=Time())
    budget.spend(1)
    assert not budget.open
