"""The service on a board without a clock battery, whose clock chrony sets: only D-Bus can tell it so in its sandbox.

The kernel and its clock are the host's. So the service and systemd-timedated, which asks the kernel in its place, each
get a library that shows them another clock; everything between the two is real.
"""

from pathlib import Path

import pytest

from tests.standin import wallclock
from tests.standin.wallclock import ASK_KERNEL, NOT_SET, TENDED, WallClock
from tests.system.machine import UNIT, Machine
from tests.system.service import Service, settings

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

LIBRARY = Path("/usr/lib/wallclock.so")


@pytest.fixture
def library(tmp_path: Path) -> Path:
    reason = wallclock.why_not()
    if reason is not None:
        pytest.skip(reason)
    return wallclock.build(tmp_path)


def another_clock(machine: Machine, unit: str, path: str) -> WallClock:
    """Let the unit see a clock that is in the file `path` of the machine, from its next start on."""
    machine.configure_unit("clock", f"[Service]\nEnvironment=LD_PRELOAD={LIBRARY} WALLCLOCK={path}\n", unit)
    return WallClock(machine.root / path.lstrip("/"), LIBRARY)


def test_events_of_1970_wait_for_chrony_and_get_their_time(service: Service, library: Path) -> None:
    machine = service.machine
    machine.copy_in(library, str(LIBRARY))
    board = another_clock(machine, UNIT, "/var/lib/board-clock")
    kernel = another_clock(machine, "systemd-timedated.service", "/var/lib/kernel-clock")
    board.show(300, ASK_KERNEL)
    kernel.move(0, NOT_SET)
    service.forbid_strictly()  # also to the program that asks
    service.start(settings())
    service.wait_for_status("the clock is not set yet: it says 1970-01-01")
    report = service.wait_for_report(lambda report: report["queue"]["waiting"] >= 50, "waiting events")
    assert report["clock"] == "unverified"
    assert len(service.events) == 0

    kernel.move(0, TENDED)
    board.move(0, ASK_KERNEL)
    events = service.wait_for_events(lambda events: events.health("clock", "set"), "the clock is set")
    assert "forwards" in events.health("clock", "set")[0]["detail"]
    events = service.nothing_lost()
    sources = [event["time_source"] for event in events.of("result")]
    assert sources == sorted(sources)
    assert sources.count("restored") >= 40
    machine.wait_until(lambda: "clock" not in machine.status_text(), "status without the clock")
    service.nothing_forbidden()
