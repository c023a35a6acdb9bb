"""What `apt install ./edge-agent_….deb` gives on a system that has never seen it."""

from pathlib import Path

import pytest

from tests.system.machine import Machine

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]


def test_the_service_is_up_and_says_what_it_waits_for(machine: Machine, deb: Path) -> None:
    machine.install(deb)
    machine.wait_until(lambda: machine.property("ActiveState") == "active", "the service is active")
    for missing in ("[source].plugin", "[model].url", "[telemetry].sink"):
        assert missing in machine.status_text()
    assert machine.property("NRestarts") == "0"
    assert machine.property("UnitFileState") == "enabled"
    machine.reboot()
    assert machine.property("ActiveState") == "active"
