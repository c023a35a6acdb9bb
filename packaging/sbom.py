"""Writes the software bill of materials of the package: CycloneDX 1.6, JSON.

It names the application, every distribution that is bundled with it, who needs whom, the libraries that a wheel
declares in its own bills of materials (PEP 770, `*.dist-info/sboms/`), and the files of its `*.libs` folders.

Only metadata is read and nothing is imported, so the folder may be for another processor. Which Python it is for is
told by the wheels' tags. The same folder gives the same bytes: the time is SOURCE_DATE_EPOCH (left out without it), and
the serial number is derived from the content.

All hashes are those of the wheel's RECORD, that is, of the files as they were published. `edge-agent:record-sha256` is
the SHA-256 over RECORD's sorted lines without those that an installer adds: it tells two builds of one version apart.
"""

import argparse
import ast
import base64
import csv
import hashlib
import json
import operator
import os
import re
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any

MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}

# How licences are written where there is no SPDX expression.
SPELLINGS = {
    "3-clause bsd license": "BSD-3-Clause",
    "apache 2.0": "Apache-2.0",
    "apache-2.0": "Apache-2.0",
    "bsd-2-clause": "BSD-2-Clause",
    "bsd-3-clause": "BSD-3-Clause",
    "mit": "MIT",
    "mpl-2.0": "MPL-2.0",
    "mpl-2.0 and mit": "MPL-2.0 AND MIT",
    "license :: osi approved :: apache software license": "Apache-2.0",
    "license :: osi approved :: mit license": "MIT",
    "license :: osi approved :: mozilla public license 2.0 (mpl 2.0)": "MPL-2.0",
}
# What reading the licence file showed, where the metadata says too little or something else.
CONCLUDED = {
    "backports-strenum": "PSF-2.0",  # "MIT", but the only licence text that comes with it is Python's
    "pyasn1-modules": "BSD-2-Clause",  # "BSD"
}
# What a wheel's own bill of materials offers to whoever builds it, and is not in the published wheel.
NOT_IN_THE_WHEEL = {"pillow": {"libimagequant", "FriBiDi"}}

WRITTEN_BY_INSTALLERS = re.compile(r"(\.\./|bin/|[^/]+\.dist-info/(INSTALLER|REQUESTED|direct_url\.json|RECORD)$)")
REQUIREMENT = re.compile(r"\s*(?P<name>[\w.-]*\w)\s*(?:\[(?P<extras>[^]]*)\])?[^;]*(?:;(?P<marker>.*))?", re.DOTALL)
VERSIONS = {"python_version", "python_full_version", "implementation_version"}
COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda left, right: left in right,
    ast.NotIn: lambda left, right: left not in right,
}

# Of a component in a wheel's own bill of materials. Its history and patches stay in the wheel's file.
KEPT = ["type", "name", "version", "purl", "licenses", "hashes", "scope"]

Component = dict[str, Any]
Graph = dict[str, set[str]]


class SbomError(Exception):
    """Something in the folder cannot be described; says what to do."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Write the bill of materials of what is installed in a folder.")
    parser.add_argument("--site", type=Path, required=True, help="folder into which the wheels were installed")
    parser.add_argument("--name", required=True, help="the application's distribution; it is in the folder, too")
    parser.add_argument("--version", required=True, help="version of the package")
    parser.add_argument("--arch", choices=sorted(MACHINES), required=True)
    parser.add_argument("--out", type=Path, required=True, help="file to write")
    options = parser.parse_args(arguments)
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    try:
        bom = describe(options.site, options.name, options.version, options.arch, int(epoch) if epoch else None)
    except SbomError as error:
        sys.stderr.write(f"sbom: {error}\n")
        return 1
    options.out.write_text(json.dumps(bom, indent=1, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")
    return 0


def describe(site: Path, name: str, version: str, arch: str, time: int | None) -> dict[str, Any]:
    """Return the bill of materials of the application `name` and all that is in `site`.

    `time` is in seconds since 1970. Raises SbomError.
    """
    bundled = {one.key: one for one in map(Bundled, distributions(path=[str(site)]))}
    application = bundled.pop(canonical(name), None)
    if application is None:
        raise SbomError(f"{site} does not hold {name} itself: install it there before the bill of materials is written")
    environment = marker_environment(target_python(bundled.values()), MACHINES[arch])
    root = f"pkg:generic/{application.key}@{version}?arch={arch}"
    refs = {application.key: root} | {key: one.ref for key, one in bundled.items()}
    graph = dependencies({application.key: application} | bundled, environment)
    edges = {refs[key]: {refs[needed] for needed in graph[key]} for key in refs}
    components = [_component(bundled[key], edges) for key in sorted(bundled)]
    bom = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": _metadata(application, version, root, time),
        "components": components,
        "dependencies": [{"ref": ref, "dependsOn": sorted(edges[ref])} for ref in sorted(edges)],
        "compositions": [{"aggregate": "unknown", "assemblies": sorted(_opaque(bundled))}],
    }
    content = json.dumps(bom, sort_keys=True).encode()
    return bom | {"serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, hashlib.sha256(content).hexdigest())}"}


def _metadata(application: "Bundled", version: str, root: str, time: int | None) -> dict[str, Any]:
    component = {
        "type": "application",
        "bom-ref": root,
        "name": application.key,
        "version": version,
        "purl": root,
        "licenses": application.licenses,
    }
    metadata: dict[str, Any] = {"component": component, "lifecycles": [{"phase": "build"}]}
    if time is not None:
        metadata["timestamp"] = f"{datetime.fromtimestamp(time, UTC):%Y-%m-%dT%H:%M:%SZ}"
    return metadata


def _component(one: "Bundled", edges: Graph) -> Component:
    declared = list(declared_libraries(one, edges))
    files = list(one.library_files())
    component = {
        "type": "library",
        "bom-ref": one.ref,
        "name": one.name,
        "version": one.version,
        "purl": one.ref,
        "licenses": one.licenses,
        "properties": [{"name": "edge-agent:record-sha256", "value": one.record_hash}],
    }
    return component | ({"components": declared + files} if declared or files else {})


def _opaque(bundled: Mapping[str, "Bundled"]) -> Iterator[str]:
    """Yield those with native code whose wheels do not say what is linked into it."""
    return (one.ref for one in bundled.values() if one.has_native_code and not one.own_boms)


class Bundled:
    """A distribution in the folder, as its dist-info describes it."""

    def __init__(self, distribution: Distribution) -> None:
        self._distribution = distribution
        self.name = distribution.metadata["Name"]
        self.key = canonical(self.name)
        self.version = distribution.version
        self.ref = f"pkg:pypi/{self.key}@{self.version}"
        self.requires = distribution.requires or []

    @cached_property
    def _record(self) -> dict[str, str]:
        """Path and hash ("sha256=…", base64) of each file that came with the wheel."""
        text = self._distribution.read_text("RECORD")
        if text is None:
            raise SbomError(f"{self.name} has no RECORD: write the bill of materials before RECORD is removed")
        rows = csv.reader(text.splitlines())
        return {row[0]: row[1] for row in rows if row[1] and not WRITTEN_BY_INSTALLERS.match(row[0])}

    @property
    def record_hash(self) -> str:
        lines = "".join(f"{path},{digest}\n" for path, digest in sorted(self._record.items()))
        return hashlib.sha256(lines.encode()).hexdigest()

    @property
    def has_native_code(self) -> bool:
        return any(re.search(r"\.so(\.|$)", path) for path in self._record)

    @property
    def tags(self) -> list[str]:
        return re.findall(r"^Tag: (\S+)", self._distribution.read_text("WHEEL") or "", re.MULTILINE)

    @cached_property
    def own_boms(self) -> list[dict[str, Any]]:
        names = sorted(path for path in self._record if re.match(r"[^/]+\.dist-info/sboms/.*\.json$", path))
        found = [Path(str(self._distribution.locate_file(name))) for name in names]
        return [bom for bom in map(_read_json, found) if bom.get("bomFormat") == "CycloneDX"]

    @property
    def licenses(self) -> list[dict[str, str]]:
        concluded = CONCLUDED.get(self.key)
        if concluded:
            return [{"expression": concluded, "acknowledgement": "concluded"}]
        return [{"expression": self._declared_license(), "acknowledgement": "declared"}]

    def _declared_license(self) -> str:
        metadata = self._distribution.metadata
        if "License-Expression" in metadata:
            return metadata["License-Expression"]
        for text in [*metadata.get_all("License", []), *metadata.get_all("Classifier", [])]:
            if text.lower() in SPELLINGS:
                return SPELLINGS[text.lower()]
        raise SbomError(f"{self.name} {self.version}: unclear licence; read its licence file, and add it to CONCLUDED")

    def lacks_module(self, name: str) -> bool:
        """Tell whether `name` is an extension module ("PIL._avif") that came with the wheel and was removed."""
        pattern = re.compile(re.escape(name.replace(".", "/")) + r"\.[^/]*\.?so$")
        paths = [path for path in self._record if pattern.match(path)]
        return bool(paths) and not any(map(self._exists, paths))

    def _exists(self, path: str) -> bool:
        return Path(str(self._distribution.locate_file(path))).exists()

    def library_files(self) -> Iterator[Component]:
        """Describe the files of the folder `*.libs` that are still there."""
        for path, digest in sorted(self._record.items()):
            if re.match(r"[^/]+\.libs/", path) and self._exists(path):
                hashes = [{"alg": "SHA-256", "content": _hexadecimal(digest)}]
                yield {"type": "file", "bom-ref": f"{self.ref}#{path}", "name": path, "hashes": hashes}


def declared_libraries(one: Bundled, edges: Graph) -> Iterator[Component]:
    """Yield what the wheel's own bills of materials say is in it, and add to `edges` who needs whom among that.

    What only removed extension modules need is not in the folder either, and is left out with them.
    """
    within: Graph = {one.ref: set()}
    found: dict[str, Component] = {}
    for bom in one.own_boms:
        refs = _refs(one, bom)
        for component in bom.get("components", []):
            ref = refs.get(_name_within(component), one.ref)
            found.setdefault(ref, component)
            within.setdefault(ref, set())
        for entry in bom.get("dependencies", []):
            if entry["ref"] in refs:
                within[refs[entry["ref"]]] |= {refs[needed] for needed in entry.get("dependsOn", []) if needed in refs}
    within[one.ref] |= within.keys() - set().union(*within.values())
    removed = {ref for ref, component in found.items() if one.lacks_module(component["name"])}
    present = _reachable(one.ref, within, removed)
    for ref in sorted(present):
        edges.setdefault(ref, set()).update(within[ref] & present - {ref})
        if ref != one.ref:
            yield {key: found[ref][key] for key in KEPT if key in found[ref]} | {"bom-ref": ref}


def _reachable(start: str, graph: Graph, removed: set[str]) -> set[str]:
    seen: set[str] = set()
    todo = [start]
    while todo:
        ref = todo.pop()
        if ref not in seen and ref not in removed:
            seen.add(ref)
            todo += graph[ref]
    return seen


def _refs(one: Bundled, bom: Mapping[str, Any]) -> dict[str, str]:
    """Return this document's names for what a wheel's bill of materials lists, the wheel itself among it."""
    refs = {bom.get("metadata", {}).get("component", {}).get("bom-ref", ""): one.ref}
    for component in bom.get("components", []):
        if component.get("scope") == "excluded" or component["name"] in NOT_IN_THE_WHEEL.get(one.key, ()):
            continue
        itself = component["name"] == one.key and component.get("version") == one.version
        within = "@".join(filter(None, [component["name"], component.get("version")]))
        refs[_name_within(component)] = one.ref if itself else f"{one.ref}#{within}"
    return refs


def _name_within(component: Component) -> str:
    return str(component.get("bom-ref") or component["name"])


def dependencies(bundled: Mapping[str, Bundled], environment: Mapping[str, str]) -> Graph:
    """Return whom each distribution needs of those that are there, with the extras that others ask of it."""
    graph: Graph = {key: set() for key in bundled}
    todo = [(key, "") for key in bundled]
    seen: set[tuple[str, str]] = set()
    while todo:
        key, extra = todo.pop()
        if (key, extra) in seen or key not in bundled:
            continue
        seen.add((key, extra))
        for needed, extras in _needed(bundled[key], {**environment, "extra": extra}):
            graph[key] |= {needed} & bundled.keys()
            todo += [(needed, wanted) for wanted in extras]
    return graph


def _needed(one: Bundled, environment: Mapping[str, str]) -> Iterator[tuple[str, list[str]]]:
    """Yield name and extras of each distribution that is required in `environment`."""
    for requirement in one.requires:
        parts = REQUIREMENT.fullmatch(requirement)
        if parts is None:
            raise SbomError(f"{one.name} requires {requirement!r}, which cannot be read")
        if parts["marker"] is None or holds(parts["marker"], environment):
            extras = [canonical(extra.strip()) for extra in (parts["extras"] or "").split(",")]
            yield canonical(parts["name"]), [extra for extra in extras if extra]


def holds(marker: str, environment: Mapping[str, str]) -> bool:
    """Tell whether an environment marker is true. Its syntax is Python's, but for `~=` and `===`, which nobody uses.

    Raises SbomError where a marker cannot be read.
    """
    try:
        return _value(ast.parse(marker.strip(), mode="eval").body, environment)
    except (SyntaxError, ValueError, KeyError) as error:
        raise SbomError(f"the marker {marker.strip()!r} cannot be read by packaging/sbom.py: {error}") from error


def _value(node: ast.expr, environment: Mapping[str, str]) -> bool:
    match node:
        case ast.BoolOp(ast.And(), values):
            return all(_value(value, environment) for value in values)
        case ast.BoolOp(ast.Or(), values):
            return any(_value(value, environment) for value in values)
        case ast.Compare(left, [comparison], [right]):
            return COMPARISONS[type(comparison)](*_comparable(left, right, type(comparison), environment))
        case _:
            raise ValueError(f"{ast.unparse(node)} is neither a comparison nor and, or")


def _comparable(left: ast.expr, right: ast.expr, kind: type[ast.cmpop], environment: Mapping[str, str]) -> list[Any]:
    names = {node.id for node in (left, right) if isinstance(node, ast.Name)}
    texts = [environment[node.id] if isinstance(node, ast.Name) else ast.literal_eval(node) for node in (left, right)]
    if "extra" in names:
        return [canonical(text) for text in texts]
    if names & VERSIONS and not issubclass(kind, ast.In | ast.NotIn):
        return [_version(text) for text in texts]
    return texts


def _version(text: str) -> list[int]:
    """Split a final release's version so that 3.11 equals 3.11.0."""
    numbers = [int(number) for number in text.split(".")]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return numbers


def target_python(bundled: Iterable[Bundled]) -> str:
    """Return the one Python version ("3.11") that the wheels with extension modules were built for."""
    tags = {tag for one in bundled for tag in one.tags}
    versions = {match[1] for match in map(re.compile(r"cp3(\d+)-cp3\1-").match, tags) if match}
    if len(versions) != 1:
        found = ", ".join(f"3.{minor}" for minor in sorted(versions)) or "none"
        raise SbomError(f"the wheels' tags name not one version of Python but: {found}")
    return f"3.{versions.pop()}"


def marker_environment(python: str, machine: str) -> dict[str, str]:
    """Return what environment markers see on the target; what depends on its kernel is empty."""
    return {
        "implementation_name": "cpython",
        "implementation_version": f"{python}.0",
        "os_name": "posix",
        "platform_machine": machine,
        "platform_python_implementation": "CPython",
        "platform_release": "",
        "platform_system": "Linux",
        "platform_version": "",
        "python_full_version": f"{python}.0",
        "python_version": python,
        "sys_platform": "linux",
    }


def canonical(name: str) -> str:
    """Return a distribution's name as the package index spells it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SbomError(f"{path}: {error}") from error
    return content


def _hexadecimal(digest: str) -> str:
    """Translate RECORD's "sha256=…" in URL-safe base64 without padding."""
    return base64.urlsafe_b64decode(digest.removeprefix("sha256=") + "=").hex()


if __name__ == "__main__":
    sys.exit(main())
