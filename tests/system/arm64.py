"""An arm64 Debian system on an x86_64 machine: base trees made fast, and commands run in them under qemu-user.

    with emulation(), base_tree("bookworm", ["python3"]) as tree, Arm64(tree, folder) as system:
        system.run("uname", "-m")

What is real: arm64 programs and libraries of Debian, dpkg and the maintainer scripts, ordinary users, processes with
ids and a network of their own (none: not even a loopback device that is up). What is not: the kernel is the host's,
and systemd is installed but not booted, since qemu-user does not know seccomp: units, sandboxing and limits are
proven on amd64. ca-certificates is an empty stand-in. Nothing can be said of speed, nor of faults that only arm64's
weaker memory order would bring out.
"""

import fcntl
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Self

PATIENCE = 300.0
PROCESSOR = "cortex-a72"  # of the Raspberry Pi 4; under qemu's own choice, "max", NumPy's results cannot be trusted
USER_ID = 1000
USER = "pi"
_MAX_AGE = 7 * 24 * 3600.0
_BINFMT = Path("/proc/sys/fs/binfmt_misc")
_HANDLER = "edge-agent-tests-aarch64"
_FORMAT = Path("/usr/lib/binfmt.d/qemu-aarch64.conf")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_ENVIRONMENT = {"PATH": _PATH, "LANG": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive", "QEMU_CPU": PROCESSOR}
_PROXIES = ("http_proxy", "https_proxy", "no_proxy")
_MERGED_USR = "/usr/share/mmdebstrap/hooks/merged-usr/setup00.sh"
# The host's own dpkg unpacks, which takes a tenth of the time, and calls the maintainer scripts in the tree, emulated.
# Packages for all architectures count as the host's for it, so it sees conflicts of architectures that are none.
_INSTALL = (
    'dpkg --root="$1" --force-architecture --force-depends --force-unsafe-io --path-exclude="/usr/share/locale/*" '
    '--path-exclude="/usr/share/man/*" --path-exclude="/usr/share/doc/*" --install "$1"/var/cache/apt/archives/*.deb'
)
# Its scripts start thousands of processes, which takes minutes under emulation, and nothing here looks for a server.
_STANDS_IN = "ca-certificates"
_STAND_IN = f"""
set -e
folder=$(mktemp --directory)
mkdir $folder/DEBIAN
cat >$folder/DEBIAN/control <<END
Package: {_STANDS_IN}
Version: 0
Architecture: all
Multi-Arch: foreign
Maintainer: nobody <nobody@example.com>
Description: empty package for tests without a network
END
dpkg-deb --build $folder $folder.deb
dpkg --root="$1" --install $folder.deb
rm -r $folder $folder.deb
"""
# $1 tree, $2 folder. The last process is the first of its namespace: with it all others end.
_HOLD = """
set -e
mount -t overlay overlay -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work" "$2/root"
mount -t proc proc "$2/root/proc"
mount -t tmpfs -o mode=1777 tmpfs "$2/root/tmp"
mount -t tmpfs -o mode=755 tmpfs "$2/root/run"
echo ready
exec sleep infinity
"""


def why_not() -> str | None:
    """Say why arm64 cannot be emulated here; None if it can."""
    if os.geteuid() != 0:
        return "making and entering a Debian system takes root: run make test-system as root"
    if platform.machine() != "x86_64":
        return f"arm64 is emulated on x86_64 alone, and this is {platform.machine()}"
    commands = {"mmdebstrap": "mmdebstrap", "qemu-aarch64-static": "qemu-user-static", "unshare": "util-linux"}
    missing = [package for command, package in commands.items() if shutil.which(command, path=_PATH) is None]
    if missing:
        return f"not installed: {', '.join(missing)}"
    return None if _has_binfmt_misc() else "the kernel has no binfmt_misc"


def _has_binfmt_misc() -> bool:
    if "binfmt_misc" in Path("/proc/filesystems").read_text():
        return True
    modprobe = shutil.which("modprobe", path=_PATH)
    return modprobe is not None and subprocess.run([modprobe, "-q", "binfmt_misc"], check=False).returncode == 0


@contextmanager
def emulation() -> Iterator[None]:
    """Let the kernel run arm64 programs through qemu while the context lasts. One test run at a time can have it."""
    with (_cache() / "arm64.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        mounted_before = (_BINFMT / "register").exists()
        if not mounted_before:
            subprocess.run(["mount", "-t", "binfmt_misc", "binfmt_misc", _BINFMT], check=True)
        try:
            _unregister()  # what a test run left that was killed
            _register()
            yield
        finally:
            _unregister()
            if not mounted_before:
                subprocess.run(["umount", _BINFMT], check=True)


def _register() -> None:
    """Register qemu as Debian does, by a name of our own: it wins over a handler that is there, and can be removed."""
    _, name, rest = _FORMAT.read_text().strip().split(":", 2)
    assert name == "qemu-aarch64"
    # Flag F: the kernel opens qemu now, so that it need not lie in the trees.
    assert "F" in rest.rpartition(":")[2]
    (_BINFMT / "register").write_text(f":{_HANDLER}:{rest}")


def _unregister() -> None:
    if (_BINFMT / _HANDLER).exists():
        (_BINFMT / _HANDLER).write_text("-1")


@contextmanager
def base_tree(distribution: str, packages: Sequence[str]) -> Iterator[Path]:
    """Yield a read-only tree of what is essential in Debian and these packages, nothing else; ca-certificates is empty.

    It is kept in the user's cache, and made again when its recipe changes or when it is a week old. Only within
    `emulation`, whose lock keeps other test runs away.
    """
    command = _recipe(distribution, packages)
    key = hashlib.sha256("\0".join(command).encode()).hexdigest()[:12]
    tree = _cache() / f"arm64-{distribution}-{key}"
    if not _is_fresh(tree):
        for old in _cache().glob(f"arm64-{distribution}-*"):
            shutil.rmtree(old)
        _make(command, tree)
    yield tree


def _cache() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edge-agent-tests"
    cache.mkdir(parents=True, exist_ok=True)
    return cache


def _recipe(distribution: str, packages: Sequence[str]) -> list[str]:
    options = ["--quiet", "--mode=root", "--architectures=arm64", "--variant=extract", "--skip=download/empty"]
    real = sorted({"usr-is-merged", *packages} - {_STANDS_IN})
    include = ["--include=?essential", f"--include={','.join(real)}"]
    hooks = [f"--setup-hook={_MERGED_USR}", f"--setup-hook={_STAND_IN}", f"--extract-hook={_INSTALL}"]
    return ["mmdebstrap", *options, *include, *hooks, distribution]


def _is_fresh(tree: Path) -> bool:
    stamp = tree / ".made"
    return stamp.exists() and time.time() - stamp.stat().st_mtime < _MAX_AGE


def _make(command: list[str], tree: Path) -> None:
    environ = _ENVIRONMENT | {name: os.environ[name] for name in _PROXIES if name in os.environ}
    done = subprocess.run([*command, tree], env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{shlex.join(command)} failed:\n{(done.stdout + done.stderr)[-4000:]}"
    (tree / ".made").touch()


class Arm64:
    """One system for one test or several. `tree` is read-only, everything written goes to `folder`.

    Nothing outlives the context: the mounts lie in a mount namespace, the processes in one of process ids, and both
    end with this process.
    """

    def __init__(self, tree: Path, folder: Path) -> None:
        self._tree = tree
        self._folder = folder
        self._holder: subprocess.Popen[str] | None = None
        self._first = 0

    def __enter__(self) -> Self:
        for part in ("upper", "work", "root"):
            (self._folder / part).mkdir(parents=True)
        unshare = ["unshare", "--mount", "--propagation=private", "--pid", "--net", "--fork", "--kill-child"]
        self._holder = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *unshare, "sh", "-c", _HOLD, "hold", self._tree, self._folder],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._holder.stdout is not None
        ready = self._holder.stdout.readline()
        assert ready == "ready\n", "the system could not be mounted; see the error output"
        self._first = children(self._holder.pid)[0]
        self._add_user()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._holder is not None
        assert self._holder.stdout is not None
        self._holder.kill()  # and with it, by --kill-child, everything in the system
        self._holder.wait(PATIENCE)
        self._holder.stdout.read()  # ends when the last process that could write to it has ended
        self._holder.stdout.close()
        shutil.rmtree(self._folder)

    @property
    def root(self) -> Path:
        """The root folder of the system, as a path of this process."""
        return Path(f"/proc/{self._first}/root") / self._folder.relative_to("/") / "root"

    def _add_user(self) -> None:
        with (self.root / "etc/passwd").open("a") as users:
            users.write(f"{USER}:x:{USER_ID}:{USER_ID}::/home/{USER}:/bin/sh\n")
        home = self.root / "home" / USER
        home.mkdir(parents=True)
        os.chown(home, USER_ID, USER_ID)

    def run(self, *command: str, check: bool = True, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run a command as root. Fails with its output when it fails, unless `check` is false."""
        done = subprocess.run(
            [*self._enter(0), *command],
            env=_ENVIRONMENT | {"HOME": "/root"} | environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert not check or done.returncode == 0, (
            f"{shlex.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
        )
        return done

    def start(self, *command: str, log: IO[str], **environ: str) -> subprocess.Popen[bytes]:
        """Start a command as the ordinary user; what it prints goes to `log`. See `inner` for its process id."""
        return subprocess.Popen(
            [*self._enter(USER_ID), *command],
            env=_ENVIRONMENT | {"HOME": f"/home/{USER}"} | environ,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )

    def _enter(self, user: int) -> list[str]:
        namespaces = ["nsenter", f"--target={self._first}", "--mount", "--pid", "--net", "--"]
        inside = str(self._folder / "root")
        return [*namespaces, "chroot", f"--userspec={user}:{user}", "--groups=", inside]


def children(pid: int) -> list[int]:
    """Return the children of a process."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def command_line(pid: int) -> list[str]:
    """Return the command of a process, which begins with qemu's own in an emulated one; [] when it has just ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")[:-1]
    except (FileNotFoundError, ProcessLookupError):
        return []
