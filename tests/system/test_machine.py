"""The harness itself: that it boots, enforces what it promises, and leaves nothing behind."""

import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.system.machine import Machine, MachineError

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

GREEDY = """
[Service]
ExecStart=/usr/bin/python3 -c 'bytearray(b"1") * 300000000; import time; time.sleep(1000)'
MemoryMax=100M
"""


def test_systemd_has_started_everything_and_reaches_no_network(machine: Machine) -> None:
    assert machine.systemctl("is-system-running").strip() == "running"
    links = machine.run("ip", "-brief", "link").stdout.splitlines()
    assert [link.split()[0] for link in links] == ["lo"]


def test_a_reboot_keeps_the_disk_and_the_network_but_not_run(machine: Machine) -> None:
    machine.write("/var/lib/here", "kept")
    machine.write("/run/here", "not kept")
    boot = machine.read("/proc/sys/kernel/random/boot_id"), machine.main_pid("dbus.service")
    with machine.network.entered(), socket.create_server(("127.0.0.1", 0)) as server:
        machine.reboot()
        assert machine.read("/var/lib/here") == "kept"
        assert machine.run("test", "-e", "/run/here", check=False).returncode != 0
        address = server.getsockname()
        machine.run("python3", "-c", f"import socket; socket.create_connection({address!r})")
    assert boot
    assert machine.journal("--list-boots").count("\n") >= 1


def test_a_crash_is_the_end_and_a_boot_goes_on_from_the_disk(machine: Machine) -> None:
    machine.write("/var/lib/here", "kept")
    machine.crash()
    machine.boot()
    assert machine.read("/var/lib/here") == "kept"


def test_memory_limits_are_enforced(machine: Machine) -> None:
    machine.write("/etc/systemd/system/greedy.service", GREEDY)
    machine.systemctl("start", "greedy")
    machine.wait_until(lambda: machine.property("ActiveState", "greedy") == "failed", "the greedy service was killed")


def test_a_small_disk_is_soon_full_and_what_is_on_it_stays(machine: Machine) -> None:
    machine.write("/var/lib/thing/old", "old")
    with machine.small_disk("/var/lib/thing", megabytes=1):
        assert machine.read("/var/lib/thing/old") == "old"
        machine.write("/var/lib/thing/new", "new")
        with pytest.raises(MachineError, match="No space left"):
            machine.run("head -c 2000000 /dev/zero > /var/lib/thing/large")
    assert machine.read("/var/lib/thing/new") == "new"


def test_machines_side_by_side_do_not_meet(base_trees: Callable[[str], Path], tmp_path: Path) -> None:
    tree = [base_trees("bookworm")]
    with Machine(tree, tmp_path / "one") as one, Machine(tree, tmp_path / "two") as two:
        for machine in (one, two):
            machine.write("/etc/systemd/system/sleeper.service", "[Service]\nExecStart=/bin/sleep infinity\n")
            machine.systemctl("start", "sleeper")
        one.systemctl("stop", "sleeper")
        assert two.property("ActiveState", "sleeper") == "active"


def traces(name: str, folder: Path) -> list[str]:
    """What there is of a machine: control groups, mounts in this namespace, processes."""
    groups = [str(group) for group in Path("/sys/fs/cgroup").glob(f"*/{name}*")]
    mounts = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(folder) in line]
    processes = subprocess.run(["pgrep", "--full", name], stdout=subprocess.PIPE, text=True, check=False)
    return [*groups, *mounts, *processes.stdout.split()]


def test_nothing_is_left(base_trees: Callable[[str], Path], tmp_path: Path) -> None:
    descriptors, threads = len(list(Path("/proc/self/fd").iterdir())), threading.active_count()
    machine = Machine([base_trees("bookworm")], tmp_path / "machine")
    with machine:
        assert traces(machine.name, tmp_path)
    assert traces(machine.name, tmp_path) == []
    assert [entry.name for entry in (tmp_path / "machine").iterdir()] == ["console"]
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors
    assert threading.active_count() == threads


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.system.machine import Machine

with Machine([Path(sys.argv[1])], Path(sys.argv[2])) as machine:
    print(machine.name, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_machine_ends_with_a_test_run_that_is_killed(base_trees: Callable[[str], Path], tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(base_trees("trixie")), str(tmp_path)]
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, cwd=Path(__file__).parents[2])
    assert run.returncode == -signal.SIGKILL
    name = run.stdout.strip()
    deadline = time.monotonic() + 60
    while left := traces(name, tmp_path):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)
