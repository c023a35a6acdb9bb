"""Debian packages to put beside the real one: an earlier version, one that is broken, one with a program of no weight.

Each is made of the real package with `dpkg-deb`, so maintainer scripts, unit and owners are those of the real one.
"""

import json
import re
import subprocess
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from edge_agent import __version__
from tests.servers.pubsub import Message, PubSubServer
from tests.system.machine import Machine, MachineError

PREVIOUS = "0.0.9"
CONFIG = "/etc/edge-agent.toml"
LIBRARY = "/usr/lib/edge-agent"
TOPIC = "projects/project/topics/events"
# The only files that the previous version has, and the real one has not.
DROPPED = ("dropped.py", "dropped_library/__init__.py")

Change = Callable[[Path], None]


def repack(deb: Path, target: Path, *changes: Change) -> Path:
    """Unpack a package, change the files in it, and write it to `target`; compressed quickly rather than well."""
    tree = target.parent / f"{target.name}.tree"
    _run("dpkg-deb", "--raw-extract", deb, tree)
    for change in changes:
        change(tree)
    (tree / "DEBIAN/md5sums").unlink()  # dpkg makes its own
    _run("dpkg-deb", "-Zzstd", "-z1", "--root-owner-group", "--build", tree, target)
    _run("rm", "-r", tree)
    return target


def set_version(version: str) -> Change:
    """Return the change to another version: of the package, and of what `edge-agent status` says."""

    def change(tree: Path) -> None:
        replace(tree / "DEBIAN/control", rf"(?m)^Version: {re.escape(__version__)}~", f"Version: {version}~")
        program = tree / f"{LIBRARY[1:]}/edge_agent/__init__.py"
        if program.exists():
            replace(program, re.escape(__version__), version)

    return change


def add_dropped_files(tree: Path) -> None:
    """Add files that a later version does not have, and a default in the settings that it has in other words."""
    for name in DROPPED:
        file = tree / LIBRARY[1:] / name
        file.parent.mkdir(exist_ok=True)
        file.write_text("")
    replace(tree / CONFIG[1:], r"\A", "# Of the previous version.\n")


def make_light(tree: Path) -> None:
    """Put a program in the package that does nothing but say that it is ready: an upgrade takes a second."""
    _run("rm", "-r", tree / LIBRARY[1:])
    (tree / LIBRARY[1:]).mkdir()
    (tree / "usr/bin/edge-agent").write_text("#!/bin/sh\nsystemd-notify --ready\nexec sleep infinity\n")
    # systemd-notify is a process of its own.
    replace(tree / "usr/lib/systemd/system/edge-agent.service", "NotifyAccess=main", "NotifyAccess=all")


def replace(file: Path, pattern: str, text: str) -> None:
    """Replace what must be there, once or more often."""
    new, count = re.subn(pattern, lambda _: text, file.read_text())
    assert count, f"{file} has no {pattern}"
    file.write_text(new)


def make_previous(deb: Path, folder: Path) -> Path:
    """Make a package of the previous version."""
    return repack(deb, folder / deb.name.replace(__version__, PREVIOUS), set_version(PREVIOUS), add_dropped_files)


class Cloud(AbstractContextManager["Cloud"]):
    """A Pub/Sub server in the machine's network. The service is told of it; it is down until `start`."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._server = PubSubServer()
        self._server.create_topic(TOPIC)
        self.start()  # to have a port
        self._server.stop()
        machine.configure_unit("pubsub", f"[Service]\nEnvironment=PUBSUB_EMULATOR_HOST={self._server.address}\n")

    def __exit__(self, *_: object) -> None:
        self._server.stop()

    def start(self) -> None:
        """Be reachable from now on."""
        with self._machine.network.entered():
            self._server.start()

    def numbers(self) -> list[int]:
        """Return the numbers of the events that have arrived, each once; they must be of one epoch."""
        ids = {_event(message)["event_id"].rsplit("/", 1) for message in self._server.messages(TOPIC)}
        assert len({epoch for epoch, _ in ids}) <= 1, "the queue was begun anew"
        return sorted(int(number) for _, number in ids)

    def wait_for_all(self, least: int) -> None:
        """Wait until events have arrived without a hole, at least so many."""

        def arrived() -> bool:
            numbers = self.numbers()
            return len(numbers) >= least and numbers == list(range(1, len(numbers) + 1))

        self._machine.wait_until(arrived, f"{least} events have arrived without a hole")


def _event(message: Message) -> dict[str, Any]:
    event: dict[str, Any] = json.loads(message.data)
    return event


def _run(*command: str | Path) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(map(str, command))} failed:\n{done.stdout}"
