"""Bandwidth, window and memory, with clocks that the test moves."""

import threading
from dataclasses import dataclass, field
from typing import Any

import pytest

from edge_agent.device.memory import Memory
from edge_agent.models.release.releases import RemoteObject, describe
from edge_agent.models.stores.base import Postponed, StoreUnavailable
from edge_agent.models.stores.limits import LONGEST_WAIT, MEMORY_BASE, MEMORY_FACTOR, DownloadLimits, minute_of_day
from edge_agent.settings.window import Window, parse_window

NIGHT = parse_window("01:00-05:00")
NOON, MIDNIGHT = 12 * 60.0, 0.0


@dataclass
class World:
    """What a device knows of the time and of its memory."""

    minute: float = NOON
    now: float = 1000.0
    is_set: bool = True
    memory: Memory | None = None
    limits: DownloadLimits = field(init=False)

    def use(self, **settings: Any) -> DownloadLimits:
        self.limits = DownloadLimits(
            **settings,
            clock_is_set=lambda: self.is_set,
            now=lambda: self.minute,
            clock=lambda: self.now,
            memory=lambda: self.memory,
        )
        return self.limits

    def pass_hours(self, hours: float) -> None:
        self.now += hours * 3600
        self.minute = (self.minute + hours * 60) % (24 * 60)


class Stop(threading.Event):
    """Takes down for how long it is waited for."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world
        self.waits: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.waits.append(timeout)
        self._world.now += timeout
        return False


@pytest.fixture
def world() -> World:
    return World()


def _remote(size: int = 1000, url: str = "gs://bucket/m") -> RemoteObject:
    return describe(url, {"version": "v1.4"}, generation="1", size=size, checksum="x")


def test_without_a_window_everything_is_fetched_at_once(world: World) -> None:
    world.use().admit(_remote(), urgent=False)


@pytest.mark.parametrize(("minute", "hours"), [(NOON, 13), (MIDNIGHT, 1), (5 * 60.0, 20), (59.0, 1 / 60)])
def test_outside_of_the_window_it_waits(world: World, minute: float, hours: float) -> None:
    world.minute = minute
    with pytest.raises(Postponed, match=r"^v1\.4 is offered and is fetched from 01:00 on$") as caught:
        world.use(window=NIGHT).admit(_remote(), urgent=False)
    assert caught.value.seconds == pytest.approx(hours * 3600)


@pytest.mark.parametrize("minute", [60.0, 4 * 60 + 59.9])
def test_within_the_window_it_does_not(world: World, minute: float) -> None:
    world.minute = minute
    world.use(window=NIGHT).admit(_remote(), urgent=False)


def test_a_window_over_midnight(world: World) -> None:
    limits = world.use(window=parse_window("22:00-05:00"))
    for minute in (22 * 60, 23 * 60, 0, 4 * 60 + 59):
        world.minute = minute
        limits.admit(_remote(), urgent=False)
    world.minute = 5 * 60
    with pytest.raises(Postponed) as caught:
        limits.admit(_remote(), urgent=False)
    assert caught.value.seconds == 17 * 3600


@pytest.mark.parametrize(("urgent", "url"), [(True, "gs://bucket/m"), (False, "file:///m")])
def test_who_has_no_model_does_not_wait_nor_does_a_file(world: World, urgent: bool, url: str) -> None:
    limits = world.use(window=NIGHT)
    limits.admit(_remote(url=url), urgent=urgent)
    world.pass_hours(100)
    limits.pace(1, Stop(world))


def test_a_download_ends_with_the_window_and_goes_on_in_the_next(world: World) -> None:
    world.minute = 4 * 60.0
    limits = world.use(window=NIGHT)
    limits.admit(_remote(), urgent=False)
    limits.pace(1, Stop(world))
    world.pass_hours(1.001)
    with pytest.raises(Postponed, match="is fetched from 01:00 on"):
        limits.pace(1, Stop(world))
    world.pass_hours(20)
    limits.admit(_remote(), urgent=False)
    limits.pace(1, Stop(world))


def test_while_the_clock_is_not_set_it_waits_a_day_at_most(world: World) -> None:
    world.is_set = False
    limits = world.use(window=NIGHT)
    told = set()
    for _ in range(24):
        world.minute = NOON  # a clock that goes back at each start of NTP, say
        with pytest.raises(Postponed) as caught:
            limits.admit(_remote(), urgent=False)
        told.add(str(caught.value))
        world.now += LONGEST_WAIT / 24
    assert told == {
        "v1.4 is offered and is fetched from 01:00 on, or after a day if the clock is not set by then",
    }
    limits.admit(_remote(), urgent=False)
    with pytest.raises(Postponed):
        limits.admit(_remote(), urgent=False)
    world.minute = 2 * 60.0
    limits.admit(_remote(), urgent=False)


def test_another_window(world: World) -> None:
    limits = world.use(window=NIGHT)
    limits.configure(bandwidth=None, window=Window(11 * 60, 13 * 60))
    limits.admit(_remote(), urgent=False)
    limits.configure(bandwidth=None, window=None)
    limits.admit(_remote(), urgent=False)


def test_the_bandwidth_is_an_average(world: World) -> None:
    limits, stop, began = world.use(bandwidth=1_000_000), Stop(world), world.now
    for _ in range(1000):
        limits.pace(8192, stop)
        world.now += 0.001  # what the network takes
    taken = world.now - began
    assert taken == pytest.approx(8.192, abs=0.3)
    assert len(stop.waits) < 4 * taken + 1, "no piece has a pause of its own"


def test_a_slow_line_needs_no_brake(world: World) -> None:
    limits, stop = world.use(bandwidth=1_000_000), Stop(world)
    for _ in range(100):
        world.now += 0.1
        limits.pace(8192, stop)
    assert stop.waits == []


def test_a_rest_gives_no_credit(world: World) -> None:
    limits, stop = world.use(bandwidth=1000), Stop(world)
    world.pass_hours(1)
    limits.pace(1000, stop)
    assert stop.waits == [1]


def test_another_bandwidth_holds_for_a_download_under_way(world: World) -> None:
    limits, stop = world.use(bandwidth=1000), Stop(world)
    limits.pace(1000, stop)
    limits.configure(bandwidth=None, window=None)
    limits.pace(1_000_000, stop)
    assert stop.waits == [1]


@pytest.mark.parametrize(("spare", "fits"), [(0, True), (-1, False)])
def test_memory(world: World, spare: int, fits: bool) -> None:
    need = 4_000_000 * MEMORY_FACTOR + MEMORY_BASE
    world.memory = Memory(need + spare, "/sys/fs/cgroup/system.slice/memory.max")
    limits = world.use()
    if fits:
        limits.check_memory(_remote(4_000_000))
        return
    with pytest.raises(StoreUnavailable, match=r"^v1\.4 waits: to try it .* takes about 24 MiB of memory") as caught:
        limits.check_memory(_remote(4_000_000))
    assert "and /sys/fs/cgroup/system.slice/memory.max has less" in str(caught.value)


def test_where_the_kernel_tells_of_no_limit_there_is_none(world: World) -> None:
    world.use().check_memory(_remote(1 << 40))


def test_the_real_memory_and_the_real_time() -> None:
    DownloadLimits().check_memory(_remote(1))
    with pytest.raises(StoreUnavailable, match="waits: to try it"):
        DownloadLimits().check_memory(_remote(1 << 50))
    assert 0 <= minute_of_day() < 24 * 60


def test_another_time_zone_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    utc = minute_of_day()
    monkeypatch.setenv("TZ", "XXX-5:30")
    ahead = (minute_of_day() - utc) % (24 * 60)
    monkeypatch.undo()
    minute_of_day()
    assert ahead == pytest.approx(330, abs=5)
