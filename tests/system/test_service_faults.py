"""The service under faults: whatever happens to it, it comes back, says so, and loses no event."""

import signal
import time
from typing import Any

import pytest

from tests.system.machine import UNIT
from tests.system.service import Service, settings

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

# A sensor whose driver begins to eat memory when somebody puts food before it.
GREEDY = """
import time
from typing import Any
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edge_agent.records import Sample
from edge_agent.sources.base import Pacer, Source

FOOD = Path("/run/edge-agent/food")


class Greedy(Source):
    @dataclass(frozen=True, kw_only=True)
    class Options:
        pass

    def __init__(self, options):
        super().__init__(options)
        self.live = True
        self._pacer = Pacer(20)
        self._eaten = []

    def read(self, timeout):
        if FOOD.exists():
            FOOD.unlink()
            while True:
                self._eaten.append(b"x" * 10_000_000)
        if not self._pacer.wait(timeout):
            return None
        self._pacer.step()
        return Sample(np.full(128, 0.5, np.float32), time.monotonic_ns())
"""
STATE = "/var/lib/edge-agent"
ALARM = """
[[actions]]
name = "alarm"
when = { label = "failure" }
run = ["true"]
cooldown = "1s"
"""


def collect_events(service: Service, count: int = 40) -> None:
    """Take the server away, and wait until so many events wait for it.

    What was under way at that moment may come twice: the server had it, and could not say so.
    """
    service.cut_off()
    service.wait_for_report(lambda report: report["queue"]["waiting"] >= count, f"{count} waiting events")


def test_a_killed_agent_is_restarted_and_goes_on_with_what_waits(service: Service) -> None:
    service.machine.configure_unit("restart", "[Service]\nRestartSec=1s\n")
    service.work(settings())
    agent, worker = service.pid, service.worker
    collect_events(service)
    service.machine.kill(agent)
    service.machine.wait_until(lambda: not service.is_alive(worker), "the worker has gone with its agent")
    service.machine.wait_until(lambda: service.machine.property("NRestarts") == "1", "systemd starts the agent again")
    service.machine.wait_until(lambda: service.machine.property("ActiveState") == "active", "the agent is back")
    assert service.pid not in {0, agent}
    service.connect()
    service.nothing_lost(duplicates=True)
    assert service.worker != worker


def deaths(service: Service) -> list[dict[str, Any]]:
    """Wait until the service tells of a worker's death. It may also tell of the disk of the machine with the tests."""
    return service.wait_for_events(lambda events: events.health("worker", "died"), "the death").health("worker", "died")


def test_a_killed_worker_is_replaced_within_the_same_service(service: Service) -> None:
    service.work(settings())
    agent, worker = service.pid, service.worker
    service.machine.kill(worker)
    [died] = deaths(service)
    assert "killed by SIGKILL" in died["detail"]
    service.nothing_lost()
    assert service.worker != worker
    assert service.pid == agent


def test_a_hanging_worker_is_replaced_within_its_deadline(service: Service) -> None:
    service.work(settings())
    agent, worker = service.pid, service.worker
    service.machine.kill(worker, signal.SIGSTOP)
    [died] = deaths(service)
    assert "hangs" in died["detail"]
    service.nothing_lost()
    assert not service.is_alive(worker)
    assert service.pid == agent
    assert service.machine.property("NRestarts") == "0"


def test_a_hanging_agent_is_found_by_the_watchdog(service: Service) -> None:
    service.machine.configure_unit("watchdog", "[Service]\nWatchdogSec=2s\nRestartSec=100ms\n")
    service.work(settings())
    agent, worker = service.pid, service.worker
    collect_events(service)
    service.machine.kill(agent, signal.SIGSTOP)
    service.machine.wait_until(lambda: service.machine.property("NRestarts") == "1", "systemd starts the agent again")
    service.wait_for_journal("Failed with result 'watchdog'")
    assert not service.is_alive(worker)
    service.connect()
    service.nothing_lost(duplicates=True)


def test_the_worker_goes_first_when_memory_runs_out(service: Service) -> None:
    """The kernel's choice within the service's control group is real here.

    Not tested are OOMPolicy=continue, as with control groups of version 1 systemd does not hear of it, and
    OOMScoreAdjust=-200, which systemd leaves out where it may not lower the value.
    """
    install_plugin(service, "greedy", GREEDY)
    service.machine.configure_unit("memory", "[Service]\nMemoryMax=250M\n")
    service.work(settings(source='plugin = "greedy"'))
    agent, worker = service.pid, service.worker
    assert oom_kills(service) == 0
    # The worker is the greedy one here; the kernel's choice must not depend on that.
    assert oom_score_adj(service, agent) < oom_score_adj(service, worker)
    service.machine.run("touch", "/run/edge-agent/food")  # eaten at once
    [died] = deaths(service)
    assert "killed by SIGKILL" in died["detail"]
    service.nothing_lost()
    assert oom_kills(service) == 1
    assert service.pid == agent
    assert service.worker != worker


def install_plugin(service: Service, name: str, code: str) -> None:
    """Put a source plugin where pip and administrators put modules."""
    packages = service.machine.run("python3", "-c", "import site; print(site.getsitepackages()[0])").stdout.strip()
    metadata = f"{packages}/{name}-1.dist-info"
    service.machine.write(f"{packages}/{name}.py", code)
    service.machine.write(f"{metadata}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
    entry = f"[edge_agent.sources]\n{name} = {name}:{name.title()}\n"
    service.machine.write(f"{metadata}/entry_points.txt", entry)


def oom_score_adj(service: Service, pid: int) -> int:
    """How willing the kernel is to end this process for want of memory."""
    return int(service.machine.read(f"/proc/{pid}/oom_score_adj"))


def oom_kills(service: Service) -> int:
    """How often the kernel has ended a process of the service for want of memory."""
    group = service.machine.property("ControlGroup")
    lines = service.machine.run("sh", "-c", f"cat /sys/fs/cgroup/memory{group}/memory.oom_control").stdout.splitlines()
    return int(dict(line.split() for line in lines)["oom_kill"])


def test_a_full_disk_stops_neither_the_work_nor_the_events(service: Service) -> None:
    machine = service.machine
    machine.systemctl("stop", UNIT)
    with machine.small_disk(STATE, megabytes=100):
        service.work(settings(more=ALARM))
        agent = service.pid
        machine.run(f"head -c 200M /dev/zero >{STATE}/filler", check=False)
        service.wait_for_results()
        collect_events(service)
        service.wait_for_status("cannot use /var/lib/edge-agent", "events are not sent")
        before = service.report()["results"]["samples"], service.journal().count("action done")
        service.wait_for_report(lambda report: report["results"]["samples"] > before[0] + 20, "more results")
        machine.wait_until(lambda: service.journal().count("action done") > before[1], "actions go on")

        machine.run("rm", f"{STATE}/filler")
        service.wait_for_journal("the queue can use its directory again")
        service.connect()
        service.nothing_lost(duplicates=True)
        service.wait_for_status("events are sent")
        assert "cannot use" not in machine.status_text()
        assert service.pid == agent
        machine.systemctl("stop", UNIT)


def test_events_from_before_a_reboot_arrive_after_it(service: Service) -> None:
    service.work(settings())
    collect_events(service, 100)
    waited = service.report()["queue"]["waiting"]
    service.machine.reboot()
    service.wait_for_report(lambda report: report["queue"]["waiting"] > waited + 20, "more events in the queue")
    service.connect()
    service.nothing_lost(duplicates=True)


def test_a_power_cut_costs_at_most_the_last_moment(service: Service) -> None:
    """What the kernel has not written is kept, unlike in a real power cut: fsync is not tested here."""
    service.work(settings())
    collect_events(service, 200)
    cut_ms = time.time() * 1000
    service.machine.crash()
    service.machine.boot()
    service.wait_for_report(lambda report: report["queue"]["waiting"] > 20, "events in the queue")
    service.connect()
    # It cannot be known which number came last, so a new epoch begins.
    events = service.nothing_lost(duplicates=True, epochs=2)
    [before, _] = events.epochs
    kept = [event for event in events.of("result") if event["event_id"].split("/")[1] == str(before)]
    # The commit interval is 1 s, and the disk of a busy machine may be slow.
    assert kept[-1]["timestamp"] > cut_ms - 3000
    assert len(kept) > 150
