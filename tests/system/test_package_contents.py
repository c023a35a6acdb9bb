"""What is in the packages, and what they say of themselves. Nothing is booted."""

import email.message
import email.parser
import fnmatch
import functools
import gzip
import io
import json
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pytest

from edge_agent import __version__
from tests.system.conftest import ROOT
from tests.system.roots import DISTRIBUTIONS

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]

LIBRARY = "usr/lib/edge-agent/"
DOCUMENTS = "usr/share/doc/edge-agent/"
PYTHONS = {"bookworm": ("3.11", "3.12"), "trixie": ("3.13", "3.14")}
# Number in an ELF header, and name in a file's name.
MACHINES = {"amd64": (0x3E, "x86_64"), "arm64": (0xB7, "aarch64")}
# Everything outside of the private module directory.
FILES = {
    "etc/edge-agent.toml",
    "usr/bin/edge-agent",
    "usr/lib/systemd/system/edge-agent.service",
    "usr/lib/sysusers.d/edge-agent.conf",
    "usr/lib/udev/rules.d/59-edge-agent.rules",
    "usr/share/bash-completion/completions/edge-agent",
    "usr/share/bug/edge-agent/control",
    "usr/share/bug/edge-agent/presubj",
    "usr/share/bug/edge-agent/redact.py",
    "usr/share/bug/edge-agent/script",
    f"{DOCUMENTS}README.Debian",
    f"{DOCUMENTS}changelog.gz",
    f"{DOCUMENTS}cloud.md.gz",
    f"{DOCUMENTS}copyright",
    f"{DOCUMENTS}edge-tpu.md.gz",
    f"{DOCUMENTS}event.schema.json",
    f"{DOCUMENTS}events.md.gz",
    *(f"{DOCUMENTS}examples/{path.name}" for path in (ROOT / "config/examples").iterdir()),
    *(f"{DOCUMENTS}examples/{path.relative_to(ROOT / 'config')}" for path in (ROOT / "config/cloud").rglob("*.*")),
    f"{DOCUMENTS}examples/demo.toml",
    f"{DOCUMENTS}models.md.gz",
    f"{DOCUMENTS}releases.md.gz",
    f"{DOCUMENTS}rollout.md.gz",
    f"{DOCUMENTS}sandbox.md.gz",
    f"{DOCUMENTS}sbom.cdx.json",
    f"{DOCUMENTS}sources.md.gz",
    "usr/share/lintian/overrides/edge-agent",
    "usr/share/man/man5/edge-agent.toml.5.gz",
    "usr/share/man/man8/edge-agent.8.gz",
    "usr/share/python3/runtime.d/edge-agent.rtupdate",
}
PROGRAMS = {"usr/bin/edge-agent", "usr/share/bug/edge-agent/script", "usr/share/python3/runtime.d/edge-agent.rtupdate"}
# What the wheels bring and nobody needs at run time.
UNWANTED = re.compile(
    r"\.pyi$|\.pyc$|\.[ch]$|/tests?/|\.dist-info/(RECORD|INSTALLER|REQUESTED|direct_url\.json)$|/\.|/__pycache__/"
)
AUTHORITIES = "/etc/ssl/certs/ca-certificates.crt"


class Target(NamedTuple):
    """What a package is for."""

    distribution: str
    architecture: str


@dataclass(frozen=True)
class Package:
    """A package's file, its control fields, and what it unpacks."""

    deb: Path
    control: email.message.Message
    members: dict[str, tarfile.TarInfo]
    contents: dict[str, bytes]

    @property
    def files(self) -> set[str]:
        """The paths of everything but folders."""
        return {path for path, member in self.members.items() if not member.isdir()}


TARGETS = [Target(distribution, architecture) for distribution in DISTRIBUTIONS for architecture in MACHINES]


@pytest.fixture(params=TARGETS, ids="-".join)
def target(request: pytest.FixtureRequest) -> Target:
    """Each package's target in turn."""
    found: Target = request.param
    return found


@pytest.fixture(scope="session")
def packages(debs: Callable[[str], Path]) -> Callable[[Target], Package]:
    """A function that reads a package. amd64 is built, arm64 has to be there."""

    def read(target: Target) -> Package:
        deb = debs(target.distribution)
        if target.architecture != "amd64":
            deb = deb.with_name(deb.name.replace("amd64", target.architecture))
            if not deb.exists():
                pytest.skip(f"make deb DIST={target.distribution} ARCH={target.architecture} has not been run")
        return read_package(deb)

    return functools.cache(read)


@pytest.fixture
def package(packages: Callable[[Target], Package], target: Target) -> Package:
    """The package for the target."""
    return packages(target)


def read_package(deb: Path) -> Package:
    """Read the package into memory."""
    unpacked = subprocess.run(["dpkg-deb", "--fsys-tarfile", deb], capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(unpacked)) as tar:
        members = {member.name.removeprefix("./"): member for member in tar if member.name != "."}
        contents = {}
        for path, member in members.items():
            file = tar.extractfile(member) if member.isfile() else None
            if file is not None:
                contents[path] = file.read()
    fields = subprocess.run(["dpkg-deb", "--field", deb], capture_output=True, text=True, check=True).stdout
    return Package(deb, email.parser.Parser().parsestr(fields), members, contents)


def relations(package: Package, field: str) -> set[str]:
    """Return what a field such as Depends lists."""
    return set(re.split(r",\s*", package.control[field]))


# -- control


def test_the_control_fields_fit_the_target(package: Package, target: Target) -> None:
    assert package.control["Version"] == f"{__version__}~{target.distribution}"
    assert package.control["Architecture"] == target.architecture
    assert package.deb.name == f"edge-agent_{package.control['Version']}_{target.architecture}.deb"
    first, beyond = PYTHONS[target.distribution]
    depends = relations(package, "Depends")
    assert {f"python3 (>= {first}~)", f"python3 (<< {beyond})", "ca-certificates"} <= depends
    assert {each.split()[0] for each in depends} >= {"libc6", "libstdc++6", "zlib1g"}
    assert any(each.startswith("libedgetpu1-std (>= 16.0TF") for each in relations(package, "Recommends"))
    assert not any("edgetpu" in each for each in depends)


def test_the_settings_are_the_only_conffile(package: Package) -> None:
    shown = subprocess.run(["dpkg-deb", "--info", package.deb, "conffiles"], capture_output=True, check=True)
    assert shown.stdout.decode().split() == ["/etc/edge-agent.toml"]
    assert package.contents["etc/edge-agent.toml"] == (ROOT / "config/edge-agent.toml").read_bytes()


# -- files


def test_nothing_is_where_it_is_not_expected(package: Package) -> None:
    assert {path for path in package.files if not path.startswith(LIBRARY)} == FILES


def test_everything_is_roots_and_nobody_else_may_write_it(package: Package) -> None:
    assert {(m.uid, m.gid) for m in package.members.values()} == {(0, 0)}
    wrong = {path: oct(m.mode) for path, m in package.members.items() if not m.issym() and m.mode & 0o7022}
    assert wrong == {}
    kinds = {path for path, m in package.members.items() if not (m.isdir() or m.isfile() or m.issym())}
    assert kinds == set()
    programs = {path for path, m in package.members.items() if m.isfile() and m.mode & 0o111}
    assert programs == PROGRAMS


def test_links_lead_to_the_machines_authorities(package: Package) -> None:
    links = {member.linkname for member in package.members.values() if member.issym()}
    assert links == {AUTHORITIES}


def test_nothing_is_left_of_how_the_wheels_were_made(package: Package) -> None:
    assert {path for path in package.files if UNWANTED.search(f"/{path}")} == set()


def test_compiled_code_is_for_the_target(package: Package, target: Target) -> None:
    number, name = MACHINES[target.architecture]
    compiled = {path: data for path, data in package.contents.items() if data.startswith(b"\x7fELF")}
    assert len(compiled) > 20
    assert {path for path, data in compiled.items() if int.from_bytes(data[18:20], "little") != number} == set()
    tag = f"cpython-{PYTHONS[target.distribution][0].replace('.', '')}-{name}"
    tagged = {path for path in compiled if ".cpython-" in path}
    assert {path for path in tagged if tag not in path} == set()
    assert {path for path in package.files if path.endswith(".so")} <= compiled.keys()


def test_whoever_may_read_a_device_may_reset_it(package: Package) -> None:
    # For the ioctl of a USB reset the device file has to be open for writing.
    rules = package.contents["usr/lib/udev/rules.d/59-edge-agent.rules"].decode().splitlines()
    modes = [match[1] for line in rules if (match := re.search(r'MODE="(\d+)", GROUP="\w+"$', line))]
    assert len(modes) == 3
    assert {int(mode, 8) & 0o060 for mode in modes} == {0o060}


def test_no_file_tells_where_it_was_built(package: Package) -> None:
    here = str(ROOT).encode()
    assert {path for path, data in package.contents.items() if here in data} == set()


# -- documents


def test_the_bill_of_materials_names_what_is_inside(package: Package) -> None:
    bill = json.loads(package.contents[f"{DOCUMENTS}sbom.cdx.json"])
    listed = {(component["name"], component["version"]) for component in bill["components"]}
    metadata = [path for path in package.files if re.fullmatch(rf"{LIBRARY}[^/]+\.dist-info/METADATA", path)]
    parse = email.parser.BytesHeaderParser().parsebytes
    inside = {(m["Name"], m["Version"]) for m in map(parse, map(package.contents.__getitem__, metadata))}
    normal = {(re.sub(r"[-_.]+", "-", name).lower(), version) for name, version in inside}
    own = ("edge-agent", __version__)
    assert own in normal
    assert normal - {own} <= {(re.sub(r"[-_.]+", "-", name).lower(), version) for name, version in listed}


def test_the_copyright_file_is_about_every_file_of_others(package: Package) -> None:
    text = package.contents[f"{DOCUMENTS}copyright"].decode()
    fields = re.findall(r"^Files:((?:.*)(?:\n[ \t].*)*)", text, re.MULTILINE)
    patterns = {pattern for field in fields for pattern in field.split()} - {"*"}
    own = re.compile(rf"{LIBRARY}edge_agent(/|-)")
    foreign = {path for path in package.files if path.startswith(LIBRARY) and not own.match(path)}
    assert {path for path in foreign if not any(fnmatch.fnmatchcase(path, each) for each in patterns)} == set()


def test_documents_that_others_refer_to_are_there(package: Package) -> None:
    texts = [gzip.decompress(data) for path, data in package.contents.items() if path.startswith("usr/share/man/")]
    texts += [data for path, data in package.contents.items() if not path.startswith((LIBRARY, "usr/share/man/"))]
    named = {match.decode() for text in texts for match in re.findall(rb"/(usr/share/doc/edge-agent/[\w./-]*\w)", text)}
    assert f"{DOCUMENTS}sandbox.md.gz" in named
    assert named <= package.members.keys()


def test_the_manual_pages_are_readable(package: Package) -> None:
    for page in ("man5/edge-agent.toml.5", "man8/edge-agent.8"):
        source = gzip.decompress(package.contents[f"usr/share/man/{page}.gz"])
        assert source == (ROOT / "docs/man" / Path(page).name).read_bytes()
        if shutil.which("mandoc"):
            mandoc = ["mandoc", "-T", "utf8", "-W", "warning"]
            shown = subprocess.run(mandoc, input=source, capture_output=True, check=False)
            assert shown.returncode == 0, shown.stderr
            assert b"edge-agent" in shown.stdout


def test_bash_finds_the_completion(package: Package, tmp_path: Path) -> None:
    loader = Path("/usr/share/bash-completion/bash_completion")
    if not loader.exists():
        pytest.skip("bash-completion is not installed")
    target = tmp_path / "completions/edge-agent"
    target.parent.mkdir()
    target.write_bytes(package.contents["usr/share/bash-completion/completions/edge-agent"])
    # Its name differs between versions.
    load = "{ _comp_load edge-agent || _completion_loader edge-agent; } 2>/dev/null"
    command = ["bash", "--norc", "-c", f". {loader}; {load}; complete -p edge-agent"]
    environ = {**os.environ, "BASH_COMPLETION_USER_DIR": str(tmp_path)}
    shown = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert shown.stdout.strip() == "complete -F _edge_agent edge-agent", shown.stderr
