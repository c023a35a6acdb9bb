"""The Debian packages, built twice on this machine: what is in them, that both are the same, and what lintian says."""

import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

from edge_agent import __version__

pytestmark = [pytest.mark.system, pytest.mark.timeout(1800)]

ROOT = Path(__file__).parents[2]
# Each distribution and each processor once; what is special about one is the same with the other.
TARGETS = [("bookworm", "amd64"), ("trixie", "arm64")]
PYTHONS = {"bookworm": "3.11", "trixie": "3.13"}
MACHINES = {"amd64": 62, "arm64": 183}  # e_machine in ELF
# What ought to make no difference. `taskset` makes xz work with one thread.
SURROUNDINGS = [
    ([], 0o022, {"TZ": "UTC", "LC_ALL": "C"}),
    (
        ["taskset", "--cpu-list", "0"],
        0o077,
        {"TZ": "Asia/Kathmandu", "LC_ALL": "C.UTF-8", "PIP_FIND_LINKS": "/nowhere"},
    ),
]


@dataclass(frozen=True)
class Package:
    """A built package."""

    distribution: str
    architecture: str
    deb: Path

    def field(self, name: str) -> str:
        return run("dpkg-deb", "--field", self.deb, name).strip()

    @cached_property
    def listing(self) -> list[list[str]]:
        """Mode, owner, size, date, time and path of each file."""
        return [line.split(maxsplit=5) for line in run("dpkg-deb", "--contents", self.deb).splitlines()]

    @cached_property
    def paths(self) -> set[str]:
        """The path of each file, and of each directory with a "/" at the end."""
        return {entry[5].partition(" -> ")[0].removeprefix(".") for entry in self.listing}

    def extract(self, folder: Path) -> Path:
        run("dpkg-deb", "--extract", self.deb, folder)
        return folder


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
def build(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[int, str, str], Package]]:
    """A function that builds a package in the given surroundings, once."""
    missing = [command for command in ("dpkg-buildpackage", "dh", "dh_python3") if shutil.which(command) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)}: not on this machine")
    folder = tmp_path_factory.mktemp("build")
    trees = [copy_tree(folder / name, umask) for name, (_, umask, _) in zip(("a", "b/c"), SURROUNDINGS, strict=True)]
    built: dict[tuple[int, str, str], Package] = {}

    def build(surroundings: int, distribution: str, architecture: str) -> Package:
        if (surroundings, distribution, architecture) not in built:
            prefix, umask, environ = SURROUNDINGS[surroundings]
            make = ["make", "--silent", "deb", f"DIST={distribution}", f"ARCH={architecture}", "XZ_LEVEL=1"]
            tree = trees[surroundings]
            subprocess.run([*prefix, *make], cwd=tree, env={**os.environ, **environ}, umask=umask, check=True)
            deb = tree / f"build/deb/edge-agent_{__version__}~{distribution}_{architecture}.deb"
            built[surroundings, distribution, architecture] = Package(distribution, architecture, deb)
        return built[surroundings, distribution, architecture]

    yield build
    for tree in trees:
        shutil.rmtree(tree)


@pytest.fixture(scope="session", params=TARGETS, ids="-".join)
def package(request: pytest.FixtureRequest, build: Callable[[int, str, str], Package]) -> Package:
    """A package for each of TARGETS."""
    return build(0, *request.param)


def test_the_same_tree_gives_the_same_bytes(build: Callable[[int, str, str], Package], package: Package) -> None:
    again = build(1, package.distribution, package.architecture)
    hashes = [hashlib.sha256(one.deb.read_bytes()).hexdigest() for one in (package, again)]
    assert hashes[0] == hashes[1], f"compare {package.deb} and {again.deb} with diffoscope"


def test_lintian_has_nothing_to_say(package: Package) -> None:
    if shutil.which("lintian") is None:
        pytest.skip("lintian is not on this machine")
    changes = package.deb.with_suffix(".changes")
    assert run("lintian", "--allow-root", "--display-info", "--fail-on", "error,warning,info", changes) == ""


def test_it_depends_on_the_python_that_the_wheels_are_for(package: Package) -> None:
    minor = int(PYTHONS[package.distribution].partition(".")[2])
    needed = package.field("Depends").split(", ")
    assert {f"python3 (>= 3.{minor}~)", f"python3 (<< 3.{minor + 1})", "ca-certificates"} <= set(needed)
    assert any(one.startswith("libc6 (>= ") for one in needed)
    assert not any("python3.1" in one for one in needed if f"python3.{minor}" not in one)


def test_its_version_names_the_distribution(package: Package) -> None:
    assert package.field("Version") == f"{__version__}~{package.distribution}"
    assert package.field("Architecture") == package.architecture


def test_everything_is_in_its_place(package: Package) -> None:
    expected = {
        "/etc/edge-agent.toml",
        "/usr/bin/edge-agent",
        "/usr/lib/systemd/system/edge-agent.service",
        "/usr/lib/sysusers.d/edge-agent.conf",
        "/usr/lib/udev/rules.d/59-edge-agent.rules",
        "/usr/share/bash-completion/completions/edge-agent",
        "/usr/share/bug/edge-agent/control",
        "/usr/share/bug/edge-agent/presubj",
        "/usr/share/bug/edge-agent/redact.py",
        "/usr/share/bug/edge-agent/script",
        "/usr/share/doc/edge-agent/README.Debian",
        "/usr/share/doc/edge-agent/changelog.gz",
        "/usr/share/doc/edge-agent/copyright",
        "/usr/share/doc/edge-agent/event.schema.json",
        "/usr/share/doc/edge-agent/examples/demo.toml",
        "/usr/share/doc/edge-agent/sandbox.md.gz",
        "/usr/share/doc/edge-agent/sbom.cdx.json",
        "/usr/share/doc/edge-agent/sources.md.gz",
        "/usr/share/lintian/overrides/edge-agent",
        "/usr/share/man/man5/edge-agent.toml.5.gz",
        "/usr/share/man/man8/edge-agent.8.gz",
        "/usr/share/python3/runtime.d/edge-agent.rtupdate",
    }
    own = "/usr/lib/edge-agent/"
    assert {path for path in package.paths if not path.endswith("/") and not path.startswith(own)} == expected


def test_modes_and_owners(package: Package) -> None:
    assert {entry[1] for entry in package.listing} == {"root/root"}
    programs = {entry[5] for entry in package.listing if entry[0].startswith("-rwx")}
    assert programs == {
        "./usr/bin/edge-agent",
        "./usr/share/bug/edge-agent/script",
        "./usr/share/python3/runtime.d/edge-agent.rtupdate",
    }
    assert {entry[0] for entry in package.listing} <= {"drwxr-xr-x", "-rwxr-xr-x", "-rw-r--r--", "lrwxrwxrwx"}


def test_the_settings_are_the_only_conffile(package: Package) -> None:
    assert run("dpkg-deb", "--info", package.deb, "conffiles") == "/etc/edge-agent.toml\n"


def test_metadata_is_there_and_nothing_of_this_machine(package: Package) -> None:
    own = "/usr/lib/edge-agent"
    assert f"{own}/edge_agent-{__version__}.dist-info/entry_points.txt" in package.paths
    names = {Path(path).name for path in package.paths}
    assert names.isdisjoint({"RECORD", "INSTALLER", "REQUESTED", "direct_url.json", "__pycache__"})
    assert f"{own}/bin/" not in package.paths


def test_libraries_are_for_the_processor_and_the_python(package: Package, tmp_path: Path) -> None:
    own = package.extract(tmp_path) / "usr/lib/edge-agent"
    libraries = [path for path in own.rglob("*.so*") if path.is_file()]
    assert libraries
    for path in libraries:
        with path.open("rb") as file:
            head = file.read(20)
        assert (head[:4], int.from_bytes(head[18:20], "little")) == (b"\x7fELF", MACHINES[package.architecture]), path
    tag = f".cpython-{PYTHONS[package.distribution].replace('.', '')}-"
    assert [path.name for path in libraries if ".cpython-" in path.name and tag not in path.name] == []


def test_who_is_trusted_is_decided_by_the_machine(package: Package) -> None:
    links = dict(entry[5].split(" -> ") for entry in package.listing if entry[0].startswith("l"))
    assert links == {
        "./usr/lib/edge-agent/certifi/cacert.pem": "/etc/ssl/certs/ca-certificates.crt",
        "./usr/lib/edge-agent/grpc/_cython/_credentials/roots.pem": "/etc/ssl/certs/ca-certificates.crt",
    }


def test_the_module_google_of_debian_does_not_hide_ours(package: Package, tmp_path: Path) -> None:
    """Debian's python3-google-auth fixes the path of the package "google" when Python starts, with a .pth file."""
    python = Path("/usr/bin/python3")
    version = run(python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])").strip()
    if package.architecture != "amd64" or version != PYTHONS[package.distribution]:
        pytest.skip("the package's Python is not on this machine")
    own = package.extract(tmp_path / "root") / "usr/lib/edge-agent"
    run(python, "-m", "venv", "--without-pip", tmp_path / "venv")
    site = tmp_path / f"venv/lib/python{version}/site-packages"
    (site / "google/auth").mkdir(parents=True)
    (site / "x-nspkg.pth").write_text(
        "import sys, types; sys.modules.setdefault('google', types.ModuleType('google')).__path__ = "
        f"[{str(site / 'google')!r}]\n"
    )
    launcher = (ROOT / "packaging/edge-agent").read_text().replace("/usr/lib/edge-agent", str(own))
    begin = launcher.partition("from edge_agent.cli")[0]
    program = tmp_path / "program.py"
    program.write_text(
        f"{begin}\nimport edge_agent.telemetry.pubsub\nimport google.auth\nprint(google.auth.__file__, sys.path[-1])"
    )
    answer = run(tmp_path / "venv/bin/python", "-I", program)
    assert answer == f"{own}/google/auth/__init__.py {site}\n"
