"""Builds the Debian packages into build/deb: `packaging/build_deb.py [DISTRIBUTION...] [ARCHITECTURE...]`.

1. The tree is exported: what git tracks, as it is on disk now, and files that are new to git.
2. The pinned wheels for the target's Python and processor are laid beside it, under vendor/. From here on nothing
   needs the network.
3. `dpkg-buildpackage` runs in the export; debian/rules does the rest.

All of it is done by Debian's own programs, and by uv for the wheels, whatever else comes first on the PATH.
"""

import fcntl
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from shutil import copy2, rmtree

ROOT = Path(__file__).resolve().parent.parent
OUTPUT = ROOT / "build/deb"
TOOLS = OUTPUT / "tools"
REQUIREMENTS = ROOT / "packaging/requirements"

PYTHONS = {"bookworm": "3.11", "trixie": "3.13"}
# manylinux_2_28: for glibc 2.28 or newer; bookworm has 2.36.
PLATFORMS = {"amd64": "x86_64-manylinux_2_28", "arm64": "aarch64-manylinux_2_28"}

# What the steps before dpkg-buildpackage need, which itself names what debian/control asks for.
PREREQUISITES = {
    "/usr/bin/dpkg-buildpackage": "dpkg-dev",
    "/usr/bin/git": "git",
    "/usr/lib/python3.*/ensurepip/__init__.py": "python3-venv",
}
# dpkg-shlibdeps reads libraries with it.
OBJDUMP = {"amd64": "x86_64-linux-gnu", "arm64": "aarch64-linux-gnu"}

# They would lead to another Python, or to other wheels than those that are pinned.
MISLEADING = {"PIP_FIND_LINKS", "UV_FIND_LINKS", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "MAKEFLAGS", "MAKELEVEL"}


class BuildError(Exception):
    """A package cannot be built; the message says why, and what to do."""


def main(arguments: list[str]) -> int:
    """Build the packages for the given distributions and architectures, or for all; returns the exit status."""
    if unknown := sorted(set(arguments) - PYTHONS.keys() - PLATFORMS.keys()):
        sys.stderr.write(f"unknown: {' '.join(unknown)}; known are {' '.join([*PYTHONS, *PLATFORMS])}\n")
        return os.EX_USAGE
    distributions = [name for name in PYTHONS if name in arguments] or list(PYTHONS)
    architectures = [name for name in PLATFORMS if name in arguments] or list(PLATFORMS)
    os.umask(0o022)
    OUTPUT.mkdir(parents=True, exist_ok=True)
    # Held until the end of the process: two builds at once would get in each other's way.
    fcntl.flock(os.open(OUTPUT, os.O_RDONLY), fcntl.LOCK_EX)
    try:
        check_prerequisites(architectures)
        install_tools()
        for distribution in distributions:
            for architecture in architectures:
                build(distribution, architecture)
    except BuildError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except subprocess.CalledProcessError as error:
        sys.stderr.write(f"failed with {error.returncode}: {' '.join(error.cmd)}\n")
        return 1
    return os.EX_OK


def check_prerequisites(architectures: list[str]) -> None:
    """Name what is not installed. Raises BuildError."""
    objdumps = {
        f"/usr/bin/{OBJDUMP[one]}-objdump": f"binutils-{OBJDUMP[one].replace('_', '-')}" for one in architectures
    }
    needed = PREREQUISITES | objdumps
    missing = sorted({package for path, package in needed.items() if not any(Path("/").glob(path[1:]))})
    if missing:
        raise BuildError(f"not installed; as root: apt install {' '.join(missing)}")


def install_tools() -> None:
    """Install uv and the build back ends, which are pinned, unless they are there."""
    pins = [REQUIREMENTS / "build.txt", REQUIREMENTS / "package.txt"]
    stamp, wanted = TOOLS / "installed", "".join(path.read_text() for path in pins)
    if stamp.exists() and stamp.read_text() == wanted:
        return
    run("/usr/bin/python3", "-m", "venv", "--clear", TOOLS)
    files = [word for path in pins for word in ("-r", path)]
    run(TOOLS / "bin/python", "-m", "pip", "--disable-pip-version-check", "install", "-q", "--require-hashes", *files)
    stamp.write_text(wanted)


def build(distribution: str, architecture: str) -> None:
    """Build one package. Raises BuildError."""
    begin = time.monotonic()
    work = OUTPUT / "work"
    tree = work / "edge-agent"
    rmtree(work, ignore_errors=True)
    export(tree)
    version = add_distribution(tree / "debian/changelog", distribution)
    fetch_wheels(tree / "vendor", distribution, architecture)
    build_package(tree, architecture, OUTPUT / f"edge-agent_{version}_{architecture}.log")
    for made in sorted(work.glob(f"edge-agent_{version}_{architecture}.*")):
        made.rename(OUTPUT / made.name)
    rmtree(work)
    package = OUTPUT / f"edge-agent_{version}_{architecture}.deb"
    size, seconds = package.stat().st_size / 1e6, time.monotonic() - begin
    sys.stdout.write(f"{package.relative_to(ROOT)}: {size:.1f} MB in {seconds:.0f} s\n")


def export(tree: Path) -> None:
    """Copy what belongs to the project to `tree`."""
    for name in {*listed("--cached"), *listed("--others", "--exclude-standard")}:
        source, target = ROOT / name, tree / name
        if os.path.lexists(source):  # it may be deleted, and git not know it yet
            target.parent.mkdir(parents=True, exist_ok=True)
            copy2(source, target, follow_symlinks=False)
    if new := list(listed("--others", "--exclude-standard")):
        sys.stdout.write(f'note: {len(new)} files are new to git, and taken along; "git status" names them\n')


def listed(*options: str) -> Iterator[str]:
    """Yield what `git ls-files` lists."""
    command = ["/usr/bin/git", "-C", str(ROOT), "ls-files", "-z", *options]
    listing = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return filter(None, listing.split("\0"))


def add_distribution(changelog: Path, distribution: str) -> str:
    """Make "edge-agent (0.1.0) unstable" into "edge-agent (0.1.0~bookworm) bookworm", and return that version."""
    text = changelog.read_text()
    top = re.match(r"edge-agent \(([^)~]+)\) \w+;", text)
    if top is None:
        raise BuildError(f"{changelog.name} does not begin with edge-agent (VERSION) DISTRIBUTION;")
    version = f"{top[1]}~{distribution}"
    changelog.write_text(f"edge-agent ({version}) {distribution};{text[top.end() :]}")
    return version


def fetch_wheels(vendor: Path, distribution: str, architecture: str) -> None:
    """Lay the target's wheels under vendor/site, and the build back ends for this machine under vendor/build."""
    target = ["--python-version", PYTHONS[distribution], "--python-platform", PLATFORMS[architecture]]
    # sdnotify is published as source alone. It is pure Python, so this machine can build its wheel.
    wheels = ["--only-binary", ":all:", "--no-binary", "sdnotify", "--no-build-isolation"]
    install_pinned("runtime.txt", vendor / "site", *target, *wheels)
    install_pinned("build.txt", vendor / "build")


def install_pinned(requirements: str, target: Path, *options: str) -> None:
    """Install what is pinned with hashes into the directory `target`."""
    # Links into uv's cache would let whoever changes a file change the cache.
    fixed = ["--quiet", "--require-hashes", "--no-deps", "--link-mode", "copy"]
    # In /, because [tool.uv] in pyproject.toml is for making the pins, and contradicts their hashes.
    where: list[str | Path] = ["--directory", "/", "--python", TOOLS / "bin/python", "--target", target]
    run(TOOLS / "bin/uv", "pip", "install", *fixed, *where, *options, "-r", REQUIREMENTS / requirements)


def build_package(tree: Path, architecture: str, log: Path) -> None:
    """Run dpkg-buildpackage; what it says goes to `log`, the end of which is shown when it fails. Raises BuildError."""
    command = ["dpkg-buildpackage", "--build=binary", f"--host-arch={architecture}", "--no-sign"]
    with log.open("w") as output:
        status = subprocess.run(
            command, cwd=tree, env=environment(), stdout=output, stderr=subprocess.STDOUT, check=False
        ).returncode
    if status:
        end = [line[:400] for line in log.read_text().splitlines()[-30:]]
        raise BuildError("\n".join([*end, f"dpkg-buildpackage failed; all that it said is in {log}"]))


def run(*command: str | Path) -> None:
    """Run a command that must succeed."""
    subprocess.run([str(word) for word in command], check=True, env=environment())


def environment() -> dict[str, str]:
    """Return the environment for the steps: this machine's certificates, proxies and package index stay."""
    kept = {name: value for name, value in os.environ.items() if name not in MISLEADING}
    if "PIP_INDEX_URL" in kept:  # uv heeds its own variable alone
        kept.setdefault("UV_DEFAULT_INDEX", kept["PIP_INDEX_URL"])
    # Nothing is tested during the build: the target's programs need not run here.
    return {**kept, "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DEB_BUILD_OPTIONS": "nocheck"}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
