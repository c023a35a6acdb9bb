"""debian/copyright, against the distributions that are installed here: nothing is missing, wrong or left over."""

import fnmatch
import importlib
import importlib.metadata
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
LIBRARY = "usr/lib/edge-agent/"
# Not in the wheels for every Python and processor.
ON_SOME_TARGETS = {f"{LIBRARY}numpy.libs/libgfortran*", f"{LIBRARY}numpy.libs/libquadmath*"}
COMMON = {"Apache-2.0", "CC0-1.0", "GPL-3", "LGPL-2.1", "MPL-2.0"}


@dataclass
class Stanza:
    patterns: list[str]
    holders: list[str]
    licence: str


def paragraphs() -> list[dict[str, str]]:
    """Return the file's paragraphs: field to text, continued lines included."""
    texts = (ROOT / "debian/copyright").read_text(encoding="utf-8").strip().split("\n\n")
    return [dict(re.findall(r"^([A-Z][\w-]*):[ \t]*((?:.*)(?:\n[ \t].*)*)", text, re.MULTILINE)) for text in texts]


def stanzas() -> list[Stanza]:
    return [
        Stanza(one["Files"].split(), [line.strip() for line in one["Copyright"].splitlines()], one["License"])
        for one in paragraphs()
        if "Files" in one
    ]


def bundled() -> Iterator[importlib.metadata.Distribution]:
    """Yield the distributions that the lock file asks for here."""
    for line in (ROOT / "packaging/requirements/runtime.txt").read_text().splitlines():
        if re.match(r"[a-z]", line):
            requirement = Requirement(line.rstrip("\\ "))
            if requirement.marker is None or requirement.marker.evaluate():
                yield importlib.metadata.distribution(requirement.name)


def files(distribution: importlib.metadata.Distribution) -> list[str]:
    """Return where the package has the distribution's files; the programs it brings are not in the package."""
    names = [str(file) for file in distribution.files or [] if file.parts[0] != ".."]
    return [LIBRARY + name for name in names if "__pycache__" not in name]


def stanza_of(path: str, among: list[Stanza]) -> Stanza:
    """Return the stanza that holds for a path: the last that names it."""
    return [one for one in among if any(fnmatch.fnmatchcase(path, pattern) for pattern in one.patterns)][-1]


def as_debian_writes(expression: str) -> str:
    """Translate an SPDX expression: MIT is Expat."""
    lower = expression.replace(" OR ", " or ").replace(" AND ", " and ")
    return re.sub(r"\bMIT\b(?!-)", "Expat", lower)


def licences_in(licence: str) -> list[str]:
    return re.split(" (?:and|or) ", licence)


def test_every_file_of_every_distribution_has_a_stanza_of_its_own() -> None:
    among = stanzas()

    for distribution in bundled():
        unnamed = [path for path in files(distribution) if "*" in stanza_of(path, among).patterns]
        assert not unnamed, f"debian/copyright says nothing about {unnamed[:3]}"


def test_no_two_distributions_share_a_stanza() -> None:
    owners: dict[str, set[str]] = {}
    among = stanzas()
    for distribution in bundled():
        for path in files(distribution):
            owners.setdefault(str(stanza_of(path, among).patterns), set()).add(distribution.name)

    assert {patterns: names for patterns, names in owners.items() if len(names) > 1} == {}


def test_licence_is_the_one_that_the_distribution_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "packaging"))
    sbom: Any = importlib.import_module("sbom")
    among = stanzas()

    for distribution in bundled():
        metadata = next(path for path in files(distribution) if path.endswith(".dist-info/METADATA"))
        expression = sbom.Bundled(distribution).licenses[0]["expression"]
        assert stanza_of(metadata, among).licence == as_debian_writes(expression), distribution.name


def test_no_stanza_is_left_over() -> None:
    patterns = {pattern for one in stanzas() for pattern in one.patterns if pattern != "*"} - ON_SOME_TARGETS
    paths = [path for distribution in bundled() for path in files(distribution)]

    assert [pattern for pattern in patterns if not fnmatch.filter(paths, pattern)] == []


def test_holders_whom_the_licence_files_name_are_named() -> None:
    among = stanzas()

    for distribution in bundled():
        holders = words(" ".join(holder for path in files(distribution) for holder in stanza_of(path, among).holders))
        for path in licence_files(distribution):
            for line in re.findall(r"^[\s*]*Copyright (?:\(c\)|©)? ?[0-9][^\n]*", path.read_text(), re.MULTILINE):
                assert words(line) - {"all", "rights", "reserved", "by"} <= holders, f"{distribution.name}: {line}"


def licence_files(distribution: importlib.metadata.Distribution) -> list[Path]:
    """Return the licence files, but for those that also name the holders of what is not in the wheel."""
    found = [file for file in distribution.files or [] if re.search(r"\.dist-info/.*(LICEN|COPYING|NOTICE)", str(file))]
    return [
        Path(str(file.locate()))
        for file in found
        if distribution.name not in {"grpcio", "grpcio-status", "numpy", "pillow"}
    ]


def words(text: str) -> set[str]:
    return set(re.findall(r"[^\W\d_]{2,}", text.lower())) - {"copyright"}


def test_every_licence_has_its_text_and_every_text_is_used() -> None:
    named = {licence for one in stanzas() for licence in licences_in(one.licence)}
    alone = [one["License"] for one in paragraphs() if "License" in one and "Files" not in one]
    texts = dict(text.split("\n", 1) for text in alone)

    assert named == texts.keys()
    assert all(len(text) > 100 for text in texts.values())


def test_texts_that_debian_has_are_referred_to() -> None:
    text = (ROOT / "debian/copyright").read_text(encoding="utf-8")

    assert set(re.findall(r"/usr/share/common-licenses/([\w.-]*\w)", text)) == COMMON
    assert "GNU GENERAL PUBLIC LICENSE\n" not in text
    assert "TERMS AND CONDITIONS FOR USE, REPRODUCTION" not in text


def test_own_licence_is_that_of_the_project() -> None:
    everything = next(one for one in stanzas() if one.patterns == ["*"])

    assert everything.licence == importlib.metadata.metadata("edge-agent")["License-Expression"] == "Apache-2.0"
