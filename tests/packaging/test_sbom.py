"""The bill of materials: of the libraries that are installed here, and of made-up wheels."""

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import Distribution, distribution, distributions
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packaging.licenses import canonicalize_license_expression
from packaging.markers import Marker
from packaging.utils import canonicalize_name

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]
Bom = dict[str, Any]
Write = Callable[..., Bom]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Return a function that writes the bill of a folder as the package's build does, in a process of its own."""

    def run(site: Path, *, arch: str = ARCHITECTURE, epoch: str = "1700000000") -> Bom:
        out = tmp_path / "sbom.cdx.json"
        command = [sys.executable, "-I", str(ROOT / "packaging/sbom.py"), "--site", str(site), "--name", "edge-agent"]
        command += ["--version", "0.1.0~bookworm", "--arch", arch, "--out", str(out)]
        done = subprocess.run(
            command, env={"SOURCE_DATE_EPOCH": epoch}, capture_output=True, text=True, check=False, timeout=60
        )
        if done.returncode:
            raise RuntimeError(done.stderr)
        bom: Bom = json.loads(out.read_text())
        return bom

    return run


@pytest.fixture(scope="module")
def installed(bundled: list[Distribution], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with what the package bundles, as installed here."""
    site = tmp_path_factory.mktemp("site")
    for one in [distribution("edge-agent"), *bundled]:
        folder = Path(str(one.locate_file("")))
        for top in {file.parts[0] for file in one.files or []} - {".."}:
            if not (site / top).exists():
                (site / top).symlink_to(folder / top)
    return site


def wheel(
    site: Path, name: str, *metadata: str, tag: str = "py3-none-any", files: dict[str, str] | None = None
) -> None:
    """Put a distribution, version 1, into the folder as an installer does."""
    info = site / f"{name}-1.dist-info"
    lines = ["Metadata-Version: 2.4", f"Name: {name}", "Version: 1", *metadata]
    contents = {f"{info.name}/METADATA": "\n".join(lines), f"{info.name}/WHEEL": f"Tag: {tag}\n"} | (files or {})
    for path, text in contents.items():
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_text(text)
    record = [f"{path},sha256={digest(text)},{len(text)}\n" for path, text in contents.items()]
    (info / "RECORD").write_text("".join([*record, f"{info.name}/RECORD,,\n"]))


def digest(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Return a folder with the application, which needs `engine`, and nothing else."""
    folder = tmp_path / "site"
    wheel(folder, "edge-agent", "License-Expression: Apache-2.0", "Requires-Dist: engine")
    return folder


def component(bom: Bom, name: str) -> Bom:
    found: list[Bom] = [one for one in bom["components"] if one["name"] == name]
    assert len(found) == 1, found
    return found[0]


def needs(bom: Bom, ref: str) -> list[str]:
    needed: list[str] = next(entry["dependsOn"] for entry in bom["dependencies"] if entry["ref"] == ref)
    return needed


def reachable(bom: Bom) -> set[str]:
    seen: set[str] = set()
    todo = [bom["metadata"]["component"]["bom-ref"]]
    while todo:
        ref = todo.pop()
        if ref not in seen:
            seen.add(ref)
            todo += needs(bom, ref)
    return seen


def test_bill_of_what_is_installed_follows_the_schema_of_cyclonedx(installed: Path, write: Write) -> None:
    bom = write(installed)

    errors = JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(bom), all_errors=True)

    assert [str(error) for error in errors or []] == []


def test_every_pinned_distribution_is_there_with_version_licence_and_a_user(
    bundled: list[Distribution], installed: Path, write: Write
) -> None:
    bom = write(installed)

    expected = {f"pkg:pypi/{canonicalize_name(one.name)}@{one.version}" for one in bundled}
    assert {one["purl"] for one in bom["components"]} == expected
    assert expected <= reachable(bom)
    for one in bom["components"]:
        expression = one["licenses"][0]["expression"]
        assert canonicalize_license_expression(expression) == expression


def test_libraries_inside_wheels_are_named_as_the_wheels_declare_them(installed: Path, write: Write) -> None:
    bom = write(installed)

    within = {one["name"]: one for one in component(bom, "cryptography")["components"]}
    assert within["openssl"]["version"]
    assert re.fullmatch("[0-9a-f]{64}", within["openssl"]["hashes"][0]["content"])
    pillow = {one["name"] for one in component(bom, "pillow")["components"]}
    assert {"FreeType", "libtiff", "libXau"} <= pillow
    assert not {"libimagequant", "FriBiDi", "pybind11", "pillow"} & pillow
    assert [name for name in pillow if name.startswith("pillow.libs/libbrotlidec")]
    assert any(one["name"].startswith("numpy.libs/") for one in component(bom, "numpy")["components"])


def test_pillows_wheel_has_no_libimagequant_as_the_bill_says() -> None:
    """Its licence would be GPL-3. Pillow's own bill of materials offers it to whoever builds Pillow."""
    files = distribution("pillow").files or []
    native = [Path(str(file.locate())) for file in files if re.search(r"\.so(\.|$)", file.name)]

    assert native
    assert not [path for path in native if b"liq_image_quantize" in path.read_bytes()]


def test_markers_are_read_as_packaging_reads_them(script: Any) -> None:
    sbom = script("sbom")
    requirements = [text for one in distributions() for text in one.requires or []]
    markers = {'python_version >= "3.9"', '"3.9" < python_full_version', 'python_full_version == "3.11"'}
    markers |= {str(found) for text in requirements if (found := Requirement(text).marker)}
    assert len(markers) > 100

    for python in ("3.11", "3.13"):
        environment: dict[str, str] = sbom.marker_environment(python, "aarch64")
        for extra in ("", "grpc", "tests", "async-rest"):
            given = {**environment, "extra": extra}
            for marker in markers:
                assert sbom.holds(marker, given) == Marker(marker).evaluate(given), marker


def test_same_folder_gives_the_same_bytes_and_another_content_another_number(site: Path, write: Write) -> None:
    wheel(site, "engine", "License-Expression: MIT", tag="cp311-cp311-linux_x86_64")
    first, second = write(site), write(site)
    wheel(site, "engine", "License-Expression: BSD-3-Clause", tag="cp311-cp311-linux_x86_64")
    third = write(site)

    assert first == second
    assert first["metadata"]["timestamp"] == "2023-11-14T22:13:20Z"
    assert first["serialNumber"] != third["serialNumber"]


def test_hash_over_record_tells_builds_apart_and_not_installers(site: Path, write: Write) -> None:
    def record_hash() -> str:
        return str(component(write(site), "engine")["properties"][0]["value"])

    wheel(site, "engine", "License-Expression: MIT", tag="cp311-cp311-linux_x86_64", files={"engine.so": "one"})
    first = record_hash()
    record = site / "engine-1.dist-info/RECORD"
    lines = [f"engine-1.dist-info/INSTALLER,sha256={digest('uv')},2", f"../../bin/engine,sha256={digest('')},0"]
    record.write_text("\n".join([*lines, *reversed(record.read_text().splitlines())]))
    installed_by_another = record_hash()
    wheel(site, "engine", "License-Expression: MIT", tag="cp311-cp311-linux_x86_64", files={"engine.so": "two"})

    assert installed_by_another == first
    assert record_hash() != first


@pytest.mark.parametrize(
    ("arch", "python", "needed"), [("arm64", "311", ["old", "small"]), ("amd64", "313", ["large"])]
)
def test_dependencies_are_those_on_the_target(
    site: Path, write: Write, arch: str, python: str, needed: list[str]
) -> None:
    wheel(
        site,
        "engine",
        "License-Expression: MIT",
        "Requires-Dist: old>=1; python_version < '3.12'",
        'Requires-Dist: small; platform_machine == "aarch64"',
        "Requires-Dist: large (>1); platform_machine == 'x86_64' and sys_platform != 'win32'",
        "Requires-Dist: tests; extra == 'test'",
        tag=f"cp{python}-cp{python}-linux",
    )
    for name in ("old", "small", "large", "tests"):
        wheel(site, name, "License-Expression: MIT")

    assert needs(write(site, arch=arch), "pkg:pypi/engine@1") == [f"pkg:pypi/{name}@1" for name in needed]


def test_extra_that_somebody_asks_for_brings_its_dependencies(site: Path, write: Write) -> None:
    wheel(site, "engine", "License-Expression: MIT", "Requires-Dist: api[R_P.C]>=1", tag="cp311-cp311-linux")
    wheel(site, "api", "License-Expression: MIT", "Requires-Dist: rpc; extra == 'R-p_c'")
    wheel(site, "rpc", "License-Expression: MIT")

    assert needs(write(site), "pkg:pypi/api@1") == ["pkg:pypi/rpc@1"]


def test_own_bill_of_a_wheel_is_taken_over_with_who_needs_whom(site: Path, write: Write) -> None:
    own = {
        "bomFormat": "CycloneDX",
        "metadata": {"component": {"bom-ref": "me", "name": "engine"}},
        "components": [
            {"type": "library", "bom-ref": "a", "name": "zlib", "version": "1.3", "description": "left out"},
            {"type": "library", "bom-ref": "b", "name": "tls", "version": "4", "licenses": [{"expression": "MIT"}]},
            {"type": "library", "bom-ref": "c", "name": "compiler", "scope": "excluded"},
            {"type": "library", "name": "alone"},
        ],
        "dependencies": [{"ref": "me", "dependsOn": ["b", "c"]}, {"ref": "b", "dependsOn": ["a"]}],
    }
    files = {"engine-1.dist-info/sboms/own.json": json.dumps(own), "engine.so": ""}
    wheel(site, "engine", "License-Expression: MIT", tag="cp311-cp311-linux", files=files)
    wheel(site, "silent", "License-Expression: MIT", files={"silent.so.1": ""})

    bom = write(site)

    assert component(bom, "engine")["components"] == [
        {"type": "library", "bom-ref": "pkg:pypi/engine@1#alone", "name": "alone"},
        {
            "type": "library",
            "bom-ref": "pkg:pypi/engine@1#tls@4",
            "name": "tls",
            "version": "4",
            "licenses": [{"expression": "MIT"}],
        },
        {"type": "library", "bom-ref": "pkg:pypi/engine@1#zlib@1.3", "name": "zlib", "version": "1.3"},
    ]
    assert needs(bom, "pkg:pypi/engine@1") == ["pkg:pypi/engine@1#alone", "pkg:pypi/engine@1#tls@4"]
    assert needs(bom, "pkg:pypi/engine@1#tls@4") == ["pkg:pypi/engine@1#zlib@1.3"]
    assert bom["compositions"] == [{"aggregate": "unknown", "assemblies": ["pkg:pypi/silent@1"]}]


def test_what_only_removed_extension_modules_need_is_left_out(site: Path, write: Write) -> None:
    own = {
        "bomFormat": "CycloneDX",
        "components": [
            {"type": "library", "bom-ref": name, "name": name} for name in ("engine.a", "engine.b", "x", "y")
        ],
        "dependencies": [{"ref": "engine.a", "dependsOn": ["x"]}, {"ref": "engine.b", "dependsOn": ["x", "y"]}],
    }
    files = {"engine-1.dist-info/sboms/own.json": json.dumps(own), "engine/a.cpython-311.so": "", "engine/b.so": ""}
    wheel(site, "engine", "License-Expression: MIT", tag="cp311-cp311-linux", files=files)
    (site / "engine/b.so").unlink()

    bom = write(site)

    assert [one["name"] for one in component(bom, "engine")["components"]] == ["engine.a", "x"]
    assert needs(bom, "pkg:pypi/engine@1") == ["pkg:pypi/engine@1#engine.a"]


def test_library_file_that_was_removed_is_not_listed(site: Path, write: Write) -> None:
    files = {"engine.libs/liba.so.1": "a", "engine.libs/libb.so.1": "b"}
    wheel(site, "engine", "License-Expression: MIT", tag="cp311-cp311-linux", files=files)
    (site / "engine.libs/libb.so.1").unlink()

    (left,) = component(write(site), "engine")["components"]

    assert left["name"] == "engine.libs/liba.so.1"
    assert left["hashes"] == [{"alg": "SHA-256", "content": hashlib.sha256(b"a").hexdigest()}]


@pytest.mark.parametrize(
    ("line", "expression"),
    [
        ("License: 3-Clause BSD License", "BSD-3-Clause"),
        ("Classifier: License :: OSI Approved :: MIT License", "MIT"),
        ("License-Expression: MIT-0", "MIT-0"),
    ],
)
def test_licence_is_written_as_spdx(site: Path, write: Write, line: str, expression: str) -> None:
    wheel(site, "engine", line, tag="cp311-cp311-linux")

    licenses = component(write(site), "engine")["licenses"]

    assert licenses == [{"expression": expression, "acknowledgement": "declared"}]


def test_nothing_is_written_where_something_is_unclear(site: Path, write: Write) -> None:
    with pytest.raises(RuntimeError, match="name not one version of Python but: none"):
        write(site)
    wheel(site, "engine", "License: see the file", tag="cp311-cp311-linux")
    with pytest.raises(RuntimeError, match="engine 1: unclear licence; read its licence file"):
        write(site)
    wheel(site, "engine", "License: MIT", "Requires-Dist: x; python_version ~= '3.1'", tag="cp311-cp311-linux")
    with pytest.raises(RuntimeError, match=r"marker .* cannot be read"):
        write(site)
    wheel(site, "engine", "License: MIT", tag="cp311-cp311-linux")
    (site / "engine-1.dist-info/RECORD").unlink()
    with pytest.raises(RuntimeError, match="engine has no RECORD"):
        write(site)
    shutil.rmtree(site / "edge-agent-1.dist-info")
    with pytest.raises(RuntimeError, match="does not hold edge-agent itself"):
        write(site)
