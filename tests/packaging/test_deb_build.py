"""The Debian packages, built twice: both are the same, lintian is content, and Debian's own modules do no harm."""

import functools
import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edge_agent import __version__

pytestmark = [pytest.mark.system, pytest.mark.timeout(1800)]

ROOT = Path(__file__).parents[2]
# Each distribution and each processor once.
TARGETS = [("bookworm", "amd64"), ("trixie", "arm64")]
# What ought to make no difference. On one processor, xz works with one thread.
SURROUNDINGS = [
    ([], 0o022, {"TZ": "UTC", "LC_ALL": "C"}),
    (["taskset", "--cpu-list", "0"], 0o077, {"TZ": "Asia/Kathmandu", "LC_ALL": "C.UTF-8", "PYTHONPATH": "/nowhere"}),
]

# Surroundings, distribution, architecture.
Build = Callable[[int, str, str], Path]


def run(*command: str | Path) -> str:
    """Run a command that must succeed; returns what it wrote."""
    answer = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert answer.returncode == 0, f"{command}\n{answer.stdout}"
    return answer.stdout


def copy_tree(target: Path, umask: int) -> Path:
    """Copy what git knows, and what is new, into a repository of its own.

    Modes are as `umask` would have them, and times as if each tree had been checked out at another time.
    """
    names = run("git", "-C", ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
    for source in {ROOT / name for name in names if name}:
        if os.path.lexists(source):
            copy = target / source.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, copy, follow_symlinks=False)
            if not copy.is_symlink():
                copy.chmod(copy.stat().st_mode & ~umask)
                os.utime(copy, (umask * 1e7, umask * 1e7))
    run("git", "init", "--quiet", target)
    return target


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Build]:
    """A function that builds a package in the given surroundings, once, and returns its file."""
    missing = [command for command in ("dpkg-buildpackage", "dh", "dh_python3") if shutil.which(command) is None]
    if missing:
        pytest.skip(f"not on this machine: {', '.join(missing)}")
    folder = tmp_path_factory.mktemp("build")
    trees = [copy_tree(folder / name, umask) for name, (_, umask, _) in zip(("a", "b/c"), SURROUNDINGS, strict=True)]

    @functools.cache
    def build(surroundings: int, distribution: str, architecture: str) -> Path:
        prefix, umask, environ = SURROUNDINGS[surroundings]
        make = ["make", "--silent", "deb", f"DIST={distribution}", f"ARCH={architecture}", "XZ_LEVEL=1"]
        tree = trees[surroundings]
        subprocess.run([*prefix, *make], cwd=tree, env={**os.environ, **environ}, umask=umask, check=True)
        return tree / f"build/deb/edge-agent_{__version__}~{distribution}_{architecture}.deb"

    yield build
    for tree in trees:
        shutil.rmtree(tree)


@pytest.mark.parametrize("target", TARGETS, ids="-".join)
def test_the_same_tree_gives_the_same_bytes(build: Build, target: tuple[str, str]) -> None:
    debs = [build(surroundings, *target) for surroundings in range(len(SURROUNDINGS))]
    hashes = {hashlib.sha256(deb.read_bytes()).hexdigest() for deb in debs}
    assert len(hashes) == 1, f"diffoscope {' '.join(map(str, debs))}"


@pytest.mark.parametrize("target", TARGETS, ids="-".join)
def test_lintian_has_nothing_to_say(build: Build, target: tuple[str, str]) -> None:
    if shutil.which("lintian") is None:
        pytest.skip("lintian is not on this machine")
    changes = build(0, *target).with_suffix(".changes")
    assert run("lintian", "--allow-root", "--display-info", "--fail-on", "error,warning,info", changes) == ""


def test_debians_module_google_does_not_hide_ours(build: Build, tmp_path: Path) -> None:
    """Debian's python3-google-auth fixes where "google" is looked for, by a .pth file, before the launcher runs."""
    python = Path("/usr/bin/python3")
    if run(python, "-c", "import sys; print(sys.version_info[:2])") != "(3, 11)\n":
        pytest.skip("this machine is not Debian 12")
    run("dpkg-deb", "--extract", build(0, "bookworm", "amd64"), tmp_path / "root")
    own = tmp_path / "root/usr/lib/edge-agent"
    run(python, "-m", "venv", "--without-pip", tmp_path / "venv")
    site = tmp_path / "venv/lib/python3.11/site-packages"
    (site / "google/auth").mkdir(parents=True)
    (site / "google_auth-nspkg.pth").write_text(
        "import sys, types; sys.modules.setdefault('google', types.ModuleType('google')).__path__ = "
        f"[{str(site / 'google')!r}]\n"
    )
    launcher = (tmp_path / "root/usr/bin/edge-agent").read_text().replace("/usr/lib/edge-agent", str(own))
    program = tmp_path / "program.py"
    program.write_text(
        f"{launcher.partition('from edge_agent.cli')[0]}\n"
        "import edge_agent.telemetry.sending.pubsub, google.auth\n"
        "print(google.auth.__file__, sys.path[-1])\n"
    )
    assert run(tmp_path / "venv/bin/python", "-I", program) == f"{own}/google/auth/__init__.py {site}\n"
