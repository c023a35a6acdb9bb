"""Builds the Debian packages: `packaging/build_deb.py bookworm amd64`; `make deb` calls it.

1. The tree is exported: what git tracks as it is on disk now, and files that are new, which are named.
2. The pinned wheels are fetched for the target's Python and processor and laid beside it, under vendor/: from here on
   nothing needs the network.
3. `dpkg-buildpackage` runs in the export; debian/rules does the rest.

It runs with Debian's own Python and a PATH of Debian's own programs, whatever else is installed.
"""

import fcntl
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from shutil import copy2, rmtree

ROOT = Path(__file__).resolve().parent.parent
OUTPUT = ROOT / "build/deb"
REQUIREMENTS = ROOT / "packaging/requirements"
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"

PYTHONS = {"bookworm": "3.11", "trixie": "3.13"}
# manylinux_2_28: glibc 2.28 or newer; bookworm has 2.36.
PLATFORMS = {"amd64": "x86_64-manylinux_2_28", "arm64": "aarch64-manylinux_2_28"}
DEBIAN_PROGRAMS = {"dpkg-buildpackage": "dpkg-dev", "dh": "debhelper", "dh_python3": "dh-python", "git": "git"}


class BuildError(Exception):
    """The packages cannot be built; the message says why, and what to do."""


def main(arguments: list[str]) -> int:
    """Build for the given distribution and architecture; without them, for all."""
    distributions = [name for name in arguments if name in PYTHONS] or list(PYTHONS)
    architectures = [name for name in arguments if name in PLATFORMS] or list(PLATFORMS)
    if unknown := set(arguments) - PYTHONS.keys() - PLATFORMS.keys():
        sys.stderr.write(f"unknown: {' '.join(unknown)}; known are {' '.join([*PYTHONS, *PLATFORMS])}\n")
        return os.EX_USAGE
    os.umask(0o022)
    OUTPUT.mkdir(parents=True, exist_ok=True)
    try:
        lock = os.open(OUTPUT, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX)  # until the end of the process: two builds would get in each other's way
        prepare()
        for distribution in distributions:
            for architecture in architectures:
                build(distribution, architecture)
    except BuildError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except subprocess.CalledProcessError as error:
        sys.stderr.write(f"failed with {error.returncode}: {' '.join(map(str, error.cmd))}\n")
        return 1
    return 0


def prepare() -> None:
    """Look for Debian's programs and install the pinned tools, unless they are there."""
    missing = [package for program, package in DEBIAN_PROGRAMS.items() if not (Path("/usr/bin") / program).exists()]
    if missing:
        raise BuildError(f"missing: apt install {' '.join(missing)}")
    tools, stamp = OUTPUT / "tools", OUTPUT / "tools/installed"
    pins = [REQUIREMENTS / "build.txt", REQUIREMENTS / "package.txt"]
    wanted = "".join(path.read_text() for path in pins)
    if stamp.exists() and stamp.read_text() == wanted:
        return
    run("/usr/bin/python3", "-m", "venv", "--clear", tools)
    files = [word for path in pins for word in ("-r", path)]
    run(tools / "bin/python", "-m", "pip", "--disable-pip-version-check", "install", "-q", "--require-hashes", *files)
    stamp.write_text(wanted)


def build(distribution: str, architecture: str) -> None:
    """Build one package; it is put into build/deb."""
    begin = time.monotonic()
    work = OUTPUT / "work" / f"{distribution}-{architecture}"
    tree = work / "edge-agent"
    rmtree(work, ignore_errors=True)
    export(tree)
    version = add_distribution(tree / "debian/changelog", distribution)
    fetch(tree / "vendor", distribution, architecture)
    build_package(tree, architecture, OUTPUT / f"edge-agent_{version}_{architecture}.log")
    for made in sorted(work.glob(f"edge-agent_{version}_*")):
        made.rename(OUTPUT / made.name)
    rmtree(work)
    package = OUTPUT / f"edge-agent_{version}_{architecture}.deb"
    size = package.stat().st_size / 1e6
    sys.stdout.write(f"{package.relative_to(ROOT)}: {size:.1f} MB in {time.monotonic() - begin:.0f} s\n")


def export(tree: Path) -> None:
    """Copy what belongs to the project to `tree`: what git tracks, as it is now, and what is new."""
    for name in listed("--cached", "--others", "--exclude-standard"):
        source, target = ROOT / name, tree / name
        if not os.path.lexists(source):
            continue  # deleted, but not yet in git
        target.parent.mkdir(parents=True, exist_ok=True)
        copy2(source, target, follow_symlinks=False)
    if new := listed("--others", "--exclude-standard"):
        sys.stdout.write(f"note: {len(new)} files that are not in git are taken along (git status shows them)\n")


def listed(*options: str) -> list[str]:
    """Return what `git ls-files` lists."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", *options]
    listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return sorted(set(filter(None, listing.split("\0"))))


def add_distribution(changelog: Path, distribution: str) -> str:
    """Make "edge-agent (0.1.0) unstable" into "edge-agent (0.1.0~bookworm) bookworm"; return that version."""
    text = changelog.read_text()
    top = re.match(r"edge-agent \(([^)~]+)\) \w+;", text)
    if top is None:
        raise BuildError(f"{changelog.name} does not begin with edge-agent (VERSION) DISTRIBUTION;")
    version = f"{top[1]}~{distribution}"
    changelog.write_text(f"edge-agent ({version}) {distribution};" + text[top.end() :])
    return version


def fetch(vendor: Path, distribution: str, architecture: str) -> None:
    """Lay the wheels of the target under vendor/site, and the build back ends for this machine under vendor/build."""
    tools = OUTPUT / "tools/bin"
    # In /, because [tool.uv] in pyproject.toml is about making the pins and contradicts their hashes.
    here = Path("/")
    install = [tools / "uv", "pip", "install", "--quiet", "--python", tools / "python", "--require-hashes", "--no-deps"]
    # Copies, because hard links into uv's cache would let a later step change the cache.
    install += ["--link-mode", "copy"]
    target = ["--python-version", PYTHONS[distribution], "--python-platform", PLATFORMS[architecture]]
    # sdnotify comes as source only, and is pure Python.
    wheels = ["--only-binary", ":all:", "--no-binary", "sdnotify", "--no-build-isolation"]
    run(*install, *target, *wheels, "--target", vendor / "site", "-r", REQUIREMENTS / "runtime.txt", cwd=here)
    run(*install, "--target", vendor / "build", "-r", REQUIREMENTS / "build.txt", cwd=here)


def build_package(tree: Path, architecture: str, log: Path) -> None:
    """Run dpkg-buildpackage; what it says goes to `log`, and is shown when it fails."""
    command = ["dpkg-buildpackage", "--build=binary", f"--host-arch={architecture}", "--no-sign"]
    with log.open("w") as output:
        status = subprocess.run(
            command, cwd=tree, env=environment(), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        ).returncode
    if status:
        end = log.read_text().splitlines()[-30:]
        raise BuildError("\n".join([*(line[:400] for line in end), f"dpkg-buildpackage failed; all of it: {log}"]))


def run(*command: str | Path, cwd: Path = ROOT) -> None:
    """Run a command that must succeed."""
    subprocess.run(list(map(str, command)), check=True, cwd=cwd, env=environment())


def environment() -> dict[str, str]:
    """Return the environment without what would lead to another Python or other wheels.

    Certificates, proxies and package indexes of this machine stay; uv is told of pip's index.
    """
    unwanted = ("PIP_FIND_LINKS", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "MAKEFLAGS", "MAKELEVEL", "MFLAGS")
    kept = {name: value for name, value in os.environ.items() if name not in unwanted}
    if "PIP_INDEX_URL" in kept:
        kept.setdefault("UV_DEFAULT_INDEX", kept["PIP_INDEX_URL"])
    return {**kept, "PATH": PATH}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
