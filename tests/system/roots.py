"""Base trees of Debian systems, made once with mmdebstrap and kept in the user's cache.

A tree is made again when its recipe changes or when it is a week old, so that tests see Debian's current point
release. It is never written to: each machine lays an overlay over it. A lock per distribution lets test runs share
the trees; one that grows too old while somebody uses it is replaced by the first run that finds it unused.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

DISTRIBUTIONS = ("bookworm", "trixie")
_MAX_AGE = 7 * 24 * 3600.0
# systemd that can boot, and what the package edge-agent depends on: there is no network in a machine to get it from.
_PACKAGES = (
    *("systemd", "systemd-sysv", "dbus", "libpam-systemd", "udev", "procps", "iproute2", "ca-certificates"),
    *("python3", "libstdc++6", "libgcc-s1", "zlib1g", "libusb-1.0-0"),
)
_DEBIAN_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
_PROXIES = ("http_proxy", "https_proxy", "no_proxy")


def why_not() -> str | None:
    """Say why no system can be booted here; None if it can."""
    if os.geteuid() != 0:
        return "booting systems takes root: run make test-system as root"
    commands = {"mmdebstrap": "mmdebstrap", "systemd-nspawn": "systemd-container", "nsenter": "util-linux"}
    missing = [package for command, package in commands.items() if shutil.which(command, path=_DEBIAN_PATH) is None]
    return f"not installed: {', '.join(missing)}" if missing else None


@contextmanager
def base_tree(distribution: str, *more: str) -> Iterator[Path]:
    """Yield the read-only tree of a distribution, with `more` packages, which stays as it is until the context ends."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edge-agent-tests"
    cache.mkdir(parents=True, exist_ok=True)
    command = _recipe(distribution, more)
    key = hashlib.sha256("\0".join(command).encode()).hexdigest()[:12]
    kind = "+".join((distribution, *more))
    tree = cache / f"{kind}-{key}"
    with (cache / f"{kind}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        while not _is_fresh(tree):
            try:
                # Who uses an old tree does so for many minutes; who makes one is waited for.
                fcntl.flock(lock, fcntl.LOCK_EX | (fcntl.LOCK_NB if _stamp(tree).exists() else 0))
            except BlockingIOError:
                fcntl.flock(lock, fcntl.LOCK_SH)  # which the attempt has given up
                if _stamp(tree).exists():
                    break
                continue
            if not _is_fresh(tree):
                _make(command, tree, rubbish=list(cache.glob(f"{kind}-*")))
            fcntl.flock(lock, fcntl.LOCK_SH)
        yield tree


def _recipe(distribution: str, more: Sequence[str]) -> list[str]:
    include = ",".join((*_PACKAGES, *more))
    return ["mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", f"--include={include}", distribution]


def _is_fresh(tree: Path) -> bool:
    stamp = _stamp(tree)
    return stamp.exists() and time.time() - stamp.stat().st_mtime < _MAX_AGE


def _stamp(tree: Path) -> Path:
    return tree / ".made"


def _make(command: list[str], tree: Path, rubbish: list[Path]) -> None:
    for path in rubbish:
        shutil.rmtree(path)
    environ = {"PATH": _DEBIAN_PATH, **{name: os.environ[name] for name in _PROXIES if name in os.environ}}
    done = subprocess.run([*command, tree], env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)} failed:\n{done.stderr[-4000:]}"
    _stamp(tree).touch()
