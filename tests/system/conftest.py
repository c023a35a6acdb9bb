"""Fresh clones, and the Pythons to try them with."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

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
