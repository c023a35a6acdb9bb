"""What the package bundles, as it is installed here."""

import importlib
import re
from importlib.metadata import Distribution, distribution
from pathlib import Path
from typing import Any

import pytest

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def bundled() -> list[Distribution]:
    """Return the distributions that the lock file asks for on this machine."""
    lines = (ROOT / "packaging/requirements/runtime.txt").read_text().splitlines()
    pinned = [Requirement(line.rstrip("\\ ")) for line in lines if re.match(r"[a-z]", line)]
    return [distribution(one.name) for one in pinned if one.marker is None or one.marker.evaluate()]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that imports one of the scripts that make the package, by its name."""
    monkeypatch.syspath_prepend(str(ROOT / "packaging"))
    return importlib.import_module
