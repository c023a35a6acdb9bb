"""Fresh clones, the Pythons to try them with, and Debian systems to install the package in."""

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from edge_agent import __version__
from tests.system.machine import Machine
from tests.system.roots import DISTRIBUTIONS, base_tree, why_not
from tests.system.service import Service

ROOT = Path(__file__).parents[2]
VERSIONS = ("3.11", "3.13")


def find_python(version: str) -> str:
    """Return an interpreter of this version, or skip."""
    candidates = [
        sys.executable,
        f"python{version}",
        *map(str, Path.home().glob(f".pyenv/versions/{version}.*/bin/python")),
    ]
    for candidate in candidates:
        path = shutil.which(candidate)
        if path is None:
            continue
        answer = subprocess.run(
            [path, "-c", "import sys, venv; print(sys.version)"], capture_output=True, text=True, check=False
        )
        if answer.stdout.startswith(version + "."):
            return path
    pytest.skip(f"there is no Python {version} on this machine")


def fresh_clone(folder: Path) -> Path:
    """Clone what is committed."""
    subprocess.run(["git", "clone", "--quiet", ROOT, folder / "edge-agent"], check=True)
    return folder / "edge-agent"


@pytest.fixture(params=VERSIONS)
def clone(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, str]:
    """A fresh clone of what is committed, and a Python to use it with."""
    python = find_python(request.param)
    return fresh_clone(tmp_path), python


@pytest.fixture(scope="session")
def base_trees() -> Iterator[Callable[[str], Path]]:
    """A function that returns the base tree of a distribution; see roots.py. Skips where nothing can be booted."""
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    with ExitStack() as stack:
        yield functools.cache(lambda distribution: stack.enter_context(base_tree(distribution)))


@pytest.fixture(params=DISTRIBUTIONS)
def distribution(request: pytest.FixtureRequest) -> str:
    """Each distribution that the package is for, in turn."""
    return str(request.param)


@pytest.fixture
def machine(base_trees: Callable[[str], Path], distribution: str, tmp_path: Path) -> Iterator[Machine]:
    """A machine that has booted, without the package."""
    with Machine([base_trees(distribution)], tmp_path / "machine") as machine:
        yield machine


@pytest.fixture(scope="session")
def debs() -> Callable[[str], Path]:
    """A function that builds the package for a distribution, once, and returns the file."""
    return functools.cache(build_deb)


@pytest.fixture
def deb(debs: Callable[[str], Path], distribution: str) -> Path:
    """The package for the distribution of `machine`."""
    return debs(distribution)


@pytest.fixture(scope="session")
def installed_trees(
    base_trees: Callable[[str], Path], debs: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], list[Path]]:
    """A function that returns the trees of a distribution with the package installed."""

    def install(distribution: str) -> list[Path]:
        base = base_trees(distribution)
        with Machine([base], tmp_path_factory.mktemp(f"installed-{distribution}")) as machine:
            machine.install(debs(distribution))
            return [machine.freeze(), base]

    return functools.cache(install)


@pytest.fixture
def installed(installed_trees: Callable[[str], list[Path]], distribution: str, tmp_path: Path) -> Iterator[Machine]:
    """A machine that has booted with the package installed, as it came: idle."""
    with Machine(installed_trees(distribution), tmp_path / "machine") as machine:
        yield machine


def build_deb(distribution: str, architecture: str = "amd64") -> Path:
    """Build the package as a developer does, unless $EDGE_AGENT_DEBS is a folder that has it."""
    name = f"edge-agent_{__version__}~{distribution}_{architecture}.deb"
    if ready := os.environ.get("EDGE_AGENT_DEBS"):
        return Path(ready) / name
    make = ["make", "--silent", "deb", f"DIST={distribution}", f"ARCH={architecture}"]
    done = subprocess.run(make, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, done.stdout[-10000:]
    return ROOT / "build/deb" / name


@pytest.fixture
def service(installed: Machine) -> Iterator[Service]:
    """The installed service, idle, with a Pub/Sub server that it can reach."""
    with Service(installed) as service:
        yield service
