"""The same tests of video files with Debian's PyAV, which devices have: python3-av is older than what PyPI has."""

import subprocess
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PYTHON = "/usr/bin/python3"
# What the package brings comes before Debian's modules, and what only the tests need behind them.
BROUGHT = ("numpy", "numpy.libs", "msgspec", "annotated_types", "PIL", "pillow.libs")
RUN = """
import sys
sys.path[:0] = [sys.argv[1], sys.argv[2]]
import av
sys.path.append(sys.argv[3])
import pytest
assert av.__file__.startswith("/usr/lib/python3/dist-packages/"), av.__file__
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "-c", "pyproject.toml", *sys.argv[4:]]))
"""


def why_not() -> str | None:
    look = "import sys, av; print(*sys.version_info[:2], sep='.')"
    try:
        told = subprocess.run([PYTHON, "-I", "-c", look], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return f"{PYTHON} has no PyAV: apt install python3-av"
    here = sysconfig.get_python_version()
    return (
        None if told.stdout.strip() == here else f"{PYTHON} is {told.stdout.strip()}, the modules here are for {here}"
    )


WHY_NOT = why_not()


@pytest.mark.system
@pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))
def test_video_files_with_the_pyav_of_debian(tmp_path: Path) -> None:
    site = Path(sysconfig.get_path("purelib"))
    for name in BROUGHT:
        if (site / name).exists():
            (tmp_path / name).symlink_to(site / name)
    tests = [
        "tests/sources/test_camera.py",
        "tests/sources/test_camera_live.py",
        "-k",
        "not check and not loaded and not rtsp",
    ]
    command = [PYTHON, "-I", "-c", RUN, str(tmp_path), str(ROOT), str(site), *tests]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-1000:]
    assert " passed" in ended.stdout
