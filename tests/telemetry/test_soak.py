"""An hour or so in the life of a device, several times over; the days are in the system tests."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.telemetry import loopdisk
from tests.telemetry.loopdisk import LoopDisk
from tests.telemetry.soak import Plan, soak

MEMORY = Path("/dev/shm")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one: a soak is about order and counts, not about fsync."""
    if not MEMORY.is_dir():
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        yield Path(name)


def test_nothing_is_lost_by_bad_weather_kills_and_ends(folder: Path) -> None:
    happened = soak(folder, Plan(seed=3, hours=1.5))
    assert {"killed", "terminated"} <= set(happened)


@pytest.mark.system
def test_what_a_full_queue_drops_is_told(folder: Path) -> None:
    soak(folder, Plan(seed=0, hours=1.5, size=100_000))


@pytest.mark.system
def test_a_long_time_offline_with_a_small_queue_is_told_to_the_last_event(folder: Path) -> None:
    soak(folder, Plan(seed=1, hours=1, size=60_000, offline=True))


def test_power_cuts_cost_the_last_interval_alone(folder: Path) -> None:
    happened = soak(folder, Plan(seed=1, hours=1.5, cuts=True, size=200_000))
    assert happened["cut"]


@pytest.mark.system
def test_a_card_that_fills_up_now_and_then(folder: Path) -> None:
    if reason := loopdisk.why_not():
        pytest.skip(reason)
    with LoopDisk(folder / "card", 16) as card:
        happened = soak(folder, Plan(seed=0, hours=0.5, card=card))
    assert happened["disk full"]
