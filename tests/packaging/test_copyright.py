"""debian/copyright, against what the package bundles: nothing is missing, wrong or left over."""

import fnmatch
import importlib.metadata
import re
from dataclasses import dataclass
from importlib.metadata import Distribution
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
LIBRARY = "usr/lib/edge-agent/"
# Not in the wheels for every Python and processor.
ON_SOME_TARGETS = {f"{LIBRARY}numpy.libs/libgfortran*", f"{LIBRARY}numpy.libs/libquadmath*"}
COMMON = {"Apache-2.0", "CC0-1.0", "GPL-3", "LGPL-2.1", "MPL-2.0"}

NO_NAMES = {"all", "by", "copyright", "present", "reserved", "rights", "to"}

Packaged = dict[str, list[str]]


@dataclass
class Stanza:
    """What the file says about some paths."""

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


@pytest.fixture
def packaged(bundled: list[Distribution], script: Any, tmp_path: Path) -> Packaged:
    """Return the paths of each distribution's files in the package: as installed here, without what it removes."""
    files = {one.name: [str(file) for file in one.files or [] if "__pycache__" not in str(file)] for one in bundled}
    for path in {tmp_path / name for names in files.values() for name in names if not name.startswith("..")}:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    prune = script("prune")
    for pattern in prune.patterns():
        for path in tmp_path.glob(pattern):
            prune.remove(path)
    return {one: [LIBRARY + name for name in names if (tmp_path / name).is_file()] for one, names in files.items()}


def stanza_of(path: str, among: list[Stanza]) -> Stanza:
    """Return the stanza that holds for a path: the last that names it."""
    return [one for one in among if any(fnmatch.fnmatchcase(path, pattern) for pattern in one.patterns)][-1]


def as_debian_writes(expression: str) -> str:
    """Translate an SPDX expression: MIT is Expat."""
    lower = expression.replace(" OR ", " or ").replace(" AND ", " and ")
    return re.sub(r"\bMIT\b(?!-)", "Expat", lower)


def licences_in(licence: str) -> list[str]:
    return re.split(" (?:and|or) ", licence)


def test_every_file_of_every_distribution_has_a_stanza(packaged: Packaged) -> None:
    among = stanzas()

    unnamed = [path for paths in packaged.values() for path in paths if "*" in stanza_of(path, among).patterns]

    assert len(packaged) > 30
    assert unnamed == []


def test_no_two_distributions_share_a_stanza(packaged: Packaged) -> None:
    owners: dict[str, set[str]] = {}
    among = stanzas()
    for name, paths in packaged.items():
        for path in paths:
            owners.setdefault(str(stanza_of(path, among).patterns), set()).add(name)

    assert {patterns: names for patterns, names in owners.items() if len(names) > 1} == {}


def test_licence_is_the_one_that_the_distribution_names(
    bundled: list[Distribution], packaged: Packaged, script: Any
) -> None:
    among = stanzas()

    for distribution in bundled:
        expression = script("sbom").Bundled(distribution).licenses[0]["expression"]
        for metadata in [path for path in packaged[distribution.name] if path.endswith(".dist-info/METADATA")]:
            assert stanza_of(metadata, among).licence == as_debian_writes(expression), distribution.name


def test_no_stanza_is_left_over(packaged: Packaged) -> None:
    patterns = {pattern for one in stanzas() for pattern in one.patterns if pattern != "*"} - ON_SOME_TARGETS
    paths = [path for paths in packaged.values() for path in paths]

    assert [pattern for pattern in patterns if not fnmatch.filter(paths, pattern)] == []


def test_holders_whom_the_licence_files_name_are_named(bundled: list[Distribution], packaged: Packaged) -> None:
    among = stanzas()

    for distribution in bundled:
        paths = packaged[distribution.name]
        holders = words(" ".join(holder for path in paths for holder in stanza_of(path, among).holders))
        for text in [path.read_text() for path in licence_files(distribution, paths)]:
            for line in re.findall(r"^[\s*]*Copyright (?:\(c\)|©)? ?[0-9][^\n]*", text, re.MULTILINE):
                assert words(line) <= holders, f"{distribution.name}: {line}"


def licence_files(distribution: Distribution, paths: list[str]) -> list[Path]:
    """Return the licence files, but for those that also name the holders of what is not in the wheel."""
    if distribution.name in {"grpcio", "grpcio-status", "numpy", "pillow"}:
        return []
    names = [path.removeprefix(LIBRARY) for path in paths]
    found = [name for name in names if re.search(r"\.dist-info/.*(LICEN|COPYING|NOTICE)", name)]
    return [Path(str(distribution.locate_file(name))) for name in found]


def words(text: str) -> set[str]:
    """Return the words that could be names."""
    return set(re.findall(r"[^\W\d_]{2,}", text.lower())) - NO_NAMES


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
