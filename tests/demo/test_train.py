import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edge_agent.demo import train

TENSORFLOW = importlib.util.find_spec("tensorflow") is not None


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edge_agent.demo.train", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)


def test_rounding_clips_at_both_ends_and_a_bare_cast_wraps() -> None:
    readings = np.array([[-9.0, 0.0, 1.26, 9.0]], dtype=np.float32)

    assert train.rounded(readings, 0.1, 20).tolist() == [[0, 20, 33, 110]]
    assert train.rounded(readings, 0.01, 20).tolist() == [[0, 20, 146, 255]]
    assert train.wrapped(readings, 0.01, 20).tolist() == [[(-880) % 256, 20, 146, 920 % 256]]


def test_data_depends_on_the_seed_alone() -> None:
    first, again, other = (train.held_out_set(seed)[0] for seed in (1, 1, 2))

    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_calibration_holds_as_many_failures_as_normal_samples() -> None:
    calibration = train.calibration_set(seed=1)

    assert calibration.shape == (300, 128)
    assert (calibration.mean(axis=1) > 2).sum() == 100


def test_only_what_stands_between_the_marks_is_replaced(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{train.TABLE_BEGIN}old\n{train.TABLE_END}after\n")

    assert train.update_readme(readme, train.table({"size": "7 bytes"}))

    written = readme.read_text()
    assert written.startswith(f"before\n{train.TABLE_BEGIN}| measured")
    assert written.endswith(f"| size | 7 bytes |\n{train.TABLE_END}after\n")
    assert "old" not in written


@pytest.mark.parametrize("text", [None, "no marks", train.TABLE_BEGIN + "no end"])
def test_a_readme_without_marks_is_left_alone(tmp_path: Path, text: str | None) -> None:
    readme = tmp_path / "README.md"
    if text is not None:
        readme.write_text(text)

    assert not train.update_readme(readme, "table")
    assert (readme.read_text() if readme.exists() else None) == text


@pytest.mark.skipif(TENSORFLOW, reason="TensorFlow is installed")
def test_says_how_to_get_tensorflow(tmp_path: Path) -> None:
    done = run("--out", str(tmp_path))

    assert done.returncode == 1
    assert "pip install -e '.[train]'" in done.stderr
    assert list(tmp_path.iterdir()) == []
