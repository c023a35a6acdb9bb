"""Debian packages to put beside the real one: an earlier version, and one with a program of no weight.

Each is made of the real package with `dpkg-deb`, so maintainer scripts, unit and owners are those of the real one.
"""

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

from edge_agent import __version__
from tests.system.machine import Machine
from tests.system.service import CONFIG

PREVIOUS = "0.0.9"
LIBRARY = "/usr/lib/edge-agent"
# What only the previous version has: a module, and a package of its own.
DROPPED = ("edge_agent/dropped.py", "dropped_library/__init__.py")
# What changes by itself, or with every package that comes and goes.
_RESTLESS = (
    *("/root", "/tmp", "/var/tmp", "/var/log", "/var/cache", "/var/lib/apt", "/var/lib/dpkg"),
    "/var/lib/systemd/random-seed",
    *("/etc/passwd*", "/etc/group*", "/etc/shadow*", "/etc/gshadow*", "/etc/subuid*", "/etc/subgid*"),
)

Change = Callable[[Path], None]


def repack(deb: Path, target: Path, *changes: Change) -> Path:
    """Unpack a package, change the files in it, and write it to `target`; compressed quickly rather than well."""
    tree = target.parent / f"{target.name}.tree"
    _run("dpkg-deb", "--raw-extract", deb, tree)
    for change in changes:
        change(tree)
    (tree / "DEBIAN/md5sums").unlink(missing_ok=True)  # dpkg makes its own
    _run("dpkg-deb", "-Zzstd", "-z1", "--root-owner-group", "--build", tree, target)
    _run("rm", "-r", tree)
    return target


def make_previous(tree: Path) -> None:
    """Set an earlier version, of the package and of what `edge-agent status` says; give it other files and settings."""
    set_previous_version(tree)
    replace(tree / LIBRARY[1:] / "edge_agent/__init__.py", re.escape(__version__), PREVIOUS)
    replace(tree / CONFIG[1:], r"\A", "# Of the previous version.\n")
    for name in DROPPED:
        file = tree / LIBRARY[1:] / name
        file.parent.mkdir(exist_ok=True)
        file.write_text("")


def set_previous_version(tree: Path) -> None:
    """Set an earlier version of the package."""
    replace(tree / "DEBIAN/control", rf"(?m)^Version: {re.escape(__version__)}~", f"Version: {PREVIOUS}~")


def make_light(tree: Path) -> None:
    """Put a program in the package that does nothing but say that it is ready: an upgrade takes a second."""
    _run("rm", "-r", tree / LIBRARY[1:])
    (tree / LIBRARY[1:]).mkdir()
    (tree / "usr/bin/edge-agent").write_text("#!/bin/sh\nsystemd-notify --ready\nexec sleep infinity\n")
    # systemd-notify is a process of its own, and nothing feeds the watchdog.
    unit = tree / "usr/lib/systemd/system/edge-agent.service"
    replace(unit, "NotifyAccess=main", "NotifyAccess=all")
    replace(unit, "(?m)^WatchdogSec=.*$", "")


def replace(file: Path, pattern: str, text: str) -> None:
    """Replace what must be there, once or more often."""
    new, count = re.subn(pattern, lambda _: text, file.read_text())
    assert count, f"{file} has no {pattern}"
    file.write_text(new)


def install(machine: Machine, deb: Path, *options: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """`apt-get install ./deb`; settings that were edited stay."""
    machine.copy_in(deb, f"/root/{deb.name}")
    return machine.run(*install_command(deb), *options, check=check)


def install_command(deb: Path) -> list[str]:
    """Return the command that installs a package that was copied to /root.

    The disk is waited for less than on a real machine.
    """
    options = [f"--option=Dpkg::Options::=--force-{what}" for what in ("confold", "unsafe-io")]
    return ["apt-get", "--yes", "--option=Dpkg::Use-Pty=0", *options, "install", f"/root/{deb.name}"]


def lines(machine: Machine, *command: str) -> list[str]:
    """Return the lines that a command prints."""
    return machine.run(*command).stdout.splitlines()


def exists(machine: Machine, path: str) -> bool:
    """Say whether there is a file or folder."""
    return machine.run("test", "-e", path, check=False).returncode == 0


def listing(machine: Machine) -> dict[str, str]:
    """Return every path on the disk with kind, mode, owners, a link's target, and a file's size.

    Left out is what changes by itself: logs, caches, the lists of dpkg and apt, the accounts' files, and /root.
    """
    leave = " -o ".join(f"-path '{path}'" for path in _RESTLESS)
    found = lines(machine, f"find / -xdev \\( {leave} \\) -prune -o -printf '%p\\t%y %m %u:%g %l\\t%s\\n'")
    split = [line.split("\t") for line in found]
    return {path: kind if kind.startswith("d") else f"{kind} {size}" for path, kind, size in split}


def _run(*command: str | Path) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(map(str, command))} failed:\n{done.stdout}"
