"""A Debian system that systemd really boots, in a container, for one test.

    with Machine([tree], folder) as machine:
        machine.install(deb)
        machine.wait_until(lambda: machine.property("ActiveState") == "active", "the service is active")

What is real: PID 1, units, sandboxing by namespaces and seccomp, credentials, watchdog, dpkg and apt; limits of memory,
tasks and devices, where the host has control groups of version 1 (the container gets its own part of each, writable).
What is not: kernel, clock and hardware are the host's; udev does not run; OOMScoreAdjust= below zero is ignored; and
control groups of version 2 have no controllers, so that MemoryHigh= and OOMPolicy= have no effect.

Nothing outlives the test: a guard ends the container when this process is killed, its file systems are mounted
in a mount namespace of its own, and its network is a file descriptor (`Network`). `close` removes the rest.
"""

import itertools
import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.system.network import Network

PATIENCE = 120.0
UNIT = "edge-agent.service"
_POLL = 0.1
_REBOOT = 133
_LIMITED = ("memory", "pids", "cpu", "cpuacct", "devices", "blkio")
_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "DEBIAN_FRONTEND": "noninteractive",
    "SYSTEMD_PAGER": "",
}
# $1 trees, $2 folder, $3 name, $4 network namespace, then the control groups. It stays beside the machine, since the
# machine would survive the end of nspawn: when the test run is killed, it gets SIGTERM and ends the machine.
_GUARD = """
set -e
trees=$1 folder=$2 name=$3 network=$4
shift 4
mount -t overlay overlay -o "lowerdir=$trees,upperdir=$folder/upper,workdir=$folder/work" "$folder/root"
sh -c "$ENTER" enter "$folder/root" "$name" "$network" "$@" &
nspawn=$!
trap 'kill -KILL $(grep . /proc/$nspawn/task/$nspawn/children || echo $nspawn)' TERM
wait $nspawn || status=$?
if test "${status:-0}" = 143; then
    wait $nspawn || true
    for group; do find "$group" -depth -type d -exec rmdir {} + || true; done
fi
exit ${status:-0}
"""
_ENTER = """
set -e
root=$1 name=$2 network=$3
shift 3
for group; do echo $$ >"$group/cgroup.procs"; done
exec systemd-nspawn --quiet --directory="$root" --machine="$name" --register=no --keep-unit \
    --network-namespace-path="$network" --system-call-filter="bpf @clock" --console=pipe -- /bin/sh -c "$INIT"
"""
# PID 1: the control groups must be writable before systemd looks at them.
_INIT = f"""
for group in {" ".join(_LIMITED)}; do
    if test -d /sys/fs/cgroup/$group; then mount -o remount,rw,bind /sys/fs/cgroup/$group; fi
done
exec /lib/systemd/systemd
"""
_counter = itertools.count(1)


class MachineError(Exception):
    """A command in the machine failed, or something did not happen in time. The message says what was to be seen."""


class Machine:
    """One machine. Entering the context boots it.

    `trees` are read-only and lie one upon the other, the first on top; everything written goes to `folder`.
    """

    def __init__(self, trees: Sequence[Path], folder: Path) -> None:
        self.name = f"edge-agent-test-{os.getpid()}-{next(_counter)}"
        self.network = Network()
        self._trees = trees
        self._folder = folder
        self._guard: subprocess.Popen[bytes] | None = None
        self._leader = 0

    def __enter__(self) -> Self:
        try:
            self.boot()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- its life

    def boot(self) -> None:
        """Boot, and return when systemd has started everything."""
        self._leader = 0
        for part in ("upper", "work", "root"):
            (self._folder / part).mkdir(parents=True, exist_ok=True)
        groups = [str(group) for group in self._make_control_groups()]
        command = ["setpriv", "--pdeathsig", "TERM", "unshare", "--mount", "--propagation", "slave", "sh", "-c", _GUARD]
        arguments = [":".join(map(str, self._trees)), str(self._folder), self.name, self.network.path, *groups]
        with (self._folder / "console").open("ab") as console:
            self._guard = subprocess.Popen(
                [*command, "guard", *arguments],
                env={**_ENVIRONMENT, "ENTER": _ENTER, "INIT": _INIT},
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._leader = self._wait_for_leader()
        self.wait_until(self._is_up, "systemd has started everything")

    def reboot(self) -> None:
        """`systemctl reboot`, in order, and boot again. /run and mounts are gone then, everything else stays."""
        assert self._guard is not None
        self.systemctl("reboot")
        status = self._guard.wait(PATIENCE)
        assert status == _REBOOT, f"the machine ended with {status} instead of rebooting:\n{self.console()}"
        self.boot()

    def freeze(self) -> Path:
        """Shut down in order and return what was written, as a tree for other machines; `close` keeps it."""
        assert self._guard is not None
        self.systemctl("poweroff")
        status = self._guard.wait(PATIENCE)
        assert status == 0, f"the machine ended with {status} instead of powering off:\n{self.console()}"
        return (self._folder / "upper").rename(self._folder / "frozen")

    def crash(self) -> None:
        """Let every process of the machine end at once, as with the reset button. What the kernel holds is kept."""
        assert self._guard is not None
        if self._leader:
            with suppress(ProcessLookupError):  # it has just ended by itself
                os.kill(self._leader, signal.SIGKILL)
        else:
            self._guard.terminate()
        self._guard.wait(PATIENCE)
        self._leader = 0

    def close(self) -> None:
        """End the machine and remove everything it has written."""
        if self._guard is not None and self._guard.poll() is None:
            self.crash()
        self._remove_control_groups()
        self.network.close()
        for part in ("upper", "work", "root"):
            if (self._folder / part).exists():
                shutil.rmtree(self._folder / part)

    def console(self) -> str:
        """What nspawn and the early boot have printed."""
        return (self._folder / "console").read_text(errors="replace")

    def _wait_for_leader(self) -> int:
        assert self._guard is not None
        deadline = time.monotonic() + PATIENCE
        while self._guard.poll() is None and time.monotonic() < deadline:
            for nspawn in _children(self._guard.pid):
                for child in _children(nspawn):
                    if _is_first_in_its_namespace(child):
                        return child
            time.sleep(_POLL)
        raise MachineError(f"the machine did not start:\n{self.console()}")

    def _is_up(self) -> bool:
        return self.systemctl("is-system-running", check=False).strip() in {"running", "degraded"}

    # -- control groups

    def _control_groups(self) -> list[Path]:
        """A group of this machine's own in each hierarchy, so that machines side by side do not meet in one."""
        hierarchies = [entry for entry in Path("/sys/fs/cgroup").iterdir() if (entry / "cgroup.procs").is_file()]
        if Path("/sys/fs/cgroup/cgroup.controllers").exists():  # version 2 alone: nspawn delegates by itself
            return []
        return [hierarchy / self.name for hierarchy in hierarchies if not hierarchy.is_symlink()]

    def _make_control_groups(self) -> list[Path]:
        self._remove_control_groups()
        groups = self._control_groups()
        for group in groups:
            group.mkdir()
            for inherited in ("cpuset.cpus", "cpuset.mems"):
                if (group / inherited).exists():
                    (group / inherited).write_text((group.parent / inherited).read_text())
        return groups

    def _remove_control_groups(self) -> None:
        for group in self._control_groups():
            for folder, _, _ in os.walk(group, topdown=False):
                _remove_control_group(Path(folder))

    # -- what one does with it

    @property
    def root(self) -> Path:
        """The root folder of the machine, as a path of this process; absolute links in it lead to the host's files."""
        return Path(f"/proc/{self._leader}/root")

    def run(
        self, *command: str, check: bool = True, stdin: str = "", timeout: float = PATIENCE
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as root in the machine. Raises MachineError when it fails, unless `check` is false.

        A text with blanks alone is a shell command: `run("cat /etc/passwd | wc -l")`.
        """
        if len(command) == 1 and " " in command[0]:
            command = ("sh", "-c", command[0])
        done = subprocess.run(
            ["nsenter", "--all", f"--target={self._leader}", "--", *command],
            input=stdin,
            capture_output=True,
            text=True,
            errors="replace",
            env=_ENVIRONMENT,
            timeout=timeout,
            check=False,
        )
        if check and done.returncode != 0:
            raise MachineError(f"{shlex.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        return done

    def wait_until(self, condition: Callable[[], object], what: str, patience: float = PATIENCE) -> None:
        """Wait until the condition holds. Raises MachineError with the unit's state and the end of the journal."""
        deadline = time.monotonic() + patience
        while not condition():
            assert self._guard is not None
            ended = self._guard.poll()
            if ended is not None:
                raise MachineError(f"the machine ended ({ended}) before {what}:\n{self.console()}")
            if time.monotonic() > deadline:
                raise MachineError(f"not in {patience:.0f} s: {what}\n{self.describe()}")
            time.sleep(_POLL)

    def describe(self) -> str:
        """State of the service and the end of the journal, for the message of a failed test."""
        status = self.systemctl("status", UNIT, "--lines=0", check=False)
        return f"{status}\n{self.journal('--lines=60')}"

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """Write a file, and the folders above it."""
        quoted = shlex.quote(path)
        self.run(f'mkdir -p "$(dirname {quoted})" && cat >{quoted} && chmod {mode:o} {quoted}', stdin=text)

    def read(self, path: str) -> str:
        """Return what is in a file."""
        return self.run("cat", path).stdout

    def copy_in(self, source: Path, target: str) -> None:
        """Copy a file from the host to the path `target`."""
        with source.open("rb") as file:
            subprocess.run(
                ["nsenter", "--all", f"--target={self._leader}", "--", "/bin/cp", "/dev/stdin", target],
                stdin=file,
                env=_ENVIRONMENT,
                check=True,
            )

    def install(self, deb: Path, *options: str) -> str:
        """`apt-get install ./deb`, without a network; returns what apt printed."""
        target = f"/root/{deb.name}"
        self.copy_in(deb, target)
        return self.run("apt-get", "install", "--yes", *options, target).stdout

    def systemctl(self, *arguments: str, check: bool = True) -> str:
        """Return what systemctl printed, errors too."""
        done = self.run("systemctl", "--no-pager", "--full", *arguments, check=check)
        return done.stdout + done.stderr

    def property(self, name: str, unit: str = UNIT) -> str:
        """Return a property of a unit, as `systemctl show` prints it."""
        return self.run("systemctl", "show", "--property", name, "--value", unit).stdout.strip()

    def status_text(self, unit: str = UNIT) -> str:
        """Return the status line of the service, as `systemctl status` shows it."""
        return self.property("StatusText", unit)

    def main_pid(self, unit: str = UNIT) -> int:
        """Return the service's main process, numbered as in the machine; 0 when there is none."""
        return int(self.property("MainPID", unit))

    def children(self, pid: int) -> list[int]:
        """Return the children of a process, numbered as in the machine."""
        return [int(child) for child in self.run("pgrep", "--parent", str(pid), check=False).stdout.split()]

    def journal(self, *options: str) -> str:
        """Return the journal of this and earlier boots; options as for journalctl, such as `--unit=edge-agent`."""
        return self.run("journalctl", "--no-pager", "--output=short-precise", *options, check=False).stdout

    def kill(self, pid: int, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to a process, numbered as in the machine."""
        self.run("kill", f"-{number.name.removeprefix('SIG')}", str(pid))

    def configure_unit(self, name: str, text: str, unit: str = UNIT) -> None:
        """Write the drop-in `name` of a unit and have systemd read it; the service has to be restarted then."""
        self.write(f"/etc/systemd/system/{unit}.d/{name}.conf", text)
        self.systemctl("daemon-reload")

    @contextmanager
    def small_disk(self, path: str, megabytes: int) -> Iterator[None]:
        """Put a file system of this size on a folder, with a copy of what is in it. Stop the service around it.

        It is in memory: what was written to it is copied back at the end, and is gone after a reboot.
        """
        aside = "/mnt/small-disk"
        self.run(f"mkdir -p {aside} && mount -t tmpfs -o size={megabytes}m,mode=755 small-disk {aside}")
        self.run(f"cp -a {path}/. {aside}/ && mount --bind {aside} {path} && umount {aside}")
        try:
            yield
        finally:
            self.run(f"mount --bind {path} {aside} && umount {path}")
            self.run(f"cp -a {aside}/. {path}/ && umount {aside}")


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def _is_first_in_its_namespace(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    numbers = next(line for line in status.splitlines() if line.startswith("NSpid:")).split()[1:]
    return len(numbers) > 1 and numbers[-1] == "1"


def _remove_control_group(group: Path) -> None:
    """Remove an empty group; its last process may still be on its way out."""
    deadline = time.monotonic() + PATIENCE
    while group.is_dir():
        try:
            group.rmdir()
        except OSError as error:
            if time.monotonic() > deadline:
                raise MachineError(f"the control group {group} cannot be removed: {error}") from error
            time.sleep(_POLL)
