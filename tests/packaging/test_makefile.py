"""`make run` on a machine that lacks something: what it says, and that it goes on once that is there."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
# A python3 that makes half of an environment the first time, as Debian's does without python3-venv, and then all of it.
PYTHON = f"""\
#!/bin/sh
[ "$2" = venv ] || exec {sys.executable} "$@"
mkdir -p "$3/bin"
[ -e "$3/bin/python" ] && exec touch "$3/bin/pip"
touch "$3/bin/python"
echo "ensurepip is not available" >&2
exit 1
"""
OLD = f"""\
#!/bin/sh
exec {sys.executable} -c "import sys; sys.version_info = (3, 10); $2"
"""


def make(folder: Path, python: str) -> subprocess.CompletedProcess[str]:
    """Let make make an environment in the folder with that program as Python."""
    program, environment = folder / "python3", folder / "venv"
    program.write_text(python)
    program.chmod(0o755)
    command = ["make", f"PYTHON={program}", f"VENV={environment}", f"{environment}/bin/pip"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_an_environment_that_was_broken_off_is_finished(tmp_path: Path) -> None:
    first = make(tmp_path, PYTHON)
    assert first.returncode != 0
    assert "ensurepip is not available" in first.stderr
    assert make(tmp_path, PYTHON).returncode == 0
    assert (tmp_path / "venv/bin/pip").exists()


def test_an_old_python_is_told_in_a_line(tmp_path: Path) -> None:
    done = make(tmp_path, OLD)
    assert done.returncode != 0
    assert f"{tmp_path}/python3 is too old: it has to be Python 3.11 to 3.13" in done.stderr
    assert not (tmp_path / "venv").exists()
