"""The sources of the Debian package, as far as they can be checked without building it."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edge_agent import __version__

ROOT = Path(__file__).parents[2]


@pytest.fixture
def build_deb(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the script that builds the package, as a module."""
    monkeypatch.syspath_prepend(str(ROOT / "packaging"))
    return __import__("build_deb")


def test_the_changelog_begins_with_this_version() -> None:
    top = (ROOT / "debian/changelog").read_text().splitlines()[0]
    assert top == f"edge-agent ({__version__}) unstable; urgency=medium"


def test_the_distribution_is_added_to_version_and_changelog(tmp_path: Path, build_deb: Any) -> None:
    changelog = tmp_path / "changelog"
    changelog.write_text(
        "edge-agent (1.2.3) unstable; urgency=low\n\n  * One.\n\nedge-agent (1.2.2) unstable; urgency=low\n"
    )
    assert build_deb.add_distribution(changelog, "trixie") == "1.2.3~trixie"
    assert changelog.read_text() == (
        "edge-agent (1.2.3~trixie) trixie; urgency=low\n\n  * One.\n\nedge-agent (1.2.2) unstable; urgency=low\n"
    )


def test_a_changelog_of_something_else_is_refused(tmp_path: Path, build_deb: Any) -> None:
    changelog = tmp_path / "changelog"
    changelog.write_text("other (1.2.3) unstable; urgency=low\n")
    with pytest.raises(build_deb.BuildError, match="does not begin with edge-agent"):
        build_deb.add_distribution(changelog, "trixie")


def test_rules_and_build_mean_the_same_python(build_deb: Any) -> None:
    rules = (ROOT / "debian/rules").read_text()
    assert dict(re.findall(r"^PYTHON_(\w+) := (\S+)$", rules, re.MULTILINE)) == build_deb.PYTHONS


def test_an_unknown_distribution_is_named() -> None:
    command = [sys.executable, str(ROOT / "packaging/build_deb.py"), "buster"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (answer.returncode, answer.stderr) == (64, "unknown: buster; known are bookworm trixie amd64 arm64\n")


def test_every_link_in_debian_leads_to_a_file() -> None:
    links = [path for path in (ROOT / "debian").iterdir() if path.is_symlink()]
    assert links
    assert [path.name for path in links if not path.is_file()] == []


def test_what_is_pruned_goes_and_the_rest_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "packaging"))
    prune = __import__("prune")
    kept = [tmp_path / "numpy/_core/_multiarray_umath.cpython-311-x86_64-linux-gnu.so", tmp_path / "PIL/Image.py"]
    unused = [tmp_path / pattern.replace("**", "numpy/_core").replace("*", "x") for pattern in prune.patterns()]
    for path in [*kept, *unused]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert prune.main(tmp_path) == 0
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(kept)
    assert not (tmp_path / "ai_edge_litert").exists()


def test_a_pattern_that_matches_nothing_ends_the_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "packaging"))
    prune = __import__("prune")
    assert prune.main(tmp_path) == 1
    assert capsys.readouterr().err.startswith("packaging/prune.py: nothing matches ai_edge_litert/aot;")
